"""A run small enough to be killed and repeated: one layer of width 32, random examples."""

import sys

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pixelis_jax import policy

VOCAB = 64
PATCH = 4


def make_model(seed: int = 0, vocab: int = VOCAB) -> policy.Qwen3VL:
    """A dense Qwen3-VL of width 32 with one DeepStack tap."""
    text = policy.TextConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rope_theta=10_000.0,
        mrope_section=(4, 2, 2),
    )
    vision = policy.VisionConfig(
        depth=1,
        hidden_size=16,
        num_heads=2,
        intermediate_size=32,
        out_hidden_size=32,
        deepstack_visual_indexes=(0,),
        num_position_embeddings=16,
        patch_size=PATCH,
    )
    config = policy.Qwen3VLConfig(
        text=text,
        vision=vision,
        tie_word_embeddings=True,
        image_token_id=vocab - 1,
        video_token_id=vocab - 2,
        vision_start_token_id=vocab - 3,
        vision_end_token_id=vocab - 4,
        eos_token_id=vocab - 5,
    )
    return policy.Qwen3VL(config, rngs=nnx.Rngs(seed))


def make_example(rng: np.random.Generator, *, tokens: int = 20, grids: tuple[tuple[int, int], ...] = ((4, 4),)) -> dict:
    """One encoded example with random content: visual tokens first, then text with a weight on its second half."""
    grid = np.array(grids, np.int32).reshape(-1, 2)
    visual = int(grid.prod(axis=1).sum()) // 4
    thumbs = np.zeros((len(grid), 2, 4 * PATCH, 4 * PATCH, 3), np.uint8)
    for frame, (h, w) in zip(thumbs, grid, strict=True):
        frame[:, : h * PATCH, : w * PATCH] = rng.integers(0, 256, (2, h * PATCH, w * PATCH, 3))
    ids = rng.integers(0, VOCAB - 5, tokens).astype(np.int32)
    ids[:visual] = VOCAB - 1
    weights = np.zeros(tokens, np.float32)
    weights[tokens // 2 :] = rng.choice([1.0, 1.5, 2.0, 3.0], tokens - tokens // 2)
    calls = int(rng.integers(0, 3))
    box = np.sort(rng.random((calls, 2, 2)), axis=1).reshape(calls, 4).astype(np.float32)
    index = np.full(tokens, -1, np.int32)
    index[:visual] = np.arange(visual)
    return {
        "ids": ids,
        "roles": rng.integers(2, 7, tokens).astype(np.int8),
        "weights": weights,
        "positions": np.repeat(np.arange(tokens, dtype=np.int32)[:, None], 3, axis=1),
        "visual_index": index,
        "thumbs": thumbs,
        "grid": grid,
        "op_position": rng.integers(tokens // 2, tokens, calls).astype(np.int32),
        "op_id": rng.integers(0, 6, calls).astype(np.int32),
        "box": box,
        "box_valid": rng.random(calls) < 0.7,
        "point": rng.random((calls, 2)).astype(np.float32),
        "point_valid": rng.random(calls) < 0.3,
        "span": np.sort(rng.random((calls, 2)).astype(np.float32)),
        "span_valid": rng.random(calls) < 0.3,
    }


def make_sampled(
    roles: list[int], *, seed: int = 0, grids: tuple[tuple[int, int], ...] = (), banned: tuple[int, ...] = ()
) -> dict:
    """An episode of these roles as an encoded example; what was sampled weighs 1, and the heads have nothing to say."""
    example = make_example(np.random.default_rng(seed), tokens=len(roles), grids=grids)
    example |= {name: example[name][:0] for name in example if name.startswith(("op_", "box", "point", "span"))}
    example["ids"] = np.where(np.isin(example["ids"], banned), 7, example["ids"]).astype(np.int32)
    example["roles"] = np.array(roles, np.int8)
    example["weights"] = (example["roles"] > 1).astype(np.float32)
    return example


def make_examples(count: int, seed: int = 0) -> list[dict]:
    """Examples of 12 to 31 tokens with two frames of different sizes, or with one."""
    rng = np.random.default_rng(seed)
    frames = [((4, 4),), ((4, 2), (2, 4))]
    return [make_example(rng, tokens=int(rng.integers(12, 32)), grids=frames[i % 2]) for i in range(count)]


def make_config(data: object, **changes: object) -> ConfigDict:
    """A run of 120 steps over the records at `data`."""
    config = ConfigDict(
        {
            "seed": 3,
            "total_steps": 120,
            "data": str(data),
            "operations": 6,
            "buckets": {"tokens": (32,), "frames": (1, 2), "tokens_per_batch": 128, "pack": False},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "loss": {"heads_weight": 0.5, "patches_weight": 0.0, "beta": 0.1, "iou_weight": 0.5, "chunk": 16, "vocab_chunk": 512},
            "trainable": "all",
            "pixels": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
            "optimizer": {
                "learning_rate": 1e-2, "warmup_steps": 2, "final_ratio": 0.1, "b1": 0.9, "b2": 0.98, "eps": 1e-8,
                "weight_decay": 0.05, "clip_norm": 1.0,
            },
            "log_every": 20,
            "checkpoint_every_steps": 50,
            "checkpoint_every_minutes": 60.0,
            "keep_checkpoints": 2,
            "max_minutes": None,
        }
    )  # fmt: skip
    config.unlock()
    config.update(changes)
    return config


if __name__ == "__main__":
    from pixelis_jax.training import sft

    sft.train(make_config(sys.argv[1]), sys.argv[2], make_model())
