"""Calls under a grammar: a policy of random weights at temperature 1, which by itself writes no call that could be run."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jsonschema
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import special

from pixelis_jax import policy
from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.look import encoder_of
from pixelis_jax.encoding import Chunk, TextTokenizer
from pixelis_jax.rollout.agent import Agent, EpisodeLimits, Request
from pixelis_jax.rollout.call_grammar import CallGrammar, GrammarError
from pixelis_jax.rollout.engine import Engine, SlotOptions
from pixelis_jax.trajectory import Example, Source, parse_turn
from pixelis_jax.trajectory.grammar import CALL_CLOSE, CALL_OPEN, END_OF_TURN
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.pool import InlinePool
from tools_host.protocol import ToolError

TOOLS = ToolsConfig(tools=("zoom", "properties"), boxes_in_text=False)
TOOLS.load()
SCHEMA = TOOLS.call_schema()
BOX = {"media": 1, "bbox_2d": [100, 200, 500, 600]}
# What no schema can tell: it depends on the episode, or compares two numbers.
OF_THE_EPISODE = {"no_such_media", "no_such_region", "bad_box", "bad_time"}


@pytest.fixture(scope="module")
def encoder():
    return encoder_of(TextTokenizer(tiny_tokenizer.build(["What colour is it?"])))


@pytest.fixture(scope="module")
def grammar(encoder):
    return CallGrammar(encoder.tokenizer, SCHEMA)


@pytest.fixture(scope="module")
def model(encoder):
    model = nnx.jit(lambda: policy.Qwen3VL(encoder.model, rngs=nnx.Rngs(0)))()
    scale = np.full((encoder.model.text.vocab_size, 1), 2, np.float32)
    scale[encoder.tokenizer.id(CALL_OPEN)] = 6  # its logit varies more than others: sooner or later a turn opens a call
    model.decoder.embedding[...] = model.decoder.embedding[...] * scale
    return model


@pytest.fixture(scope="module")
def banned(encoder):
    """Leaves ASCII characters, phrases of calls and markup: the fewer tokens, the sooner one of them opens a call."""
    texts = encoder.tokenizer.token_bytes
    kept = [i for i, text in enumerate(texts) if b'"' in text or len(text) == 1 and (32 <= text[0] < 127 or text == b"\n")]
    kept += [encoder.tokenizer.id(token) for token in (CALL_OPEN, CALL_CLOSE, END_OF_TURN)]
    return np.setdiff1d(np.arange(encoder.model.text.vocab_size), kept)


def make_engine(model, encoder, banned, *, slots=8, grammar=True, capacity=700):
    stop, tool_open = encoder.tokenizer.id(END_OF_TURN), encoder.tokenizer.id(CALL_OPEN)
    return Engine(
        model, slots=slots, capacity=capacity, block=8, grammar=grammar, stop=[[stop]], banned_ids=banned.tolist(),
        tool_open_id=tool_open, buckets=((32, 0), (128, 1)), patch_bucket=encoder.prompt.patch_bucket,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(model, encoder, banned):
    return make_engine(model, encoder, banned)


def text_chunk(encoder, text):
    ids = np.asarray(encoder.tokenizer.encode(text), np.int32)
    return Chunk.of_text(ids, encoder.model, patch_bucket=encoder.prompt.patch_bucket)


def options(seed, grammar=None, **fields):
    return SlotOptions(key=np.asarray([0, seed], np.uint32), grammar=grammar, **({"max_turn_tokens": 500} | fields))


def turns(engine, chunk, asked):
    """A turn for each of the options, in their order; all of them are decoded together where there are slots."""
    asked, running, found = list(enumerate(asked)), {}, {}
    while asked or running:
        while asked and engine.free_slots:
            index, how = asked.pop(0)
            running[engine.submit(chunk, how)] = index
        for result in engine.step():
            found[running.pop(result.slot)] = result
            engine.release(result.slot)
    return [found[index] for index in sorted(found)]


def after_opening(encoder, ids):
    """Where the call's own tokens begin, or None."""
    where = np.flatnonzero(ids == encoder.tokenizer.id(CALL_OPEN))
    return int(where[0]) + 1 if len(where) else None


