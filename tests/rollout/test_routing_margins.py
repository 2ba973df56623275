"""How close the closest choice of experts was, as a rollout records it, against the routers' own logits in a plain forward."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flax import nnx
from scipy import special

from pixelis_jax import policy
from pixelis_jax.encoding import Chunk
from pixelis_jax.policy import moe
from pixelis_jax.rollout.engine import BlockResult, Engine, SlotOptions

VOCAB, STOP, TOOL = 64, 5, 6


def _config(experts: int) -> policy.Qwen3VLConfig:
    tiny = policy.tiny(vocab_size=VOCAB)
    text = dataclasses.replace(
        tiny.text,
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=64,
        num_experts=experts,
        num_experts_per_tok=2 if experts else 0,
        moe_intermediate_size=16,
        initializer_range=0.3,
    )
    vision = dataclasses.replace(
        tiny.vision, depth=1, hidden_size=16, num_heads=1, intermediate_size=32, out_hidden_size=32, deepstack_visual_indexes=(0,)
    )
    return dataclasses.replace(tiny, text=text, vision=vision)


def _model(experts: int = 5, **execution: Any) -> policy.Qwen3VL:
    config = _config(experts)
    return nnx.jit(lambda: policy.Qwen3VL(config, execution=policy.Execution(**execution), rngs=nnx.Rngs(0)))()


def _engine(model: policy.Qwen3VL, **options: Any) -> Engine:
    banned = (model.config.image_token_id, model.config.video_token_id)
    return Engine(
        model, slots=3, capacity=112, block=8, buckets=((8, 0), (112, 1)), stop=[[STOP]], banned_ids=banned,
        tool_open_id=TOOL, patch_bucket=64, **options,
    )  # fmt: skip


def _chunk(rng: np.random.Generator, tokens: int, config: policy.Qwen3VLConfig, start: int = 0) -> Chunk:
    ids = rng.integers(8, VOCAB - 8, tokens).astype(np.int32)
    positions, following = policy.mrope_positions(ids, [], config, start=start)
    return Chunk(
        ids=ids,
        roles=np.zeros(tokens, np.int8),
        turns=np.full(tokens, -1, np.int16),
        media_spans=np.zeros((0, 4), np.int32),
        positions=positions,
        next_position=following,
        visual_index=np.full(tokens, -1, np.int32),
        patches=np.zeros((0, 64, 384), np.float32),
        grid=np.zeros((0, 2), np.int32),
    )


def _options(seed: int, **fields: Any) -> SlotOptions:
    return SlotOptions(key=np.asarray([0, seed], np.uint32), **({"max_turn_tokens": 12} | fields))


def _turns(engine: Engine, slots: list[int]) -> dict[int, BlockResult]:
    """Decodes until these slots have ended their turns; slot -> every turn that ended."""
    found: dict[int, BlockResult] = {}
    while not found.keys() >= set(slots):
        assert engine.busy
        found |= {result.slot: result for result in engine.step()}
    return found


def _turn(engine: Engine, slot: int) -> BlockResult:
    return _turns(engine, [slot])[slot]


def _check(model: policy.Qwen3VL, before: list[np.ndarray], result: BlockResult, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Holds a turn behind tokens against one plain forward; returns the margins that it should have.

    The margin of a token is the smallest gap, over layers and over all tokens before it, between second and third logit.
    """
    gaps: list[np.ndarray] = []
    route = moe.MixtureOfExperts.route

    def listening(self: moe.MixtureOfExperts, x: Any) -> Any:
        logits = np.sort(np.asarray(x, np.float64) @ np.asarray(self.router[...], np.float64), axis=-1)
        gaps.append(logits[0, :, -2] - logits[0, :, -3])
        return route(self, x)

    monkeypatch.setattr(moe.MixtureOfExperts, "route", listening)
    ids = np.concatenate([*before, result.ids])
    hidden, _ = model(ids[None], np.broadcast_to(np.arange(len(ids))[None, :, None], (1, len(ids), 3)))
    monkeypatch.undo()
    assert len(gaps) == model.config.text.num_hidden_layers
    told = slice(len(ids) - len(result.ids) - 1, -1)
    expected = np.minimum.accumulate(np.min(gaps, axis=0))[told]
    assert result.margins is not None
    np.testing.assert_allclose(result.margins, expected, atol=1e-5)
    logits = np.array(model.unembed(hidden)[0, told])
    logits[:, [model.config.image_token_id, model.config.video_token_id]] = -np.inf
    log_probs = special.log_softmax(logits, axis=-1)[np.arange(len(result.ids)), result.ids]
    clear = result.margins > 1e-5
    np.testing.assert_allclose(result.log_probs[clear], log_probs[clear], atol=1e-4)
    return expected


@pytest.mark.parametrize("windows", [pytest.param(True, marks=pytest.mark.slow), False])
def test_margins_are_those_of_all_tokens_before(windows, monkeypatch):
    model = _model()
    engine, rng = _engine(model, windows=windows), np.random.default_rng(1)
    prompt = _chunk(rng, 10, model.config)
    # Samples of one prompt: the second starts where the first one's prompt ended, not where its episode has come to.
    slots = [engine.submit(prompt, _options(seed)) for seed in (0, 1)]
    found = _turns(engine, slots[:1])
    slots.append(engine.submit(prompt, _options(2)))
    found |= _turns(engine, [slot for slot in slots if slot not in found])
    for slot in slots:
        _check(model, [prompt.ids], found[slot], monkeypatch)

    said = found[slots[1]].ids
    observation = _chunk(rng, 7, model.config, start=prompt.next_position + len(said))
    engine.extend([(slots[1], observation)])
    expected = _check(model, [prompt.ids, said, observation.ids], _turn(engine, slots[1]), monkeypatch)
    assert len(np.unique(np.append(expected, found[slots[1]].margins))) > 3, "a constant would show nothing"
    # A slot that is taken again has forgotten what it held.
    for slot in slots:
        engine.release(slot)
    other = _chunk(rng, 4, model.config)
    _check(model, [other.ids], _turn(engine, engine.submit(other, _options(3))), monkeypatch)


def test_scanned_layers_count():
    results = []
    for execution in ({}, {"scan_layers": True}):
        model = _model(**execution)
        engine = _engine(model, windows=False)
        prompt = _chunk(np.random.default_rng(2), 9, model.config)
        results.append(_turn(engine, engine.submit(prompt, _options(0, temperature=0.0))))
    np.testing.assert_array_equal(results[0].ids, results[1].ids)
    np.testing.assert_allclose(results[0].margins, results[1].margins, atol=1e-5)


def test_a_tie_has_no_margin_and_no_choice_an_infinite_one():
    for experts, expected in ((5, 0.0), (2, np.inf)):
        model = _model(experts)
        for layer in model.decoder.layers:
            layer.mlp.router[...] = layer.mlp.router[...][:, :1] + np.zeros(experts, np.float32)
        engine = _engine(model)
        result = _turn(engine, engine.submit(_chunk(np.random.default_rng(3), 5, model.config), _options(0)))
        np.testing.assert_array_equal(result.margins, np.full(len(result.ids), expected, np.float32))


def test_a_dense_policy_has_none():
    model = _model(0)
    engine = _engine(model)
    assert _turn(engine, engine.submit(_chunk(np.random.default_rng(4), 5, model.config), _options(0))).margins is None
