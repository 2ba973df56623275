"""The engine against plain full forwards: same tokens, same log-probs, whatever the neighbours and the blocks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from pixelis_jax import policy
from pixelis_jax.encoding import Chunk
from pixelis_jax.rollout import engine as engine_lib
from pixelis_jax.rollout.engine import CacheFullError, Engine, SlotOptions

VOCAB = 64
CAPACITY = 112


def _config() -> policy.Qwen3VLConfig:
    """Two layers, so that each has a cache of its own; narrow, because compiling is all that this file waits for."""
    tiny = policy.tiny(vocab_size=VOCAB)
    text = dataclasses.replace(tiny.text, num_hidden_layers=2, hidden_size=32, intermediate_size=64)
    vision = dataclasses.replace(
        tiny.vision, depth=1, hidden_size=16, num_heads=1, intermediate_size=32, out_hidden_size=32, deepstack_visual_indexes=(0,)
    )
    return dataclasses.replace(tiny, text=text, vision=vision)


CONFIG = _config()
STOP, TOOL, BANNED = 5, 6, (CONFIG.image_token_id, CONFIG.video_token_id)
BUCKET = 64


@pytest.fixture(scope="module")
def model() -> policy.Qwen3VL:
    model = nnx.jit(lambda: policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0)))()
    # Larger embeddings spread the logits, so that a greedy choice is no tie.
    model.decoder.embedding[...] = model.decoder.embedding[...] * 8
    return model


@pytest.fixture(scope="module")
def engine(model: policy.Qwen3VL) -> Engine:
    """One for all tests, which leave its slots free: what is compiled once serves them all."""
    return make_engine(model)


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


def make_engine(model: policy.Qwen3VL, **options: Any) -> Engine:
    # Two buckets: what these tests wait for is compilation.
    defaults = {"slots": 3, "block": 8, "prefill_rows": 2, "buckets": ((64, 0), (112, 3)), "stop": [[STOP]], "capacity": CAPACITY}
    return Engine(model, **(defaults | options), banned_ids=BANNED, tool_open_id=TOOL, patch_bucket=BUCKET)


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
    # Padding behind the episode changes nothing in it, and lets all episodes share one compilation.
    count, shape = sum(map(len, ids)), (CAPACITY, 3, BUCKET)
    inputs = [np.zeros((1, shape[0]), np.int32), np.zeros((1, shape[0], 3), np.int32), np.full((1, shape[0]), -1)]
    for padded, parts in zip(inputs, (ids, positions, index), strict=True):
        padded[0, :count] = np.concatenate(parts)
    pixels = np.zeros((1, *shape[1:], 384), np.float32)
    pixels[0, :frames] = np.concatenate(patches)
    logits = np.array(_full_forward(*nnx.split(model), *inputs, pixels)[0, :count])
    logits[:, BANNED] = -np.inf
    return special.log_softmax(logits, axis=-1)[:-1]


@functools.partial(jax.jit, static_argnums=0)
def _full_forward(graph: nnx.GraphDef, state: nnx.State, ids, positions, index, patches) -> jax.Array:  # type: ignore[no-untyped-def]
    model = nnx.merge(graph, state)
    grid = jnp.full((1, patches.shape[1], 2), 8, jnp.int32)
    visual = model.encode_vision(policy.VisionInputs(patches=patches, grid=grid))
    return model.unembed(model(ids, positions, visual=visual, visual_index=index)[0])


def play(engine: Engine, prompt: Chunk, how: SlotOptions) -> np.ndarray:
    """Ids of one turn behind a prompt; the slot is free again."""
    slot = engine.submit(prompt, how)
    ids = turn(engine, slot).ids
    engine.release(slot)
    return ids


def test_two_turns_with_images_equal_one_full_forward(model: policy.Qwen3VL, engine: Engine) -> None:
    rng = np.random.default_rng(1)
    prompt = chunk(rng, 11, frames=1)
    neighbour = engine.submit(chunk(rng, 5), options(3))
    slot = engine.submit(prompt, options(7))
    first = turn(engine, slot)
    observation = chunk(rng, 7, frames=2, start=prompt.next_position + len(first.ids))
    engine.extend([(slot, observation)])
    second = turn(engine, slot)
    engine.release(neighbour)
    engine.release(slot)
    assert len(first.ids) > 1 and len(second.ids) > 1

    log_probs = full_log_probs(model, [prompt, first.ids, observation, second.ids])
    begin = len(prompt.ids)
    expected = log_probs[begin - 1 : begin - 1 + len(first.ids)][np.arange(len(first.ids)), first.ids]
    np.testing.assert_allclose(first.log_probs, expected, atol=1e-4)
    begin += len(first.ids) + len(observation.ids)
    expected = log_probs[begin - 1 :][np.arange(len(second.ids)), second.ids]
    np.testing.assert_allclose(second.log_probs, expected, atol=1e-4)


def test_an_episode_does_not_depend_on_its_neighbours_or_on_the_block(model: policy.Qwen3VL, engine: Engine) -> None:
    prompt = chunk(np.random.default_rng(2), 9, frames=1)
    expected = play(engine, prompt, options(11))
    crowded = make_engine(model, slots=5, block=3)
    rng = np.random.default_rng(3)
    for seed in range(3):
        crowded.submit(chunk(rng, 4 + seed), options(seed))
    np.testing.assert_array_equal(play(crowded, prompt, options(11)), expected)
    assert len(np.unique(expected)) > 1, "a constant sequence would show nothing"


def test_greedy_takes_the_most_probable_token(model: policy.Qwen3VL, engine: Engine) -> None:
    prompt = chunk(np.random.default_rng(4), 9, frames=1)
    ids = play(engine, prompt, options(1, temperature=0.0))
    log_probs = full_log_probs(model, [prompt, ids])[len(prompt.ids) - 1 :]
    np.testing.assert_array_equal(ids, log_probs.argmax(axis=1))


def test_bans_hold(engine: Engine) -> None:
    prompt = chunk(np.random.default_rng(4), 9, frames=1)
    seen = np.concatenate([play(engine, prompt, options(seed, temperature=50.0, max_turn_tokens=20)) for seed in range(12)])
    assert TOOL in seen and not np.isin(seen, BANNED).any()
    asked = [play(engine, prompt, options(seed, ban_tools=True, temperature=50.0)) for seed in range(12)]
    assert TOOL not in np.concatenate(asked)


def test_limits_are_reported(engine: Engine) -> None:
    slot = engine.submit(chunk(np.random.default_rng(5), 60), options(0, max_turn_tokens=4))
    result = turn(engine, slot)
    assert result.ended == ("stop" if result.ids[-1] == STOP else "length") and len(result.ids) <= 4
    with pytest.raises(CacheFullError, match="do not fit"):
        engine.extend([(slot, chunk(np.random.default_rng(6), 60))])
    engine.release(slot)
    with pytest.raises(CacheFullError, match=f"context of {CAPACITY}"):
        engine.submit(chunk(np.random.default_rng(6), CAPACITY), options(0))
    assert engine.free_slots == engine.slots


def episode(engine: Engine, slot: int) -> engine_lib.BlockResult:
    result = turn(engine, slot)
    engine.release(slot)
    return result


@pytest.mark.parametrize("slots", [2, 3])
def test_samples_of_a_prompt_share_its_prefill_and_are_what_they_would_be_alone(model: policy.Qwen3VL, slots: int) -> None:
    """Groups of 5 on fewer slots: a later sample starts from a slot that still holds the prompt, running or free."""
    rng = np.random.default_rng(8)
    prompts = [chunk(rng, 9, frames=1), chunk(rng, 6)]
    alone = [[play(make_engine(model, slots=slots), prompt, options(seed)) for seed in range(5)] for prompt in prompts]
    engine = make_engine(model, slots=slots)
    waiting = [(prompt, seed) for prompt in (0, 1) for seed in range(5)]
    running: dict[int, tuple[int, int]] = {}
    found: dict[tuple[int, int], np.ndarray] = {}
    while waiting or running:
        while waiting and engine.free_slots:
            prompt, seed = waiting.pop(0)
            running[engine.submit(prompts[prompt], options(seed))] = prompt, seed
        for result in engine.step():
            found[running.pop(result.slot)] = result.ids
            engine.release(result.slot)
    for prompt in (0, 1):
        for seed in range(5):
            np.testing.assert_array_equal(found[prompt, seed], alone[prompt][seed])
    counters = engine.counters
    assert counters.prefill_tokens == sum(len(prompt.ids) for prompt in prompts)
    assert counters.prompt_tokens == 5 * counters.prefill_tokens == counters.prefill_tokens + counters.shared_tokens
    assert len({ids.tobytes() for ids in found.values()}) > 4, "equal samples would show nothing"


def test_a_prompt_is_copied_before_its_slot_is_taken(model: policy.Qwen3VL) -> None:
    rng = np.random.default_rng(9)
    first, second = chunk(rng, 9), chunk(rng, 6)
    expected = [play(make_engine(model), prompt, options(1)) for prompt in (first, second)]
    engine = make_engine(model, slots=2)
    begun = engine.submit(first, options(3))
    engine.begin()
    engine.finish()
    sample = engine.submit(first, options(1))  # to be copied from `begun`, which is free before that has happened
    engine.release(begun)
    assert engine.submit(second, options(1)) == begun
    results = {}
    while engine.busy:
        results |= {result.slot: result.ids for result in engine.step()}
    np.testing.assert_array_equal(results[sample], expected[0])
    np.testing.assert_array_equal(results[begun], expected[1])


def test_an_episode_ends_on_the_weights_it_began_with(model: policy.Qwen3VL) -> None:
    graph, state = nnx.split(model)
    other = nnx.merge(graph, jax.tree.map(lambda x: x * 1.5, state))
    rng = np.random.default_rng(10)
    prompt, observation = chunk(rng, 9), chunk(rng, 4, start=40)
    expected = {}
    for version, weights in ((0, model), (1, other)):
        engine = make_engine(weights)
        slot = engine.submit(prompt, options(5))
        first = turn(engine, slot).ids
        engine.extend([(slot, observation)])
        expected[version] = first, turn(engine, slot).ids
    assert not np.array_equal(expected[0][0], expected[1][0]), "equal policies would show nothing"

    engine = make_engine(model)
    old = engine.submit(prompt, options(5))
    first = turn(engine, old).ids
    assert engine.can_update
    engine.update_params(other)
    new = engine.submit(prompt, options(5))
    assert (engine.version_of(old), engine.version_of(new), engine.can_update) == (0, 1, False)
    with pytest.raises(ValueError, match="two versions"):
        engine.update_params(model)
    engine.extend([(old, observation)])
    results = {}
    while engine.busy:
        results |= {result.slot: result.ids for result in engine.step()}
    np.testing.assert_array_equal(first, expected[0][0])
    np.testing.assert_array_equal(results[old], expected[0][1])
    np.testing.assert_array_equal(results[new], expected[1][0])
    assert engine.counters.shared_tokens == 0  # what other weights made of the prompt is of no use
    engine.release(old)
    assert engine.can_update and len(engine._params) == 2
    engine.update_params(model, version=7)
    assert engine.version == 7 and set(engine._params) == {1, 7}


def test_a_stop_sequence_ends_a_turn_and_only_as_a_whole(model: policy.Qwen3VL, engine: Engine) -> None:
    prompt = chunk(np.random.default_rng(4), 9, frames=1)
    turns = {seed: play(engine, prompt, options(seed)) for seed in range(8)}
    seed, free = next((seed, ids) for seed, ids in turns.items() if len(ids) > 6 and ids[4] not in ids[:4])
    sequence = free[3:5].tolist()
    strict = make_engine(model, stop=[sequence, [STOP, STOP, STOP]])
    result = episode(strict, strict.submit(prompt, options(seed)))
    assert result.ended == "stop" and result.ids.tolist() == free[:5].tolist()
    with pytest.raises(ValueError, match="stop sequence"):
        make_engine(model, stop=[[]])


def test_tokens_of_the_episode_are_limited(engine: Engine) -> None:
    rng = np.random.default_rng(11)
    slot = engine.submit(chunk(rng, 6), options(2, max_turn_tokens=4, max_tokens=6))
    first = turn(engine, slot)
    engine.extend([(slot, chunk(rng, 3, start=30))])
    second = episode(engine, slot)
    if first.ended == "length" and second.ended == "length":
        assert (len(first.ids), len(second.ids)) == (4, 2)
    else:
        pytest.fail("choose a seed whose turns do not stop by themselves")


def test_slots_stay_within_their_budget(model: policy.Qwen3VL, engine: Engine) -> None:
    text = CONFIG.text
    keys = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert engine.cache_bytes >= 3 * (CAPACITY + 8) * keys
    with pytest.raises(engine_lib.BudgetError, match="it holds 1 slots"):
        make_engine(model, byte_budget=engine.cache_bytes // 2)


def test_nothing_compiles_after_warm_up(model: policy.Qwen3VL) -> None:
    engine = make_engine(model)
    engine.warm_up()
    assert engine.counters.prefills == 0
    programs = (engine_lib.slots_lib.prefill, engine_lib.slots_lib.start, engine_lib.slots_lib.decode)
    before = [program._cache_size() for program in programs]
    rng = np.random.default_rng(12)
    slots = [engine.submit(chunk(rng, tokens, frames=frames), options(1)) for tokens, frames in ((3, 0), (50, 1), (12, 3))]
    engine.extend([(slot, chunk(rng, 5)) for slot in [turn(engine, slots[0]).slot]])
    while engine.busy:
        engine.step()
    assert [program._cache_size() for program in programs] == before


def test_long_chunks_go_in_parts_that_never_cut_a_frame(model: policy.Qwen3VL) -> None:
    rng = np.random.default_rng(13)
    prompt = chunk(rng, 23, frames=3)  # 48 visual tokens, then text
    parts = engine_lib.cut(prompt, [(20, 1), (24, 0)], BUCKET)
    assert [(bucket, len(part.ids), len(part.grid)) for bucket, part in parts] == [
        ((20, 1), 16, 1), ((20, 1), 16, 1), ((20, 1), 20, 1), ((20, 1), 19, 0)
    ]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([part.ids for _, part in parts]), prompt.ids)
    assert all(part.visual_index.max() < BUCKET // 4 for _, part in parts)
    with pytest.raises(CacheFullError, match="fits into none"):
        engine_lib.cut(prompt, [(15, 1)], BUCKET)
    whole = play(make_engine(model), prompt, options(3))
    cut = make_engine(model, buckets=((20, 1),))
    np.testing.assert_array_equal(play(cut, prompt, options(3)), whole)
    with pytest.raises(ValueError, match="takes a frame of 16 tokens"):
        make_engine(model, buckets=((64, 0),))


def test_top_k_narrows_the_choice_and_not_the_log_prob(model: policy.Qwen3VL, engine: Engine) -> None:
    prompt = chunk(np.random.default_rng(4), 9, frames=1)
    greedy = play(engine, prompt, options(0, temperature=0.0))
    slot = engine.submit(prompt, options(0, temperature=3.0, top_k=1))
    result = episode(engine, slot)
    np.testing.assert_array_equal(result.ids, greedy)
    log_probs = full_log_probs(model, [prompt, result.ids])[len(prompt.ids) - 1 :]
    softened = special.log_softmax(log_probs / 3.0, axis=-1)[np.arange(len(result.ids)), result.ids]
    np.testing.assert_allclose(result.log_probs, softened, atol=1e-4)