def left_by(grammar, banned, encoder, ids):
    """How many tokens the grammar leaves at each place of a call."""
    masks, counts, every = grammar.begin(), [], np.arange(encoder.tokenizer.size)
    for token in ids:
        words = masks.allowed()
        allowed = every[(words[every // 32] >> (every % 32)) & 1 > 0]
        counts.append(len(np.setdiff1d(allowed, banned)))
        masks.take(int(token))
    return np.asarray(counts)


def accepts(encoder, grammar, text):
    masks = grammar.begin()
    for token in encoder.tokenizer.encode(f"\n{text}\n{CALL_CLOSE}{END_OF_TURN}"):
        if not masks.allowed()[token // 32] >> (token % 32) & 1:
            return False
        masks.take(token)
    return True


def call(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (call("zoom", **BOX), True),
        (call("zoom", bbox_2d=[0, 0, 1000, 7], label='a "sign" \u00e9', media=12, time_s=2.5), True),  # in another order
        (call("zoom", region=3, time_s=0), True),
        (call("properties"), True),
        (call("properties", other=2, region=1), True),
        (call("zoom"), False),
        (call("zoom", media=1), False),
        (call("zoom", region=3, **BOX), False),  # two places
        (call("zoom", **BOX, until_s=3), False),  # another tool's argument
        (call("ocr", **BOX), False),  # exists, but is not offered here
        (call("zoom", media=0, bbox_2d=[1, 2, 3, 4]), False),
        (call("zoom", media=1, bbox_2d=[1, 2, 3]), False),
        (call("zoom", media=1, bbox_2d=[1, 2, 3, 1001]), False),
        (call("zoom", media=1, bbox_2d=[1, 2, 3, 4.5]), False),
        (call("zoom", media="1", bbox_2d=[1, 2, 3, 4]), False),
        (call("zoom", **BOX, label=CALL_OPEN), False),  # markup is no text
        ('{"name": "zoom", "arguments": {"region": 3, "region": 4}}', False),
        ('{"arguments": {"region": 3}, "name": "zoom"}', False),
        (call("zoom", **BOX) + " ", False),
    ],
)
def test_what_the_grammar_takes(encoder, grammar, text, expected):
    assert accepts(encoder, grammar, text) == expected
    if expected:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_number_without_bounds_cannot_become_infinite(encoder):
    field = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}
    loose = CallGrammar(encoder.tokenizer, {"anyOf": [{"properties": {"name": {"const": "f"}, "arguments": field}}]})
    assert accepts(encoder, loose, '{"name": "f", "arguments": {"x": -1.25}}')
    assert not accepts(encoder, loose, '{"name": "f", "arguments": {"x": 1e999}}')


@pytest.fixture(scope="module")
def episodes(encoder, engine, tmp_path_factory):
    """Samples of one question under the grammar, and without."""
    path = tmp_path_factory.mktemp("media") / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)).save(path)
    source = Source(dataset="test")
    example = Example(id="one", question="What?", media=(str(path),), verifier="exact", truth="red", source=source, family="f")
    agent = Agent(engine, encoder, InlinePool(TOOLS), TOOLS, limits=EpisodeLimits(max_steps=1, max_turn_tokens=300))
    asked = Request(example=example, temperature=1.0)
    return {
        constrain: list(agent.run(dataclasses.replace(asked, sample=n, constrain=constrain) for n in range(count)))
        for constrain, count in ((True, 56), (False, 24))
    }


def called(episodes, *, cut_off):
    """Turns that opened a call, `cut_off` by a limit or not."""
    for episode in episodes:
        trajectory = episode.trajectory
        raws = [step.raw for step in trajectory.steps]
        if trajectory.final is not None and (cut_off or trajectory.stopped in ("max_steps", "answer")):
            raws.append(trajectory.final.raw)
        yield from ((episode, parse_turn(raw)) for raw in raws if CALL_OPEN in raw)


@pytest.mark.slow
def test_every_call_parses_and_fits_its_schema(episodes):
    constrained = list(called(episodes[True], cut_off=False))
    assert len(constrained) >= 50 and {turn.call.name for _, turn in constrained} == set(TOOLS.tools)
    for episode, turn in constrained:
        jsonschema.validate({"name": turn.call.name, "arguments": dict(turn.call.arguments)}, SCHEMA)
        prepared = EpisodeEnvironment(episode.request.example.media, TOOLS).prepare(turn.call)
        assert not isinstance(prepared, ToolError) or prepared.code in OF_THE_EPISODE, turn.call
    assert all(episode.trajectory.sampling["constrain"] for episode in episodes[True])
    free = list(called(episodes[False], cut_off=True))
    assert len(free) >= 15 and sum(turn.call is not None for _, turn in free) <= 1
    assert not any("constrain" in episode.trajectory.sampling for episode in episodes[False])


