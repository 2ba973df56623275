"""Which questions an iteration asks, in which order its episodes come, and what is sampled again."""

import dataclasses

import numpy as np
import pytest

from pixelis_jax.rollout.agent import Episode
from pixelis_jax.training.collecting import OUTAGES, Collector, is_masked, zero_spread
from pixelis_jax.trajectory import Example, Source, Step, Trajectory
from tools_host.protocol import Observation, ToolCall, ToolError

EXAMPLES = [Example(id=f"q{n}", question="?", media=(), verifier="exact", truth=n, source=Source(dataset="d")) for n in range(5)]


def episode(request, *, stopped="answer", error=None):
    observation = Observation(ok=error is None, text="", error=error and ToolError(code=error, message="", hint=""))
    step = Step(raw="", thought="", call=ToolCall(name="zoom", arguments={}), observation=observation)
    trajectory = Trajectory(
        id=request.id, example=request.example.id, question="?", media=(), steps=(step,), final=None, answer="a", stopped=stopped,
        source=request.example.source, sample=request.sample,
    )  # fmt: skip
    return Episode(request=request, trajectory=trajectory, tokens=None, thumbnails={})  # type: ignore[arg-type]


class ScriptedAgent:
    """Ends episodes in a random order."""

    def __init__(self):
        self.requests, self.updates = [], []

    def update_policy(self, model, policy):
        self.updates.append((model, policy.model, policy.step))

    def run(self, requests):
        asked = list(requests)
        self.requests.append(asked)
        for number in np.random.default_rng(len(self.requests)).permutation(len(asked)):
            yield episode(asked[number])


def collector(agent, *, alike=(), **options):
    """Episodes of the questions `alike` all earn 1; of others, the first sample alone does."""

    def judge(trajectory, example):
        task = 1.0 if example.id in alike or trajectory.sample == 0 else 0.0
        return dataclasses.replace(trajectory, scores={"task": task})

    options = {"prompts": 2, "samples": 3, "seed": 7, "policy": "run"} | options
    return Collector(agent, EXAMPLES, judge=judge, **options)


def test_groups_come_in_the_order_of_the_questions_and_samples():
    agent = ScriptedAgent()
    collected = collector(agent).collect("weights", 4, first=0)
    assert agent.updates == [("weights", "run", 4)] and (collected.asked, collected.refilled) == (2, 0)
    for group in collected.groups:
        assert [e.trajectory.sample for e in group.episodes] == [0, 1, 2]
        assert {e.trajectory.example for e in group.episodes} == {group.example.id}
    assert [group.example for group in collected.groups] == [collector(agent).example(n) for n in (0, 1)]


def test_every_question_is_asked_once_an_epoch_and_sampled_anew_in_the_next():
    asked = collector(ScriptedAgent())
    order = [asked.example(number).id for number in range(10)]
    assert sorted(order[:5]) == sorted(order[5:]) == [f"q{n}" for n in range(5)] and order[:5] != order[5:]
    assert [collector(ScriptedAgent(), seed=8).example(n).id for n in range(10)] != order
    agent = ScriptedAgent()
    both = collector(agent)
    for version in (0, 1):
        both.collect("weights", version, first=0)
    first, second = ({(r.example.id, r.sample): r.seed for r in asked} for asked in agent.requests)
    assert first.keys() == second.keys() and not set(first.values()) & set(second.values())
    again = ScriptedAgent()
    collector(again).collect("weights", 0, first=0)
    assert [r.id for r in again.requests[0]] == [r.id for r in agent.requests[0]]


def test_groups_that_teach_nothing_are_replaced_as_often_as_asked():
    order = [collector(ScriptedAgent()).example(n).id for n in range(5)]
    agent = ScriptedAgent()
    # The second question's episodes are all right, and so are those of the one that replaces it.
    alike = (order[1], order[2])
    collected = collector(agent, alike=alike, refills=2).collect("weights", 0, first=0)
    assert [group.example.id for group in collected.groups] == [order[0], order[3]]
    assert (collected.asked, collected.refilled, len(agent.requests)) == (4, 2, 3)
    once = collector(ScriptedAgent(), alike=alike, refills=1).collect("weights", 0, first=0)
    assert [group.example.id for group in once.groups] == [order[0], order[2]] and once.asked == 3
    assert zero_spread(once.groups).tolist() == [False, True]


@pytest.mark.parametrize("stopped", ["max_tokens", "context_full", "wall_clock"])
def test_what_was_cut_off_is_masked(stopped):
    request = ScriptedAgent()
    collector(request).collect("weights", 0, first=0)
    asked = request.requests[0][0]
    assert is_masked(episode(asked, stopped=stopped).trajectory)
    assert not is_masked(episode(asked).trajectory) and not is_masked(episode(asked, stopped="max_steps").trajectory)


@pytest.mark.parametrize("code", [*OUTAGES, "bad_box", "bad_json"])
def test_a_tool_that_is_out_of_order_masks_and_a_mistake_does_not(code):
    agent = ScriptedAgent()
    collector(agent).collect("weights", 0, first=0)
    assert is_masked(episode(agent.requests[0][0], error=code).trajectory) == (code in OUTAGES)
