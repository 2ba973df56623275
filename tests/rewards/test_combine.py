"""The total reward: by hand, exact whoever adds it, and where it was earned."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax import rewards

EXACT = rewards.Weights(curiosity=0.5, coherence=0.25, penalty=0.125)  # in powers of two, so that == can be asked


def test_by_hand() -> None:
    parts = rewards.combine(1.0, 0.5, -1.0, 2.0, EXACT)
    assert dataclasses.asdict(parts) == {
        "task": 1.0,
        "curiosity": 0.5,
        "coherence": -1.0,
        "penalty": 2.0,
        "usage": 0.0,
        "weighted_task": 1.0,
        "weighted_curiosity": 0.25,
        "weighted_coherence": -0.25,
        "weighted_penalty": -0.25,
        "weighted_usage": 0.0,
        "total": 0.75,
    }
    assert rewards.combine(1.0, 0.5, -0.2, 1.5, rewards.Weights()).total == pytest.approx(1.0 + 0.025 - 0.02 - 0.15)


def test_equal_parts_make_equal_totals_and_zero_has_no_sign() -> None:
    parts = rewards.combine(0.0, 0.0, 0.0, 0.0, EXACT)
    assert parts.total == 0 and math.copysign(1, parts.weighted_penalty) == 1


@pytest.mark.parametrize("place", range(4))
def test_a_part_that_is_no_number_is_refused_by_name(place: int) -> None:
    values = [1.0] * 4
    values[place] = math.nan
    with pytest.raises(ValueError, match=("task", "curiosity", "coherence", "penalty")[place]):
        rewards.combine(*values, rewards.Weights())


UNIT = st.floats(0, 1)


@given(UNIT, UNIT, st.floats(-1, 1), st.floats(0, 2), st.tuples(UNIT, UNIT, UNIT))
def test_logged_parts_add_up_to_the_logged_total_to_the_bit(task, curiosity, coherence, penalty, weights) -> None:
    weights = rewards.Weights(**dict(zip(("curiosity", "coherence", "penalty"), weights, strict=True)))
    logged = json.loads(json.dumps(dataclasses.asdict(rewards.combine(task, curiosity, coherence, penalty, weights))))
    weighted = [value for name, value in logged.items() if name.startswith("weighted_")]
    for order in itertools.permutations(weighted):
        assert sum(order) == logged["total"]
    assert np.sum(weighted) == math.fsum(weighted) == logged["total"]
    exact = task + weights.curiosity * curiosity + weights.coherence * coherence - weights.penalty * penalty
    assert logged["total"] == pytest.approx(exact, abs=1e-11)


def test_without_the_grid_order_would_matter() -> None:
    # Why the parts are rounded at all.
    plain = [0.3, 0.05 * 0.7, 0.1 * 0.9, -0.1 * 1.1]
    assert len({((a + b) + c) + d for a, b, c, d in itertools.permutations(plain)}) > 1


def test_rewards_of_the_steps_by_hand() -> None:
    curiosity, pairs, penalties = np.array([0.5, 0.0, 0.25]), np.array([1.0, -1.0]), np.array([0.5, 1.0, 0.5])
    steps = rewards.step_rewards(curiosity, pairs, penalties, EXACT)
    np.testing.assert_array_equal(steps, [0.25 - 0.0625, 0.125 - 0.125, 0.125 - 0.125 - 0.0625])
    np.testing.assert_array_equal(rewards.step_rewards(curiosity[:1], pairs[:0], penalties[:1], EXACT), [0.1875])
    assert rewards.step_rewards(np.zeros(0), np.zeros(0), np.zeros(0), EXACT).shape == (0,)
    with pytest.raises(AssertionError):
        rewards.step_rewards(curiosity, pairs[:1], penalties, EXACT)


def test_returns_by_hand() -> None:
    np.testing.assert_array_equal(rewards.turn_returns(np.array([1.0, -2.0, 4.0]), 8.0), [11.0, 10.0, 12.0, 8.0])
    np.testing.assert_array_equal(rewards.turn_returns(np.zeros(0), 1.0), [1.0])


@given(st.lists(st.tuples(UNIT, st.floats(-1, 1), st.booleans()), max_size=6), UNIT, UNIT)
def test_the_first_return_is_the_whole_reward(steps: list[tuple[float, float, bool]], task: float, mean: float) -> None:
    weights = rewards.Weights()
    curiosity = np.array([c for c, _, _ in steps]) / 6
    pairs, valid = np.array([r for _, r, _ in steps[1:]]), np.array([v for _, _, v in steps], bool)
    coherence = rewards.coherence_reward(pairs, mean)
    total = rewards.combine(task, curiosity.sum(), coherence, rewards.efficiency_penalty(valid, most_calls=6), weights).total
    shaped = rewards.step_rewards(curiosity, pairs, rewards.step_penalties(valid, most_calls=6), weights)
    terminal = task + (0.0 if len(pairs) else weights.coherence * mean)
    returns = rewards.turn_returns(shaped, terminal)
    assert returns.shape == (len(steps) + 1,) and returns[0] == pytest.approx(total, abs=1e-9) and returns[-1] == terminal
