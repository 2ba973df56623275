"""Episodes with turns written by hand, so that each way to go on or to end is taken; one test has a real engine and policy."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading

import numpy as np
import pytest
from PIL import Image
from scripted_engine import ScriptedEngine

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.examples import encode_trajectory
from pixelis_jax.data.look import encoder_of
from pixelis_jax.data.supervised import show
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.rollout.agent import Agent, EpisodeLimits, Request, banned_ids, make_engine
from pixelis_jax.rollout.replay import environment_record, replay
from pixelis_jax.trajectory import ACTION_ROLES, Example, Role, Source, save_record
from pixelis_jax.trajectory.io import trajectory_from_json, trajectory_to_json
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore
from tools_host.pool import InlinePool, WorkerPool

TOOLS = ToolsConfig(tools=("zoom", "properties"), boxes_in_text=False)
ZOOM = 'Look. <tool_call>\n{"name": "zoom", "arguments": {"media": 1, "bbox_2d": [100, 200, 500, 600]}}\n</tool_call>'
NEXT = ZOOM.replace("[100, 200, 500, 600]", "[0, 0, 300, 300]")
ANSWER = "It is red. <answer>red</answer>"


@pytest.fixture(scope="module")
def encoder():
    return encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["What colour is it?", ZOOM, ANSWER]))))


@pytest.fixture(scope="module")
def inline():
    return InlinePool(TOOLS)


@pytest.fixture
def ask(tmp_path):
    """Makes a request about a picture of its own."""
    rng = np.random.default_rng(0)

    def request(name="one", question="What colour is it?", **fields):
        path = tmp_path / f"{name}.png"
        if not path.exists():
            Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8)).save(path)
        example = Example(
            id=name,
            question=question,
            media=(str(path),),
            verifier="exact",
            truth="red",
            source=Source(dataset="test"),
            family="colours",
        )
        return Request(example=example, uris=(path.name,), **fields)

    return request


def run(encoder, pool, scripts, requests, *, limits=None, on_step=None, **options):
    agent = Agent(ScriptedEngine(encoder, scripts, **options), encoder, pool, TOOLS, limits=limits, on_step=on_step)
    return list(agent.run(requests))


def comparable(episode):
    value = trajectory_to_json(episode.trajectory)
    for step in value["steps"]:
        step["elapsed_ms"] = 0
    return value


def test_a_call_is_run_and_its_crop_is_read(encoder, inline, ask):
    seen = []
    request = ask()
    (episode,) = run(encoder, inline, [[ZOOM, ANSWER]], [request], on_step=lambda *pair: seen.append(pair))
    trajectory = episode.trajectory
    assert (trajectory.answer, trajectory.stopped, trajectory.final.thought) == ("red", "answer", "It is red.")
    (step,) = trajectory.steps
    assert seen == [(request, step)] and step.raw == ZOOM and step.thought == "Look."
    assert step.call.name == "zoom" and step.observation.media == (2,)
    assert [medium.parent is None for medium in trajectory.media] == [True, False]
    assert all(medium.shown is not None for medium in trajectory.media) and trajectory.media[0].uri == "one.png"
    sampling = trajectory.sampling
    assert sampling["family"] == "colours" and sampling["truth"] == "red" and sampling["environment"] == environment_record(TOOLS)
    assert trajectory_from_json(trajectory_to_json(trajectory)).sampling == sampling


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ("Hm. <tool_call>{'name': 'zoom'}</tool_call>", "bad_json"),
        ('<tool_call>{"name": "zoom", "arguments": {}', "bad_json"),
        (ZOOM + ZOOM, "too_many_calls"),
        (ZOOM.replace("zoom", "enhance"), "unknown_tool"),
        (ZOOM.replace("zoom", "ocr"), "unknown_tool"),  # exists, but is not offered here
        (ZOOM.replace('"media": 1', '"media": 7'), "no_such_media"),
        (ZOOM.replace("[100, 200, 500, 600]", "[500, 200, 100, 600]"), "bad_box"),
    ],
)
def test_a_wrong_call_is_told_and_the_episode_goes_on(encoder, inline, ask, tmp_path, turn, code):
    (episode,) = run(encoder, inline, [[turn, ZOOM, ANSWER]], [ask()])
    trajectory = episode.trajectory
    wrong, right = trajectory.steps
    assert wrong.observation.error.code == code and wrong.raw == turn
    assert (wrong.call is None) == (code in ("bad_json", "too_many_calls"))
    # The wrong call counts as a step: the crop says that step 1 made it.
    assert right.observation.ok and trajectory.media[1].parent.step == 1 and trajectory.answer == "red"
    assert replay(trajectory, inline, TOOLS, media_root=tmp_path).identical


def test_an_answer_without_tags_is_the_whole_turn(encoder, inline, ask):
    (episode,) = run(encoder, inline, [["dark red "]], [ask()])
    assert (episode.trajectory.answer, episode.trajectory.stopped) == ("dark red", "answer")


def test_too_many_steps(encoder, inline, ask):
    (episode,) = run(encoder, inline, [[ZOOM, NEXT, ZOOM, ANSWER]], [ask()], limits=EpisodeLimits(max_steps=2))
    trajectory = episode.trajectory
    assert (trajectory.stopped, trajectory.answer, len(trajectory.steps)) == ("max_steps", None, 2)
    assert trajectory.final.raw == ZOOM


@pytest.mark.parametrize(("ended", "stopped"), [("length", "max_tokens"), ("full", "context_full")])
def test_a_turn_that_was_cut_off_is_no_answer(encoder, inline, ask, ended, stopped):
    (episode,) = run(encoder, inline, [[ZOOM, ("<answer>red</answer>", ended)]], [ask()])
    trajectory = episode.trajectory
    assert (trajectory.stopped, trajectory.answer, trajectory.final.raw) == (stopped, None, "<answer>red</answer>")
    assert len(trajectory.steps) == 1


def test_an_observation_that_does_not_fit_ends_the_episode(encoder, inline, ask):
    (plain,) = run(encoder, inline, [[ZOOM, ANSWER]], [ask()])
    turns = np.isin(plain.tokens.roles, ACTION_ROLES)
    length = int(np.flatnonzero(turns & (np.arange(len(turns)) < 200))[0])  # of the prompt
    first = length + len(encoder.tokenizer.encode(ZOOM + "<|im_end|>"))
    cut, after = run(encoder, inline, [[ZOOM, ANSWER], [ANSWER]], [ask(), ask("two")], capacity=first + 5)
    assert (cut.trajectory.stopped, cut.trajectory.final, cut.trajectory.answer) == ("context_full", None, None)
    assert len(cut.trajectory.steps) == 1 and cut.trajectory.media[1].shown is not None
    np.testing.assert_array_equal(cut.tokens.ids, plain.tokens.ids[:first])
    assert after.trajectory.answer == "red"


def test_a_prompt_that_does_not_fit_is_an_episode_too(encoder, inline, ask):
    scripts = [[ANSWER], [ANSWER]]
    long, short = run(encoder, inline, scripts, [ask(question="What? " * 100), ask("two")], capacity=150)
    assert (long.trajectory.stopped, long.trajectory.answer, long.trajectory.final) == ("context_full", None, None)
    assert set(long.tokens.roles.tolist()) == {Role.PROMPT} and short.trajectory.answer == "red"


def test_the_clock_ends_an_episode(encoder, inline, ask):
    (episode,) = run(encoder, inline, [[ZOOM, ANSWER]], [ask()], limits=EpisodeLimits(wall_clock_s=0.0))
    assert (episode.trajectory.stopped, episode.trajectory.answer, episode.trajectory.steps) == ("wall_clock", None, ())


def test_without_tools_nothing_is_offered_and_nothing_runs(encoder, inline, ask):
    engine = ScriptedEngine(encoder, [[ANSWER], [ZOOM]])
    agent = Agent(engine, encoder, inline, TOOLS)
    answered, spelled = agent.run([ask(use_tools=False), ask("two", use_tools=False)])
    assert all(options.ban_tools for options in engine.options)
    assert b"zoom" not in b"".join(encoder.tokenizer.token_bytes[token] for token in engine.prompts[0].ids)
    assert answered.trajectory.id == "one-0-0-no_tools" and answered.trajectory.answer == "red"
    # The opening token is banned, its letters are not: such a turn is an answer like any other, and no tool runs.
    assert (spelled.trajectory.answer, spelled.trajectory.steps, spelled.trajectory.stopped) == (ZOOM, (), "answer")


def test_token_records_hold_every_token_once(encoder, inline, ask, tmp_path):
    (episode,) = run(encoder, inline, [[ZOOM, ANSWER]], [ask()])
    tokens = episode.tokens
    save_record(tmp_path / "record.npz", tokens)  # checks types and shapes
    sampled = np.isin(tokens.roles, ACTION_ROLES)
    turns = [encoder.tokenizer.encode(turn + "<|im_end|>") for turn in (ZOOM, ANSWER)]
    np.testing.assert_array_equal(tokens.ids[sampled], sum(turns, []))
    expected = np.concatenate([-np.arange(1, len(turn) + 1) for turn in turns])
    np.testing.assert_array_equal(tokens.log_probs[sampled], expected)
    assert not tokens.log_probs[~sampled].any() and not tokens.forced.any()
    np.testing.assert_array_equal(tokens.policy_step, np.where(sampled, 0, -1))
    operation = tokens.ids[tokens.roles == Role.OPERATION]
    assert encoder.tokenizer.decode(operation) == "zoom"
    assert encoder.tokenizer.decode(tokens.ids[tokens.roles == Role.ANSWER]) == "red"
    pads = np.zeros(len(tokens.ids), bool)
    for start, end, _, frame in tokens.media_spans:
        pads[start:end] = True
        assert frame == 0 and tokens.ids[start - 1] == encoder.model.vision_start_token_id
        assert tokens.ids[end] == encoder.model.vision_end_token_id
    np.testing.assert_array_equal(pads, tokens.ids == encoder.model.image_token_id)
    assert tokens.media_spans[:, 2].tolist() == [1, 2]


def test_routing_margins_stand_where_a_policy_with_experts_spoke(encoder, inline, ask, tmp_path):
    (dense,) = run(encoder, inline, [[ZOOM, ANSWER]], [ask()])
    assert dense.tokens.margins is None
    (episode,) = run(encoder, inline, [[ZOOM, ANSWER]], [ask()], experts=True)
    save_record(tmp_path / "record.npz", episode.tokens)
    sampled = np.isin(episode.tokens.roles, ACTION_ROLES)
    np.testing.assert_array_equal(episode.tokens.margins[sampled], -episode.tokens.log_probs[sampled] / 2)
    assert np.isinf(episode.tokens.margins[~sampled]).all()


@pytest.mark.parametrize("script", [[ZOOM, ANSWER], ["<tool_call>[</tool_call>", ZOOM, NEXT, ANSWER], [ANSWER]])
def test_supervised_data_has_the_ids_of_the_rollout(encoder, inline, ask, tmp_path, script):
    (episode,) = run(encoder, inline, [script], [ask()])
    shown, thumbnails = show(episode.trajectory, tmp_path, encoder, MediaStore(2**24))
    assert shown == episode.trajectory
    encoded = encode_trajectory(shown, thumbnails, encoder, tools="names", schemas=TOOLS.schemas())
    np.testing.assert_array_equal(encoded["ids"], episode.tokens.ids)
    np.testing.assert_array_equal(encoded["roles"], episode.tokens.roles)


class ManualPool:
    """Calls are answered when the test says so; `started` is set as soon as a call arrives."""

    def __init__(self, pool):
        self._pool, self.calls, self.started = pool, [], threading.Event()

    def submit(self, request):
        future = concurrent.futures.Future()
        self.calls.append((future, request))
        self.started.set()
        return future

    def answer(self, index):
        future, request = self.calls[index]
        future.set_result(self._pool.submit(request).result())


def test_a_slow_tool_holds_up_its_own_episode_only(encoder, inline, ask):
    pool = ManualPool(inline)
    scripts = [[ZOOM, ANSWER], [ANSWER], [ANSWER], [ANSWER]]
    engine = ScriptedEngine(encoder, scripts, slots=2)
    requests = [ask(name) for name in ("slow", "a", "b", "c")]
    episodes = Agent(engine, encoder, pool, TOOLS).run(requests)
    assert [next(episodes).trajectory.example for _ in range(3)] == ["a", "b", "c"]
    pool.answer(0)
    assert [episode.trajectory.example for episode in episodes] == ["slow"] and engine.free_slots == 2


def test_trajectories_do_not_depend_on_when_tools_answer(encoder, inline, ask):
    scripts = [[ZOOM, NEXT, ANSWER], [NEXT, ANSWER], [ZOOM, ANSWER], [ANSWER]]
    requests = [ask(name) for name in ("a", "b", "c", "d")]
    expected = {episode.trajectory.id: episode for episode in run(encoder, inline, scripts, requests)}

    class Late(ManualPool):
        def submit(self, request):
            future = super().submit(request)
            delay = 0.15 if len(self.calls) % 2 else 0.02
            threading.Timer(delay, self.answer, [len(self.calls) - 1]).start()
            return future

    found = run(encoder, Late(inline), scripts, requests, slots=3)
    assert {episode.trajectory.id for episode in found} == set(expected)
    for episode in found:
        other = expected[episode.trajectory.id]
        assert comparable(episode) == comparable(other)
        for field in dataclasses.fields(episode.tokens):
            np.testing.assert_array_equal(getattr(episode.tokens, field.name), getattr(other.tokens, field.name))


def test_equal_calls_of_two_episodes_share_one_future(encoder, inline, ask):
    class Sharing(ManualPool):
        def submit(self, request):
            if not self.calls:
                threading.Timer(0.05, self.answer, [0]).start()
                return super().submit(request)
            return self.calls[0][0]

    scripts = [[ZOOM, ANSWER], [ZOOM, ANSWER]]
    found = run(encoder, Sharing(inline), scripts, [ask(), ask(sample=1)], slots=2)
    assert sorted(episode.trajectory.id for episode in found) == ["one-0-0", "one-0-1"]
    assert all(len(episode.trajectory.steps) == 1 for episode in found)


def test_stopping_early_leaves_free_slots(encoder, inline, ask):
    engine = ScriptedEngine(encoder, [[ZOOM, ANSWER], [ANSWER], [ANSWER]], slots=2)
    agent = Agent(engine, encoder, ManualPool(inline), TOOLS)
    episodes = agent.run([ask("slow"), ask("a")])
    assert next(episodes).trajectory.example == "a"
    episodes.close()
    assert engine.free_slots == 2
    assert [episode.trajectory.example for episode in agent.run([ask("b")])] == ["b"]


def test_a_real_policy_runs_episodes_that_replay(encoder, ask, tmp_path):
    from flax import nnx

    from pixelis_jax.policy import Qwen3VL

    model = Qwen3VL(encoder.model, rngs=nnx.Rngs(0))
    # Larger embeddings spread the logits, so that the sampler has preferences.
    model.decoder.embedding[...] = model.decoder.embedding[...] * 3
    engine = make_engine(model, encoder, slots=3, capacity=320, block=8)
    banned = np.asarray(banned_ids(encoder))
    open_id = encoder.tokenizer.id("<tool_call>")
    with WorkerPool(TOOLS, workers=1) as pool:
        agent = Agent(engine, encoder, pool, TOOLS, limits=EpisodeLimits(max_steps=2, max_turn_tokens=24))
        requests = [
            ask(name, use_tools=use, temperature=1.0, sample=sample)
            for name in ("one", "two")
            for use in (True, False)
            for sample in (0, 1)
        ]
        episodes = list(agent.run(requests))
        for episode in episodes:
            assert replay(episode.trajectory, pool, TOOLS, media_root=tmp_path).identical
    assert len(episodes) == len(requests) and len({episode.trajectory.id for episode in episodes}) == len(requests)
    for episode in episodes:
        sampled = episode.tokens.ids[episode.tokens.policy_step >= 0]
        assert len(sampled) and not np.isin(sampled, banned).any() and sampled.max() < encoder.tokenizer.size
        if not episode.request.use_tools:
            assert open_id not in sampled and not episode.trajectory.steps