@pytest.mark.slow
def test_forced_tokens_are_marked_and_no_others(encoder, grammar, banned, episodes):
    seen = 0
    stop = encoder.tokenizer.id(END_OF_TURN)
    for episode in episodes[True]:
        tokens = episode.tokens
        expected = np.zeros(len(tokens.ids), bool)
        sampled = tokens.policy_step >= 0
        for opened in np.flatnonzero((tokens.ids == encoder.tokenizer.id(CALL_OPEN)) & sampled):
            rest = tokens.ids[opened + 1 :]
            ends = np.flatnonzero((rest == stop) | ~sampled[opened + 1 :])
            rest = rest[: ends[0] + 1] if len(ends) else rest
            expected[opened + 1 : opened + 1 + len(rest)] = left_by(grammar, banned, encoder, rest) == 1
            if rest[-1:] == stop:
                assert tokens.forced[opened + len(rest) - 1 : opened + 1 + len(rest)].all(), "closing the call and the turn"
                seen += 1
        np.testing.assert_array_equal(tokens.forced, expected)
    assert seen >= 50
    assert not any(episode.tokens.forced.any() for episode in episodes[False])


def test_log_probs_are_those_of_a_full_forward_without_the_grammar(encoder, model, grammar, banned, engine):
    chunk = text_chunk(encoder, "What colour is it?")
    results = turns(engine, chunk, [options(seed, grammar, temperature=0.7) for seed in range(12)])
    checked = 0
    for result in results:
        if after_opening(encoder, result.ids) is None:
            continue
        ids = np.zeros((1, 640), np.int32)  # padding behind an episode changes nothing in it
        count = len(chunk.ids) + len(result.ids)
        ids[0, :count] = [*chunk.ids, *result.ids]
        positions = np.repeat(np.arange(640, dtype=np.int32)[None, :, None], 3, axis=2)
        logits = np.array(model.unembed(model(ids, positions)[0])[0, :count]) / 0.7
        logits[:, banned] = -np.inf
        expected = special.log_softmax(logits, axis=-1)[len(chunk.ids) - 1 : -1][np.arange(len(result.ids)), result.ids]
        np.testing.assert_allclose(result.log_probs, expected, atol=2e-4)
        checked += 1
        if result.forced.any():
            assert result.log_probs[result.forced].min() < -1, "what the grammar forces is improbable to a random policy"
    assert checked >= 3


@pytest.mark.slow
def test_a_slot_without_a_grammar_does_not_notice_its_neighbours(encoder, model, grammar, banned, engine):
    chunk = text_chunk(encoder, "What colour is it?")
    alone = turns(make_engine(model, encoder, banned, grammar=False), chunk, [options(seed) for seed in range(12)])
    masked = engine.counters.masked
    mixed = turns(engine, chunk, [options(seed // 2, grammar if seed % 2 else None) for seed in range(24)])
    assert engine.counters.masked > masked + 100
    for expected, found in zip(alone, mixed[::2], strict=True):
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
        assert found.ended == expected.ended and not found.forced.any()
    # Up to the token that opens a call, a slot with a grammar is one without.
    opened = [after_opening(encoder, result.ids) for result in mixed[1::2]]
    assert sum(where is not None for where in opened) >= 3
    for expected, found, where in zip(alone, mixed[1::2], opened, strict=True):
        np.testing.assert_array_equal(found.ids[:where], expected.ids[:where])
    # And inside its call it does not notice its neighbours either.
    crowd = turns(engine, chunk, [options(seed, grammar) for seed in range(12)])
    for expected, found in zip(mixed[1::2], crowd, strict=True):
        np.testing.assert_array_equal(found.ids, expected.ids)


def test_nothing_compiles_after_warm_up(encoder, model, grammar, banned):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    engine = make_engine(model, encoder, banned, slots=3)
    engine.warm_up()
    assert compiled, "the listener hears what is compiled"
    compiled.clear()
    chunk = text_chunk(encoder, "What colour is it?")
    turns(engine, chunk, [options(seed, grammar if seed % 3 else None) for seed in range(9)])
    assert engine.counters.masked_steps > 10 and not compiled


def test_a_limit_ends_a_call_like_any_turn(encoder, grammar, engine):
    chunk = text_chunk(encoder, "What colour is it?")
    full = next(
        (seed, result)
        for seed, result in enumerate(turns(engine, chunk, [options(seed, grammar) for seed in range(12)]))
        if after_opening(encoder, result.ids) is not None
    )
    seed, result = full
    most = after_opening(encoder, result.ids) + 3
    (cut,) = turns(engine, chunk, [options(seed, grammar, max_turn_tokens=most)])
    np.testing.assert_array_equal(cut.ids, result.ids[:most])
    assert cut.ended == "length" and engine.free_slots == engine.slots


def test_an_engine_made_without_takes_no_grammar(encoder, model, grammar, banned):
    plain = make_engine(model, encoder, banned, grammar=False)
    with pytest.raises(ValueError, match="grammar=True"):
        plain.submit(text_chunk(encoder, "What?"), options(0, grammar))
    assert plain.free_slots == plain.slots


def test_without_llguidance_one_line_says_what_to_install(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match=r"pip install 'pixelis-jax\[grammar\]'") as error:
        CallGrammar(encoder.tokenizer, SCHEMA)
    assert "\n" not in str(error.value)
