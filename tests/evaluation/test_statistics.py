"""Intervals against a bootstrap written out by hand, and where there is nothing to resample."""

import numpy as np
import pytest
from scipy import special

from pixelis_jax.evaluation.statistics import mean_interval, median_interval, paired_interval

SKEWED = (np.random.default_rng(5).exponential(size=60) ** 2).tolist()


def bca(values, confidence=0.95, resamples=100_000):
    """Efron 1987, for a mean; ties count half."""
    values = np.asarray(values, float)
    draws = np.random.default_rng(11).choice(values, (resamples, len(values))).mean(axis=1)
    bias = special.ndtri((draws < values.mean()).mean() + (draws == values.mean()).mean() / 2)
    left_out = (values.sum() - values) / (len(values) - 1)
    deviation = left_out.mean() - left_out
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    z = bias + special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    return np.quantile(draws, special.ndtr(bias + z / (1 - acceleration * z)))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_equals_a_bootstrap_by_hand(confidence):
    width = 2 * np.std(SKEWED) / np.sqrt(len(SKEWED))
    np.testing.assert_allclose(mean_interval(SKEWED, confidence=confidence), bca(SKEWED, confidence), atol=0.1 * width)


def test_skew_moves_both_ends_to_the_long_tail():
    """What tells BCa from the normal interval, which is symmetric."""
    low, high = mean_interval(SKEWED)
    assert high - np.mean(SKEWED) > 1.2 * (np.mean(SKEWED) - low)


def test_the_seed_alone_decides():
    assert mean_interval(SKEWED, seed=3) == mean_interval(SKEWED, seed=3) != mean_interval(SKEWED, seed=4)


def test_all_right_or_all_wrong_gives_wilson():
    # z = 1.959964, z^2 = 3.841459: with no success in 10 the upper end is z^2 / (10 + z^2) = 0.277533.
    assert mean_interval([0.0] * 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert mean_interval([1.0] * 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-6)
    assert mean_interval([1]) == pytest.approx((1 / (1 + 3.841459), 1.0), abs=1e-6)


def test_equal_values_are_their_own_interval():
    assert mean_interval([0.5] * 7) == (0.5, 0.5)
    assert mean_interval([0.25]) == (0.25, 0.25)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="no values"):
        paired_interval([], [])


def test_pairs_are_compared_item_by_item():
    """Values that differ much between items and little within: only pairing shows the gain."""
    items = np.linspace(0, 100, 40)
    noise = np.random.default_rng(2).normal(size=40)
    low, high = paired_interval(items + 1 + noise, items)
    assert 0 < low < 1 < high < 2
    assert (low, high) == pytest.approx(mean_interval((1 + noise).tolist()))


def test_equal_differences_are_their_own_interval():
    # Not Wilson's: a difference of 0 or 1 is no proportion.
    assert paired_interval([1, 0, 1], [1, 0, 1]) == (0.0, 0.0)
    assert paired_interval([1, 1, 1], [0, 0, 0]) == (1.0, 1.0)


def test_pairs_must_be_equally_many():
    with pytest.raises(ValueError, match="not 2 and 1"):
        paired_interval([1, 0], [1])


def test_median_interval_is_about_the_median_and_ignores_one_outlier():
    low, high = median_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 100.0])
    # Of 7 draws with replacement, the median is the outlier where at least 4 are: C(7,4) / 7^4 * (6/7)^3 + ... = 0.0098.
    assert 1.0 <= low < 1.3 < high <= 1.5
    assert median_interval([2.0] * 5) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
