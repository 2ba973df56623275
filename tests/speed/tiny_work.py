"""Works small enough for a test, by task."""

import dataclasses

from pixelis_jax.policy import Qwen3VLConfig, TextConfig, VisionConfig
from pixelis_jax.speed.work import PATCH, Work

VOCAB = 300


def make_work(task: str = "train", *, packed: bool = False) -> Work:
    """Three examples for a model of width 64; ragged where `packed`."""
    text = TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rope_theta=5e6,
        mrope_section=(6, 5, 5),
    )
    vision = VisionConfig(
        depth=2,
        hidden_size=64,
        num_heads=2,
        intermediate_size=96,
        out_hidden_size=64,
        deepstack_visual_indexes=(0,),
        num_position_embeddings=64,
        patch_size=PATCH,
    )
    ids = {"image_token_id": 299, "video_token_id": 298, "vision_start_token_id": 297, "vision_end_token_id": 296}
    model = Qwen3VLConfig(text=text, vision=vision, tie_word_embeddings=True, eos_token_id=290, **ids)
    work = Work(title="tiny", task=task, model=model, lengths=(24,) * 3, grids=(((4, 4),),) * 3, at_least=1.0)
    if packed:
        grids = (((4, 6), (2, 2)), ((4, 4),), ((2, 4),))
        work = dataclasses.replace(work, lengths=(40, 22, 16), grids=grids, weighted=0.25, packed=True, at_most_memory=0.5)
    return work
