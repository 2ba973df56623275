"""Packed rows mean the same to the policy and to the loss as rows of one example each."""

import dataclasses

import chex
import jax
import micro
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from pixelis_jax import losses
from pixelis_jax.data import packing, pipeline
from pixelis_jax.policy import AuxiliaryHeads
from pixelis_jax.training import sft

PIXELS = ConfigDict({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
GRIDS = ((), ((4, 4),), ((2, 4), (4, 2)), ((2, 2),))
# One shape for all draws, so that the model is compiled twice.
PACKED = pipeline.Bucket(rows=2, tokens=64, frames=6, patches=16, calls=12, weighted=64)
ALONE = pipeline.Bucket(rows=6, tokens=30, frames=2, patches=16, calls=2, weighted=30)


@pytest.fixture(scope="module")
def model():
    return micro.make_model()


@nnx.jit
def log_probs(model, batch):
    """Log-probability of each token from those before it, ``[B, T - 1]``."""
    hidden, _ = sft.encode(model, batch, PIXELS)
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    return losses.token_log_probs(flat, model.unembedding_matrix(), batch.ids[:, 1:].ravel()).reshape(len(hidden), -1)


def draw(seed: int, lengths: list[int]) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [micro.make_example(rng, tokens=length, grids=GRIDS[rng.integers(len(GRIDS))]) for length in lengths]


def pack(examples: list[dict]) -> tuple[list[list[int]], pipeline.Batch]:
    lengths, frames = (np.array([len(one[name]) for one in examples]) for name in ("ids", "grid"))
    rows = packing.plan_rows(np.stack([lengths, frames], axis=1), (PACKED.tokens, PACKED.frames))
    bucket = dataclasses.replace(PACKED, rows=len(rows))
    return rows, packing.make_packed_batch([[examples[n] for n in row] for row in rows], bucket, micro.PATCH)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(8, 20), min_size=6, max_size=6))
def test_packed_log_probs_equal_unpacked_ones(model, seed, lengths):
    examples = draw(seed, lengths)
    rows, batch = pack(examples)
    assert len(rows) <= 2
    packed = np.asarray(log_probs(model, batch))
    alone = np.asarray(log_probs(model, pipeline.make_batch(examples, ALONE, micro.PATCH)))
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            count = lengths[number] - 1
            np.testing.assert_allclose(packed[row, start : start + count], alone[number, :count], atol=2e-5)
            start += lengths[number]


def test_without_segments_they_differ(model):
    examples = draw(0, [20, 18, 16])
    rows, batch = pack(examples)
    joined = dataclasses.replace(batch, valid=batch.valid > 0)
    difference = np.abs(np.asarray(log_probs(model, batch)) - np.asarray(log_probs(model, joined)))
    assert difference.max() > 1e-2


def config(**changes) -> ConfigDict:
    loss = {"heads_weight": 0.5, "patches_weight": 0.0, "beta": 0.1, "iou_weight": 0.5, "chunk": 32, "vocab_chunk": 1 << 30}
    return ConfigDict({"pixels": PIXELS, "loss": loss | changes})


def test_loss_and_gradients_of_packed_rows_are_those_of_single_ones(model):
    examples = draw(1, [20, 12, 18, 9, 14, 16])
    graph, params = nnx.split(model)
    heads = AuxiliaryHeads(model.config.text.hidden_size, rngs=nnx.Rngs(0))
    heads_graph, head_params = nnx.split(heads)
    loss = sft.make_loss(graph, heads_graph, config(), np.zeros(micro.VOCAB, bool))
    trees = nnx.to_pure_dict(params), nnx.to_pure_dict(head_params)

    @jax.jit
    def gradients(batch):
        return jax.value_and_grad(lambda trees: loss(*trees, batch, jax.random.key(0))[0])(trees)

    packed = gradients(pack(examples)[1])
    alone = gradients(pipeline.make_batch(examples, ALONE, micro.PATCH))
    chex.assert_trees_all_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_the_patch_head_refuses_packed_rows(model):
    graph, params = nnx.split(model)
    heads_graph, head_params = nnx.split(AuxiliaryHeads(model.config.text.hidden_size, rngs=nnx.Rngs(0)))
    loss = sft.make_loss(graph, heads_graph, config(patches_weight=1.0), np.zeros(micro.VOCAB, bool))
    trees = nnx.to_pure_dict(params), nnx.to_pure_dict(head_params)
    with pytest.raises(ValueError, match="one example a row"):
        jax.eval_shape(loss, *trees, pack(draw(2, [20, 20]))[1], jax.random.key(0))
