"""Reading and refusing configurations."""

import json

import pytest

from pixelis_jax import policy


@pytest.mark.parametrize("preset", [policy.qwen3_vl_2b, policy.qwen3_vl_4b, policy.qwen3_vl_8b, policy.qwen3_vl_32b])
def test_json_round_trip(preset, tmp_path):
    config = preset()
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert policy.Qwen3VLConfig.from_json(tmp_path) == config
    assert policy.Qwen3VLConfig.from_json(tmp_path / "config.json") == config


def test_both_spellings_of_rope_are_read():
    config = policy.qwen3_vl_2b()
    raw = config.to_json()
    text = raw["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    assert policy.Qwen3VLConfig.from_json(raw) == config


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("", {"model_type": "qwen2_vl"}, "qwen2_vl"),
        ("", {"model_type": "qwen3_vl_moe"}, "num_experts is missing"),
        ("", {"quantization_config": {}}, "quantization_config"),
        ("text_config", {"hidden_act": "gelu"}, "text_config.hidden_act"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"sliding_window": 512}, "sliding_window"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False}}, "interleaved"),
        ("text_config", {"rope_scaling": {"mrope_section": [16, 24, 24]}}, "interleave"),
        ("text_config", {"rope_theta": None}, "rope_theta"),
        ("text_config", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("vision_config", {"window_size": 112}, "window_size"),
        ("vision_config", {"hidden_act": "quick_gelu"}, "vision_config.hidden_act"),
        ("vision_config", {"deepstack_visual_indexes": [5, 24]}, "outside depth"),
        ("vision_config", {"deepstack_visual_indexes": [11, 5]}, "increase"),
        ("vision_config", {"num_position_embeddings": 2300}, "square"),
        ("vision_config", {"out_hidden_size": 1024}, "out_hidden_size"),
    ],
)
def test_another_function_is_refused_by_name(section, change, message):
    raw = policy.qwen3_vl_2b().to_json()
    (raw[section] if section else raw).update(change)
    with pytest.raises(policy.ConfigError, match=message):
        policy.Qwen3VLConfig.from_json(raw)


def test_a_missing_field_is_named():
    raw = policy.qwen3_vl_2b().to_json()
    del raw["text_config"]["head_dim"]
    with pytest.raises(policy.ConfigError, match="head_dim"):
        policy.Qwen3VLConfig.from_json(raw)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"model_type": "llama"}'])
def test_a_file_that_is_no_config(content, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(policy.ConfigError):
        policy.Qwen3VLConfig.from_json(file)
    with pytest.raises(policy.ConfigError):
        policy.Qwen3VLConfig.from_json(tmp_path / "absent.json")


def test_token_ids_come_from_the_file():
    config = policy.tiny(vocab_size=300, eos_token_id=7, image_token_id=9)
    read = policy.Qwen3VLConfig.from_json(config.to_json())
    assert (read.eos_token_id, read.image_token_id, read.video_token_id) == (7, 9, 299)
