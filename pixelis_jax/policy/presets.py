"""Configurations of the released Qwen3-VL models and of the tiny policy."""

import dataclasses

from pixelis_jax.policy.config import Qwen3VLConfig, TextConfig, VisionConfig


def qwen3_vl_2b() -> Qwen3VLConfig:
    """Qwen3-VL-2B."""
    return _released(hidden=2048, layers=28, heads=16, mlp=6144, tied=True, vision=_small_vision(2048))


def qwen3_vl_4b() -> Qwen3VLConfig:
    """Qwen3-VL-4B."""
    return _released(hidden=2560, layers=36, heads=32, mlp=9728, tied=True, vision=_small_vision(2560))


def qwen3_vl_8b() -> Qwen3VLConfig:
    """Qwen3-VL-8B."""
    return _released(hidden=4096, layers=36, heads=32, mlp=12_288, tied=False, vision=_large_vision(4096))


def qwen3_vl_32b() -> Qwen3VLConfig:
    """Qwen3-VL-32B."""
    return _released(hidden=5120, layers=64, heads=64, mlp=25_600, tied=False, vision=_large_vision(5120))


def qwen3_vl_30b_a3b() -> Qwen3VLConfig:
    """Qwen3-VL-30B-A3B, a mixture of 128 experts of which each token meets 8."""
    config = _released(hidden=2048, layers=48, heads=32, mlp=6144, tied=False, vision=_large_vision(2048), kv_heads=4)
    text = dataclasses.replace(config.text, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
    return dataclasses.replace(config, text=text)


def tiny(*, vocab_size: int, **token_ids: int) -> Qwen3VLConfig:
    """The tiny policy: the same architecture with about 1.3 million parameters, for thumbnails of 64 x 64 pixels.

    Args:
      vocab_size: size of its tokenizer.
      **token_ids: special ids of that tokenizer, named as in `Qwen3VLConfig`. By default they are the last of the
        vocabulary: eos, vision start, vision end, image, video.

    Returns:
      The configuration.
    """
    last = vocab_size - 1
    ids = {
        "eos_token_id": last - 4,
        "vision_start_token_id": last - 3,
        "vision_end_token_id": last - 2,
        "image_token_id": last - 1,
        "video_token_id": last,
    } | token_ids
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10_000.0,
        mrope_section=(6, 5, 5),
        max_position_embeddings=4096,
    )
    vision = VisionConfig(
        depth=2,
        hidden_size=96,
        num_heads=3,
        intermediate_size=256,
        out_hidden_size=128,
        deepstack_visual_indexes=(0, 1),
        num_position_embeddings=64,
        patch_size=8,
    )
    return Qwen3VLConfig(text=text, vision=vision, tie_word_embeddings=True, **ids)


def _released(
    *, hidden: int, layers: int, heads: int, mlp: int, tied: bool, vision: VisionConfig, kv_heads: int = 8
) -> Qwen3VLConfig:
    text = TextConfig(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        rope_theta=5_000_000.0,
        mrope_section=(24, 20, 20),
    )
    return Qwen3VLConfig(text=text, vision=vision, tie_word_embeddings=tied, bos_token_id=151_643)


PRESETS = {
    "qwen3_vl_2b": qwen3_vl_2b,
    "qwen3_vl_4b": qwen3_vl_4b,
    "qwen3_vl_8b": qwen3_vl_8b,
    "qwen3_vl_32b": qwen3_vl_32b,
    "qwen3_vl_30b_a3b": qwen3_vl_30b_a3b,
}
"""Released models by name, for configs."""


def _small_vision(out_hidden: int) -> VisionConfig:
    return VisionConfig(
        depth=24,
        hidden_size=1024,
        num_heads=16,
        intermediate_size=4096,
        out_hidden_size=out_hidden,
        deepstack_visual_indexes=(5, 11, 17),
    )


def _large_vision(out_hidden: int) -> VisionConfig:
    return VisionConfig(
        depth=27,
        hidden_size=1152,
        num_heads=16,
        intermediate_size=4304,
        out_hidden_size=out_hidden,
        deepstack_visual_indexes=(8, 16, 24),
    )
