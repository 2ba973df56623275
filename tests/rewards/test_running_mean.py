"""The running mean by hand, capped, refused and through JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.rewards import RunningMean


def test_it_is_the_mean_of_all_values_and_then_follows() -> None:
    mean = RunningMean(most=3).add([1.0, 2.0])
    assert (mean.mean, mean.count) == (1.5, 2)
    mean = mean.add([6.0])
    assert (mean.mean, mean.count) == (3.0, 3)
    # From here on a value weighs a third: 3 + (9 - 3) / 3, then 5 + (2 - 5) / 3.
    assert mean.add([9.0, 2.0]) == RunningMean(mean=4.0, count=3, most=3)


def test_nothing_added_is_nothing_changed() -> None:
    assert RunningMean().add([]) == RunningMean(mean=0.0, count=0, most=4096)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.integers(0, 50))
def test_batches_make_no_difference_and_json_none_either(values: list[float], cut: int) -> None:
    mean = RunningMean().add(values)
    assert mean.mean == pytest.approx(np.mean(values), abs=1e-9)
    half = RunningMean().add(values[:cut])
    assert RunningMean.from_json(json.loads(json.dumps(half.to_json()))).add(np.array(values[cut:])) == mean


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_would_stay_for_ever_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        RunningMean().add([1.0, value])


@pytest.mark.parametrize(("count", "most"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(count: int, most: int) -> None:
    with pytest.raises(ValueError, match="count"):
        RunningMean(count=count, most=most)
