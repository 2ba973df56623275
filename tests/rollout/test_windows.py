"""What a slot decodes does not depend on the window that it decodes in: how many pages others have filled."""

import numpy as np
import pytest

from pixelis_jax.commands import models
from pixelis_jax.encoding import Chunk
from pixelis_jax.rollout.agent import make_engine
from pixelis_jax.rollout.engine import SlotOptions


@pytest.fixture(scope="module")
def loaded():
    return models.load("tiny_sft_early")


@pytest.mark.parametrize(("slots", "sizes"), [(1, (2, 4, 8, 13)), (2, (8, 13)), (4, (4, 8, 13)), (7, (2, 4, 8, 13))])
def test_every_window_gives_the_same_bits(loaded, slots, sizes):
    found = {}
    for pages in (None, *sizes):
        capacity = loaded.encoder.prompt.context
        engine = make_engine(loaded.model, loaded.encoder, slots=slots, capacity=capacity)
        if pages is None:
            assert engine._windows == sizes  # what the engine would choose from
        else:
            engine._windows = (pages,)
        rng = np.random.default_rng(1)
        for slot in range(slots):
            ids = rng.integers(300, 600, 60 + 5 * slot).astype(np.int32)
            prompt = Chunk.of_text(ids, loaded.encoder.model, patch_bucket=loaded.encoder.prompt.patch_bucket)
            engine.submit(prompt, SlotOptions(key=np.array([slot, 1], np.uint32), max_turn_tokens=40))
        results = {}
        while engine.busy:
            results |= {result.slot: result for result in engine.step()}
        found[pages] = results
    for pages in sizes:
        for slot, result in found[None].items():
            assert np.array_equal(result.ids, found[pages][slot].ids)
            assert np.array_equal(result.log_probs, found[pages][slot].log_probs), (pages, slot)
