"""Operations counted by hand, and by XLA on the model itself."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.plan.flops import Work, adapter_flops, attention_flops, frame_flops, layer_flops, step_flops

MODEL = policy.tiny(vocab_size=512)


def test_a_layer_by_hand():
    # 128 wide, 4 heads and 2 key heads of 32, MLP 384: q, k, v, o = 128 x (128 + 64 + 64 + 128), MLP = 3 x 128 x 384.
    assert layer_flops(MODEL.text) == 2 * (128 * 384 + 3 * 128 * 384)


def test_a_mixture_of_experts_by_hand():
    # Attention as before; a router over 16 experts, and 2 of them, each three products of 128 x 48.
    text = dataclasses.replace(MODEL.text, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=48)
    assert layer_flops(text) == 2 * (128 * 384 + 128 * 16 + 2 * 3 * 128 * 48)


def test_adapters_by_hand():
    lora = policy.Lora(rank=8, alpha=16.0, targets=("q_proj", "k_proj", "down_proj"))
    # In and out of q 128 + 128, of k 128 + 64, of the MLP's last product 384 + 128.
    assert adapter_flops(MODEL.text, lora) == 2 * 8 * (256 + 192 + 512)
    work = Work(rows=3, tokens=5, scored=0, decoder_passes=2, adapter_passes=3)
    layers = step_flops(MODEL, work, lora)["layers"]
    assert layers == 4 * 15 * (2 * layer_flops(MODEL.text) + 3 * adapter_flops(MODEL.text, lora))


def test_attention_by_hand():
    # 10 tokens behind 100: every one sees 100, and of its own chunk half: (100 + 5) scores of 32 products for 4 heads, then as
    # many to mix the values.
    assert attention_flops(MODEL.text, tokens=10, cached=100) == 2 * 2 * 10 * (100 + 5) * 32 * 4


def test_a_frame_by_hand():
    # 96 wide, MLP 256, two blocks, two taps; 64 patches of 8 x 8 x 3 x 2, 16 visual tokens of 4 x 96, 128 wide after the merger.
    block = 2 * 64 * (96 * 3 * 96 + 96 * 96 + 2 * 96 * 256) + 2 * 2 * 64 * 64 * 96
    merger = 2 * 16 * (384 * 384 + 384 * 128)
    assert frame_flops(MODEL.vision, patches=64) == 2 * 64 * 384 * 96 + 2 * block + 3 * merger


def test_a_backward_pass_costs_twice_a_forward_pass_and_frozen_weights_once():
    work = Work(rows=2, tokens=16, frames=1, patches=64, scored=4)
    forward = step_flops(MODEL, work)
    trained = step_flops(MODEL, dataclasses.replace(work, decoder_passes=3, vision_passes=3))
    assert trained == {part: 3 * count for part, count in forward.items()}
    frozen = step_flops(MODEL, dataclasses.replace(work, decoder_passes=2))
    assert frozen["layers"] == 2 * forward["layers"] and frozen["attention"] == 3 * forward["attention"]
    assert frozen["vision"] == forward["vision"]


def test_eight_billion_parameters_cost_six_operations_a_token():
    model = policy.qwen3_vl_8b()
    work = Work(rows=1, tokens=1, scored=1, decoder_passes=3)
    flops = step_flops(model, work)
    # 36 layers of 192.9 million and an unembedding of 622.3 million.
    assert flops["layers"] + flops["unembedding"] == pytest.approx(6 * (36 * 192.94e6 + 622.33e6), rel=1e-4)


@pytest.mark.parametrize("backward", [False, True])
def test_xla_counts_the_same(backward):
    """`cost_analysis` of the model without loops; it counts a causal score in full, and norms and activations, which are small
    where the model is wide."""
    text = dataclasses.replace(MODEL.text, vocab_size=4096, hidden_size=256, intermediate_size=1024, num_hidden_layers=3)
    vision = dataclasses.replace(
        MODEL.vision, hidden_size=192, intermediate_size=1024, out_hidden_size=256, num_position_embeddings=4
    )
    model_config = dataclasses.replace(policy.tiny(vocab_size=4096), text=text, vision=vision)
    graph, params = nnx.split(nnx.eval_shape(lambda: policy.Qwen3VL(model_config, rngs=nnx.Rngs(0))))
    rows, tokens, patches = 2, 512, 256

    def loss(params, ids, positions, pixels, grid, index):
        model = nnx.merge(graph, params)
        visual = model.encode_vision(policy.VisionInputs(patches=pixels, grid=grid))
        hidden, _ = model(ids, positions, visual=visual, visual_index=index)
        return jnp.sum(model.unembed(hidden) ** 2)

    arrays = (
        jax.ShapeDtypeStruct((rows, tokens), jnp.int32),
        jax.ShapeDtypeStruct((rows, tokens, 3), jnp.int32),
        jax.ShapeDtypeStruct((rows, 1, patches, vision.patch_dim), jnp.float32),
        jax.ShapeDtypeStruct((rows, 1, 2), jnp.int32),
        jax.ShapeDtypeStruct((rows, tokens), jnp.int32),
    )
    function = jax.grad(loss) if backward else loss
    counted = jax.jit(function).lower(params, *arrays).compile().cost_analysis()["flops"]
    passes = 3 if backward else 1
    work = Work(rows=rows, tokens=tokens, frames=1, patches=patches, scored=tokens, decoder_passes=passes, vision_passes=passes)
    flops = step_flops(model_config, work)
    flops["attention"] *= 2
    if backward:  # nothing asks for the gradient of the pixels
        flops["vision"] -= 2 * rows * patches * vision.patch_dim * vision.hidden_size
    whole = sum(flops.values())
    assert counted == pytest.approx(whole, rel=0.04)
    assert all(abs(counted - (whole - part)) > 0.04 * whole for part in flops.values())  # each part would be missed
