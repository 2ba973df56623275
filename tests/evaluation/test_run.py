"""The evaluation's book-keeping, by hand: four episodes of two families."""

import dataclasses
import math

import numpy as np
import pytest

from pixelis_jax.evaluation import run as evaluation
from pixelis_jax.evaluation.statistics import mean_interval
from pixelis_jax.rollout.agent import Episode, Request
from pixelis_jax.trajectory import Example, Source, Step, TokenRecord, Trajectory
from tools_host.protocol import Media, Observation, Parent, ToolCall, ToolError

ROOT = Media(id=1, kind="image", uri="a.png", sha256="", width=100, height=100)
CROP = Media(
    id=2, kind="image", uri=None, sha256="", width=50, height=50,
    parent=Parent(media=1, step=0, bbox_2d=(0, 0, 500, 500), time_s=None, kind="crop"),
)  # fmt: skip


def example(name: str, family: str = "a") -> Example:
    return Example(
        id=name, question="?", media=("a.png",), verifier="exact", truth="yes", source=Source(dataset="d"), family=family
    )


def call(tool: str, *, ok: bool = True, media: tuple[int, ...] = (), **arguments: object) -> Step:
    error = None if ok else ToolError(code="bad_box", message="no")
    observation = Observation(ok=ok, text="", error=error, media=media)
    return Step(raw="", thought="", call=ToolCall(name=tool, arguments=arguments), observation=observation)


def episode(name: str, answer: str | None, *steps: Step) -> Trajectory:
    return Trajectory(
        id=f"t-{name}",
        example=name,
        question="?",
        media=(ROOT, CROP),
        steps=steps,
        final=None,
        answer=answer,
        stopped="answer" if answer is not None else "max_steps",
        source=Source(dataset="d"),
    )


ZOOM = call("zoom", media=(2,), bbox_2d=[0, 0, 500, 500])
READ = Step(raw="", thought="", call=ToolCall(name="ocr", arguments={"media": 2}), observation=Observation(ok=True, text=""))
WRONG = call("zoom", ok=False, bbox_2d=[9, 9, 0, 0])
EXAMPLES = [example("chained"), example("one call", "b"), example("direct"), example("cut off", "b")]
EPISODES = {
    "chained": episode("chained", "yes", ZOOM, READ),  # right, a valid call, a chain
    "one call": episode("one call", "no", WRONG, ZOOM),  # wrong, a valid call, no chain
    "direct": episode("direct", "yes"),  # right, no call
    "cut off": episode("cut off", None, WRONG),  # no answer
}


@dataclasses.dataclass
class BackwardAgent:
    """Ends the last episode first, as an agent may."""

    asked: list[Request] = dataclasses.field(default_factory=list)

    def run(self, requests):
        self.asked = list(requests)
        for request in reversed(self.asked):
            nothing = np.zeros(0)
            tokens = TokenRecord(
                ids=nothing, roles=nothing, log_probs=nothing, forced=nothing, policy_step=nothing, media_spans=nothing
            )
            yield Episode(request=request, trajectory=EPISODES[request.example.id], tokens=tokens, thumbnails={})


@pytest.fixture
def outcomes() -> dict[str, Trajectory]:
    return evaluation.run(BackwardAgent(), EXAMPLES, use_tools=True)


def test_every_example_is_asked_once_greedily_and_kept_in_order():
    agent, ended = BackwardAgent(), []
    outcomes = evaluation.run(agent, iter(EXAMPLES), use_tools=False, on_episode=ended.append)
    assert [request.example for request in agent.asked] == EXAMPLES
    assert {(request.use_tools, request.temperature) for request in agent.asked} == {(False, 0.0)}
    assert list(outcomes) == [item.id for item in EXAMPLES]
    assert [item.example for item in ended] == [item.id for item in reversed(EXAMPLES)]
    assert all("task" in item.scores for item in ended)


def test_an_answer_is_judged_and_none_scores_zero(outcomes):
    assert [item.scores["task"] for item in outcomes.values()] == [1.0, 0.0, 1.0, 0.0]
    scored = dataclasses.replace(EPISODES["direct"], scores={"kl": 0.5})
    assert evaluation.judge(scored, EXAMPLES[2]).scores == {"kl": 0.5, "task": 1.0}


def test_summary_by_hand(outcomes):
    summary = evaluation.summarize(outcomes)
    assert summary["n"] == 4 and summary["accuracy"] == 0.5
    assert summary["interval"] == list(mean_interval([1, 0, 1, 0]))
    assert summary["rapr"] == pytest.approx(2 / 3)  # over the three that answered
    assert summary["racpr"] == pytest.approx(1 / 3)
    assert summary["valid_calls"] == pytest.approx(3 / 5)
    assert summary["mean_chain"] == pytest.approx(5 / 4)


def test_no_answer_at_all_leaves_rates_undefined():
    lone = evaluation.summarize({"cut off": evaluation.judge(EPISODES["cut off"], EXAMPLES[3])})
    assert lone["accuracy"] == 0.0 and math.isnan(lone["rapr"]) and math.isnan(lone["racpr"])


def test_families_come_in_order_and_apart(outcomes):
    families = evaluation.by_family(outcomes, EXAMPLES)
    assert list(families) == ["a", "b"]
    assert [summary["accuracy"] for summary in families.values()] == [1.0, 0.0]
    assert [summary["n"] for summary in families.values()] == [2, 2]


def _scored(*scores: float) -> dict[str, Trajectory]:
    return {str(key): dataclasses.replace(EPISODES["direct"], scores={"task": score}) for key, score in enumerate(scores)}


def test_tool_gain_and_harm_by_hand():
    # Right with tools only: questions 0 and 1; right without only: question 4; a score of 0.5 counts as right.
    gain, harm = evaluation.tool_gain_and_harm(_scored(1, 0.5, 1, 0, 0.49), _scored(0, 0, 0.9, 0, 1))
    assert (gain, harm) == pytest.approx((2 / 5, 1 / 5))
    assert gain - harm == pytest.approx(3 / 5 - 2 / 5)  # the difference of the two accuracies
    with pytest.raises(ValueError, match="same questions"):
        evaluation.tool_gain_and_harm(_scored(1, 1), _scored(1))
