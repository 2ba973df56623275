"""Both sides of `pixelis bench policy` do the same work: equal losses step by step, equal logits of a prefill."""

import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent / "speed"))  # tiny_work

import tiny_work  # noqa: E402

from pixelis_jax.policy import Qwen3VL, weights  # noqa: E402
from pixelis_jax.speed import duel, memory, ours, theirs, work  # noqa: E402

WORKS = {
    "train": tiny_work.make_work(),
    "packed": tiny_work.make_work(packed=True),
    "prefill": tiny_work.make_work("prefill"),
}


@pytest.mark.parametrize("name", WORKS)
def test_both_compute_the_same(name, tmp_path):
    one = WORKS[name]
    weights.save(Qwen3VL(one.model, rngs=nnx.Rngs(0)), tmp_path / "model")
    values = []
    for side in (ours, theirs):
        contestant = side.Contestant(one, str(tmp_path / "model"), 1)
        contestant.prepare(work.make_examples(one))
        values.append([contestant.step() for _ in range(4)])
        assert contestant.describe()["tokens"] == (one.padded_tokens if side is theirs or not one.packed else 80)
        if one.task == "train":
            for stage in contestant.stages().values():
                stage()
    np.testing.assert_allclose(*values, rtol=2e-5, atol=1e-4)
    if one.task == "train":  # the steps are steps: a learning rate that differs would show
        assert values[0][-1] < values[0][0] - 1e-3


@pytest.mark.slow
def test_a_comparison_has_every_figure():
    found = duel.compare(WORKS["packed"], repetitions=2, threads=1, stages=True)
    assert len(found.ratios) == 2 and min(found.ratios) > 0
    assert set(found.versions) == {"jax", "jaxlib", "flax", "optax", "torch", "transformers"}
    assert list(found.stages["ours"]) == ["vision", "hidden states", "loss", "gradient", "step"]
    if memory.supported():
        assert min(found.memory.values()) > 0
