"""The engine against plain full forwards: same tokens, same log-probs, whatever the neighbours and the blocks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.encoding import Chunk
from pixelis_jax.rollout import engine as engine_lib
from pixelis_jax.rollout.engine import CacheFullError, Engine, SlotOptions

VOCAB = 64
CONFIG = policy.tiny(vocab_size=VOCAB)
STOP, TOOL, BANNED = 5, 6, (CONFIG.image_token_id, CONFIG.video_token_id)
BUCKET = 64


@pytest.fixture(scope="module")
def model() -> policy.Qwen3VL:
    model = policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0))
    # Larger embeddings spread the logits, so that a greedy choice is no tie.
    model.decoder.embedding[...] = model.decoder.embedding[...] * 2
    return model


def chunk(rng: np.random.Generator, tokens: int, frames: int = 0, start: int = 0) -> Chunk:
    """Random text, with `frames` images of 8 x 8 patches in front."""
    grids = [(1, 8, 8)] * frames
    ids = np.concatenate([np.full(16 * frames, CONFIG.image_token_id), rng.integers(8, VOCAB - 8, tokens)]).astype(np.int32)
    positions, following = policy.mrope_positions(ids, grids, CONFIG, start=start)
    return Chunk(
        ids=ids,
        roles=np.zeros(len(ids), np.int8),
        turns=np.full(len(ids), -1, np.int16),
        media_spans=np.zeros((0, 4), np.int32),
        positions=positions,
        next_position=following,
        visual_index=policy.visual_index(ids, grids, CONFIG, bucket=BUCKET),
        patches=rng.normal(size=(frames, BUCKET, 384)).astype(np.float32),
        grid=np.full((frames, 2), 8, np.int32),
    )


def make_engine(model: policy.Qwen3VL, **options: int) -> Engine:
    return Engine(
        model, **({"slots": 3, "capacity": 160, "block": 8, "prefill_rows": 2} | options),
        stop_id=STOP, banned_ids=BANNED, tool_open_id=TOOL, patch_bucket=BUCKET,
    )  # fmt: skip


def options(seed: int, **fields: float) -> SlotOptions:
    return SlotOptions(key=np.asarray([0, seed], np.uint32), **({"max_turn_tokens": 20} | fields))  # type: ignore[arg-type]


def turn(engine: Engine, slot: int) -> engine_lib.BlockResult:
    while True:
        for result in engine.step():
            if result.slot == slot:
                return result


def full_log_probs(model: policy.Qwen3VL, pieces: list[Chunk | np.ndarray]) -> np.ndarray:
    """Log-softmax under the static ban of every token given those before, by one forward over the whole episode; `[T - 1, V]`."""
    ids, positions, index, patches, position, frames = [], [], [], [], 0, 0
    for piece in pieces:
        if isinstance(piece, Chunk):
            ids.append(piece.ids)
            positions.append(piece.positions)
            index.append(np.where(piece.visual_index >= 0, piece.visual_index + frames * BUCKET // 4, -1))
            patches.append(piece.patches)
            frames += len(piece.grid)
            position = piece.next_position
        else:
            ids.append(piece)
            positions.append(np.repeat(position + np.arange(len(piece))[:, None], 3, axis=1))
            index.append(np.full(len(piece), -1))
            position += len(piece)
    inputs = (np.concatenate(ids), np.concatenate(positions), np.concatenate(index), np.concatenate(patches))
    graph, state = nnx.split(model)
    logits = _full_forward(graph, state, *(jnp.asarray(x)[None] for x in inputs))[0]
    logits = logits.at[:, list(BANNED)].set(-jnp.inf)
    return np.asarray(jax.nn.log_softmax(logits))[:-1]


@functools.partial(jax.jit, static_argnums=0)
def _full_forward(graph: nnx.GraphDef, state: nnx.State, ids, positions, index, patches) -> jax.Array:  # type: ignore[no-untyped-def]
    model = nnx.merge(graph, state)
    grid = jnp.full((1, patches.shape[1], 2), 8, jnp.int32)
    visual = model.encode_vision(policy.VisionInputs(patches=patches, grid=grid))
    return model.unembed(model(ids, positions, visual=visual, visual_index=index)[0])


def test_two_turns_with_images_equal_one_full_forward(model: policy.Qwen3VL) -> None:
    rng = np.random.default_rng(1)
    prompt = chunk(rng, 11, frames=1)
    engine = make_engine(model)
    engine.submit(chunk(rng, 5), options(3))
    slot = engine.submit(prompt, options(7))
    first = turn(engine, slot)
    observation = chunk(rng, 7, frames=2, start=prompt.next_position + len(first.ids))
    engine.extend(slot, observation)
    second = turn(engine, slot)

    log_probs = full_log_probs(model, [prompt, first.ids, observation, second.ids])
    begin = len(prompt.ids)
    expected = log_probs[begin - 1 : begin - 1 + len(first.ids)][np.arange(len(first.ids)), first.ids]
    np.testing.assert_allclose(first.log_probs, expected, atol=1e-4)
    begin += len(first.ids) + len(observation.ids)
    expected = log_probs[begin - 1 :][np.arange(len(second.ids)), second.ids]
    np.testing.assert_allclose(second.log_probs, expected, atol=1e-4)


def test_an_episode_does_not_depend_on_its_neighbours_or_on_the_block(model: policy.Qwen3VL) -> None:
    prompt = chunk(np.random.default_rng(2), 9, frames=1)
    alone = make_engine(model)
    expected = turn(alone, alone.submit(prompt, options(11)))
    crowded = make_engine(model, slots=5, block=3)
    rng = np.random.default_rng(3)
    for seed in range(3):
        crowded.submit(chunk(rng, 4 + seed), options(seed))
    result = turn(crowded, crowded.submit(prompt, options(11)))
    np.testing.assert_array_equal(result.ids, expected.ids)
    assert len(np.unique(expected.ids)) > 1, "a constant sequence would show nothing"


def test_greedy_takes_the_most_probable_token_and_bans_hold(model: policy.Qwen3VL) -> None:
    prompt = chunk(np.random.default_rng(4), 9, frames=1)
    engine = make_engine(model)
    result = turn(engine, engine.submit(prompt, options(1, temperature=0.0)))
    log_probs = full_log_probs(model, [prompt, result.ids])[len(prompt.ids) - 1 :]
    np.testing.assert_array_equal(result.ids, log_probs.argmax(axis=1))

    engine = make_engine(model)
    for seed in range(20):
        slot = engine.submit(prompt, options(seed, ban_tools=True, temperature=3.0))
        ids = turn(engine, slot).ids
        assert TOOL not in ids and not np.isin(ids, BANNED).any()
        engine.release(slot)


def test_limits_are_reported(model: policy.Qwen3VL) -> None:
    engine = make_engine(model, capacity=40)
    prompt = chunk(np.random.default_rng(5), 30)
    slot = engine.submit(prompt, options(0, max_turn_tokens=4))
    result = turn(engine, slot)
    assert result.ended == ("stop" if result.ids[-1] == STOP else "length") and len(result.ids) <= 4
    with pytest.raises(CacheFullError, match="do not fit"):
        engine.extend(slot, chunk(np.random.default_rng(6), 30))
    with pytest.raises(CacheFullError, match="context of 40"):
        engine.submit(chunk(np.random.default_rng(6), 40), options(0))
