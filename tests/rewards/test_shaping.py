"""Curiosity, coherence and efficiency against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax import rewards
from pixelis_jax.trajectory import Source, Step, Trajectory
from tools_host.protocol import Media, Observation, ToolCall, ToolError


def _step(box: tuple[int, ...] | None, ok: bool = True) -> Step:
    call = None if box is None else ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": list(box)})
    error = None if ok else ToolError(code="bad_box", message="no")
    return Step(raw="", thought="", call=call, observation=Observation(ok=ok, text="", error=error))


def _trajectory(*steps: Step) -> Trajectory:
    return Trajectory(
        id="t",
        example="e",
        question="?",
        media=(Media(id=1, kind="image", uri="a.png", sha256="", width=1000, height=1000),),
        steps=steps,
        final=None,
        answer="x",
        stopped="answer",
        source=Source(dataset="d"),
    )


LEFT, RIGHT = (0, 0, 400, 400), (600, 600, 1000, 1000)


def test_calls_that_count() -> None:
    # Valid, a repeat of it (IoU 0.9), another place, an error there, no call at all, a repeat of what was only tried.
    steps = [_step(LEFT), _step((0, 0, 400, 360)), _step(RIGHT), _step((0, 600, 400, 1000), ok=False), _step(None, ok=False)]
    counted = rewards.counted_calls(_trajectory(*steps, _step((0, 600, 400, 1000))))
    np.testing.assert_array_equal(counted, [True, False, True, False, False, False])
    assert rewards.counted_calls(_trajectory()).shape == (0,)


def test_curiosity_by_hand() -> None:
    surprises, counted = np.array([0.1, 0.4, 0.9, np.nan]), np.array([True, True, True, False])
    # Over the mean 0.2: a half, then two at the limit of 1; each over six calls.
    shares = rewards.curiosity_rewards(surprises, counted, 0.2, most_calls=6, task=1.0)
    np.testing.assert_allclose(shares, [0.5 / 6, 1 / 6, 1 / 6, 0.0])
    for task, factor in ((0.0, 0.5), (0.01, 1.0)):
        halved = rewards.curiosity_rewards(surprises, counted, 0.2, most_calls=6, task=task)
        np.testing.assert_allclose(halved, factor * shares)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_call_that_counts_earns_no_curiosity(count: int) -> None:
    nothing = rewards.curiosity_rewards(np.ones(count), np.zeros(count, bool), 0.2, most_calls=6, task=1.0)
    assert nothing.shape == (count,) and nothing.sum() == 0


def test_without_a_mean_nothing_is_surprising() -> None:
    assert not rewards.curiosity_rewards(np.ones(2), np.ones(2, bool), 0.0, most_calls=6, task=1.0).any()


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=6), st.floats(1e-6, 1e3), st.sampled_from([0.0, 0.5, 1.0]))
def test_curiosity_is_at_most_one(calls: list[tuple[float, bool]], mean: float, task: float) -> None:
    surprises, counted = np.array([s for s, _ in calls]), np.array([c for _, c in calls], bool)
    total = rewards.curiosity_rewards(surprises, counted, mean, most_calls=6, task=task).sum()
    assert 0 <= total <= (1 if task else 0.5) + 1e-12


def _unit(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_pairs_by_hand() -> None:
    # Cosines 1, 0.5, 0, -1; mu0 = 0.45 and a width of 0.5: 1.1 and -2.9 are cut, 0.1 and -0.9 are not.
    features = _unit(0, 0, 60, 150, 330)
    pairs = rewards.pair_rewards(features, np.zeros(5, bool), 0.45)
    np.testing.assert_allclose(pairs, [1.0, 0.1, -0.9, -1.0])
    assert rewards.coherence_reward(pairs, 0.7) == pytest.approx(-0.2)
    # The first pair is a loop: its later step repeats.
    again = rewards.pair_rewards(features, np.array([False, True, False, False, False]), 0.45)
    np.testing.assert_allclose(again, [-1.0, 0.1, -0.9, -1.0])


def test_all_repeats_are_as_bad_as_can_be() -> None:
    pairs = rewards.pair_rewards(_unit(0, 0, 0), np.array([False, True, True]), 0.45)
    assert rewards.coherence_reward(pairs, 0.7) == -1


@pytest.mark.parametrize("steps", [0, 1])
def test_without_a_pair_the_running_mean_stands_in(steps: int) -> None:
    pairs = rewards.pair_rewards(_unit(*range(steps)), np.zeros(steps, bool), 0.45)
    assert pairs.shape == (0,) and rewards.coherence_reward(pairs, 0.7) == 0.7


def test_a_background_at_the_ceiling_divides_by_the_least_width() -> None:
    features = _unit(0, math.degrees(math.acos(0.962)))
    for background, expected in ((0.96, 0.2), (0.965, -0.3), (0.945, 1.0)):
        np.testing.assert_allclose(rewards.pair_rewards(features, np.zeros(2, bool), background), [expected], atol=1e-9)


def test_background_by_hand() -> None:
    # Steps at 0 and 90 degrees of one question, at 60 of another: cos 60 and cos 30; cos 90 is within the first.
    background = rewards.background_cosine(_unit(0, 90, 60), np.array([7, 7, 3]))
    assert background == pytest.approx((0.5 + math.sqrt(0.75)) / 2)
    assert rewards.background_cosine(_unit(0, 90), np.array([7, 7])) is None
    assert rewards.background_cosine(np.zeros((0, 2)), np.zeros(0, int)) is None


@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 5))
def test_background_is_the_mean_over_the_pairs(seed: int, steps: int, questions: int) -> None:
    rng = np.random.default_rng(seed)
    features, question = rng.normal(size=(steps, 4)), rng.integers(0, questions, steps)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = [features[i] @ features[j] for i, j in itertools.combinations(range(steps), 2) if question[i] != question[j]]
    background = rewards.background_cosine(features.astype(np.float32), question)
    assert background == (pytest.approx(np.mean(cosines), abs=1e-6) if cosines else None)


def test_efficiency_by_hand() -> None:
    penalty = rewards.efficiency_penalty
    assert penalty(np.zeros(0, bool), most_calls=6) == 0
    assert penalty(np.array([True]), most_calls=6) == pytest.approx(1 / 6)
    assert penalty(np.array([True, False, True, False]), most_calls=6) == pytest.approx(4 / 6 + 0.5)
    assert penalty(np.zeros(3, bool), most_calls=6) == pytest.approx(1.5)
    steps = rewards.step_penalties(np.array([True, False, True, False]), most_calls=6)
    np.testing.assert_allclose(steps, [1 / 6, 1 / 6 + 1 / 4, 1 / 6, 1 / 6 + 1 / 4])


@given(st.lists(st.booleans(), max_size=6))
def test_penalties_of_the_steps_add_up(valid: list[bool]) -> None:
    mask = np.array(valid, bool)
    total = rewards.efficiency_penalty(mask, most_calls=6)
    assert rewards.step_penalties(mask, most_calls=6).sum() == pytest.approx(total)
