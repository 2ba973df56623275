"""Published files: names and shapes as transformers has them, and round trips through both implementations."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from pixelis_jax import policy
from pixelis_jax.policy import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def _reference(config: policy.Qwen3VLConfig):
    return transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig.from_dict(config.to_json()))


@pytest.mark.parametrize("preset", [policy.qwen3_vl_2b, policy.qwen3_vl_4b, policy.qwen3_vl_8b])
def test_names_and_shapes_are_those_of_transformers(preset):
    config = preset()
    with torch.device("meta"):
        reference = _reference(config)
    expected = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]  # the embedding under a second name; not written to files
    assert weights.published_names(config) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_through_our_model_is_bit_identical(tied, dtype, tmp_path):
    config = _with_tie(policy.tiny(vocab_size=64), tied)
    reference = _reference(config).to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path / "theirs")
    model = weights.load(tmp_path / "theirs", dtype=jnp.dtype(dtype))
    weights.save(model, tmp_path / "ours", max_shard_bytes=300_000)

    before = _tensors(tmp_path / "theirs")
    after = _tensors(tmp_path / "ours")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    again = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == reference.dtype
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_config_of_a_written_model_means_the_same_to_transformers(tmp_path):
    config = policy.qwen3_vl_2b()
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.text_config.rope_parameters["rope_theta"] == 5_000_000
    assert theirs.text_config.rope_parameters["mrope_section"] == [24, 20, 20]
    assert theirs.tie_word_embeddings
    # What transformers writes in its own spelling reads back as the same configuration.
    theirs.save_pretrained(tmp_path / "again")
    assert policy.Qwen3VLConfig.from_json(tmp_path / "again") == config


def test_a_model_of_ours_runs_in_transformers(tmp_path):
    model = policy.Qwen3VL(policy.tiny(vocab_size=64), rngs=nnx.Rngs(0))
    weights.save(model, tmp_path / "model")
    ids = np.arange(10)[None]
    positions = np.broadcast_to(np.arange(10)[None, :, None], (1, 10, 3))
    ours = model.unembed(model(ids, positions)[0])
    reference = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        theirs = reference(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _with_tie(config: policy.Qwen3VLConfig, tied: bool) -> policy.Qwen3VLConfig:
    raw = config.to_json()
    return policy.Qwen3VLConfig.from_json(raw | {"tie_word_embeddings": tied})


def _tensors(directory) -> dict[str, np.ndarray]:
    return {name: array for file in directory.glob("*.safetensors") for name, array in load_file(file).items()}
