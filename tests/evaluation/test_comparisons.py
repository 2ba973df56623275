"""Comparisons of methods: p-values by hand and against other tests, seeds, corrections, and how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from pixelis_jax.evaluation.statistics import benjamini_hochberg, paired_interval, paired_p_value, seed_mean_difference


def test_adjusted_p_values_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4 / rank: 0.02, 0.02, 0.04, 0.04.
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03, 0.005]), [0.02, 0.04, 0.04, 0.02])
    # 0.5 x 3 / 2 = 0.75 is above the 0.6 of the rank after it, which it becomes.
    np.testing.assert_allclose(benjamini_hochberg([0.6, 0.5, 0.1]), [0.6, 0.6, 0.3])
    np.testing.assert_allclose(benjamini_hochberg([0.2]), [0.2])


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ValueError, match="p"):
        benjamini_hochberg([0.5, 1.5])


def test_the_share_of_false_discoveries_is_kept():
    """70 nulls and 30 effects: without the correction a third of what is found would be false, with it at most a tenth is."""
    rng = np.random.default_rng(0)
    null, plain, adjusted = np.arange(100) < 70, [], []
    for _ in range(300):
        p_values = np.where(null, rng.uniform(size=100), stats.norm.sf(rng.normal(2.5, size=100)))
        for shares, found in ((plain, p_values <= 0.1), (adjusted, benjamini_hochberg(p_values) <= 0.1)):
            shares.append((found & null).sum() / max(found.sum(), 1))
    assert np.mean(plain) > 0.18 and 0.05 < np.mean(adjusted) < 0.1


def test_p_value_by_hand():
    # Of the 8 sums of +-1 +-2 +-3, two are as far from 0 as 6.
    assert paired_p_value([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / 8)
    # Of the 32 sums of five ones, two are as far from 0 as 5; the item without a difference is none.
    assert paired_p_value([1, 1, 1, 1, 1, 0], [0] * 6) == pytest.approx(2 / 32)
    # -1 + 2 = 1: all four sums are at least as far.
    assert paired_p_value([0, 2], [1, 0]) == 1
    assert paired_p_value([1, 0, 1], [1, 0, 1]) == paired_p_value([1, 0], [0, 0]) == 1


@pytest.mark.parametrize(("better", "worse"), [(8, 2), (9, 1), (7, 6), (30, 10), (400, 330)])
def test_of_right_and_wrong_it_is_mcnemars_exact_test(better, worse):
    first, second = [1] * better + [0] * worse + [1] * 50, [0] * better + [1] * worse + [1] * 50
    expected = stats.binomtest(better, better + worse).pvalue
    # 9,999 draws from more than 13 differences: standard error sqrt(p (1 - p) / 9999).
    error = 1e-9 if better + worse <= 13 else 4 * np.sqrt(expected * (1 - expected) / 9999)
    assert paired_p_value(first, second) == pytest.approx(expected, abs=error)


def test_of_many_items_it_is_students():
    noise = np.random.default_rng(3).normal(0.12, 1, size=400)
    assert paired_p_value(noise, np.zeros(400)) == pytest.approx(stats.ttest_1samp(noise, 0).pvalue, abs=0.004)
    assert paired_p_value(noise, np.zeros(400), seed=1) == paired_p_value(noise, np.zeros(400), seed=1)
    assert paired_p_value(np.ones(630), np.zeros(630)) == pytest.approx(2 / 10_000)  # the least that 9,999 draws can say


def test_p_values_of_nothing_are_small_as_often_as_they_say():
    rng = np.random.default_rng(8)
    p_values = np.array([paired_p_value(rng.exponential(size=10), rng.exponential(size=10)) for _ in range(600)])
    # Binomial, 600 at 0.05 and 0.2: standard errors 0.009 and 0.016.
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p_values <= 0.2).mean() == pytest.approx(0.2, abs=0.05)


def test_pairs_are_checked():
    with pytest.raises(ValueError, match="not 2 and 1"):
        paired_p_value([1, 0], [1])
    with pytest.raises(ValueError, match="no values"):
        paired_p_value([], [])


def test_seed_means_by_hand():
    first = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]], float)
    second = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]], float)
    found = seed_mean_difference(first, second)
    assert found.by_seed == pytest.approx((0.5, 0.25, 0.5)) and found.difference == pytest.approx(5 / 12) and found.same_sign
    items = np.array([1 / 3, 2 / 3, 1 / 3, 1 / 3])  # mean over seeds of the differences of each item
    assert found.interval == pytest.approx(paired_interval(items.tolist(), [0] * 4))
    assert found.p_value == pytest.approx(2 / 16)  # all four point the same way


def test_one_seed_that_disagrees_or_shows_nothing_breaks_the_sign():
    first = np.array([[1, 1, 1], [1, 1, 0]], float)
    assert seed_mean_difference(first, np.zeros((2, 3))).same_sign
    assert seed_mean_difference(np.zeros((2, 3)), first).same_sign
    assert not seed_mean_difference(first, np.array([[0, 0, 0], [1, 1, 1]], float)).same_sign
    second = np.array([[0, 0, 0], [1, 0, 1]], float)
    assert not seed_mean_difference(first, second).same_sign and not seed_mean_difference(second, first).same_sign


def test_the_interval_is_over_items_and_not_over_seeds():
    """More seeds with the same outcomes are not more evidence."""
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, size=(2, 1, 50)).astype(float)
    once = seed_mean_difference(first, second)
    again = seed_mean_difference(np.repeat(first, 5, axis=0), np.repeat(second, 5, axis=0))
    assert again.interval == pytest.approx(once.interval) and again.p_value == pytest.approx(once.p_value, abs=0.02)


def test_the_interval_covers_what_these_seeds_would_give_on_all_items():
    """Per-item chances differ between items and seeds; the truth is the difference of their means over very many items."""
    rng = np.random.default_rng(6)

    def draw(items):
        skill = rng.beta(1.2, 0.8, size=items)
        chances = np.clip(skill + np.array([[[0.05], [0.1], [0.12]], [[0.0], [0.02], [-0.02]]]), 0, 1)
        return chances, (rng.uniform(size=chances.shape) < chances).astype(float)

    chances, _ = draw(1_000_000)
    truth = (chances[0] - chances[1]).mean()
    covered = []
    for _ in range(300):
        _, outcomes = draw(60)
        low, high = seed_mean_difference(outcomes[0], outcomes[1]).interval
        covered.append(low <= truth <= high)
    # Binomial, 300 at 0.95: standard error 0.013; a BCa interval of 60 items covers a little less than it says.
    assert 0.9 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ("shapes (2, 3) and (2, 2)", np.zeros((2, 3)), np.zeros((2, 2))),
        ("shapes (3,) and (3,)", np.zeros(3), np.zeros(3)),
        ("no values", np.zeros((2, 0)), np.zeros((2, 0))),
        ("not finite", np.array([[1, np.nan]]), np.zeros((1, 2))),
    ],
)
def test_outcomes_that_cannot_be_compared(words, first, second):
    with pytest.raises(ValueError) as error:
        seed_mean_difference(first, second)
    assert words in str(error.value)
