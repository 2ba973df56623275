"""Intervals and corrections (`docs/algorithms.md`, section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 2000
PERMUTATIONS = 9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedMeanDifference:
    """How far two methods lie apart, over the items and for the seeds that were run.

    Attributes:
      difference: Mean over seeds and items of first - second.
      interval: Its BCa bootstrap interval over items. Conditional on these seeds: it says what other items could have given, not
        what other seeds could.
      p_value: `paired_p_value` of the means over seeds, over items; conditional on the seeds too.
      by_seed: The difference of each seed, `[S]`; where these disagree in sign, the interval says nothing about the methods.
      same_sign: Whether every seed alone has a difference, and all point the same way.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    by_seed: tuple[float, ...]
    same_sign: bool


def mean_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """BCa bootstrap interval of a mean (Efron 1987), over items.

    Args:
      values: One number an item, `[N]`.
      confidence: Coverage.
      seed: Of the resampling.

    Returns:
      Lower and upper end. Where all values are equal there is nothing to resample: the Wilson score interval if they are all 0 or
      all 1, else the value itself twice.

    Raises:
      ValueError: There are no values.
    """
    array = np.asarray(values, float)
    if not len(array):
        raise ValueError("no values to take the mean of")
    if np.ptp(array) == 0:
        if array[0] in (0.0, 1.0):
            low, high = stats.binomtest(int(array.sum()), len(array)).proportion_ci(confidence, method="wilson")
            return float(low), float(high)
        return float(array[0]), float(array[0])
    result = stats.bootstrap(
        (array,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean of `first - second`, paired by item; both `[N]`.

    Raises:
      ValueError: The lengths differ, or there are no values.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values must be equally many, not {len(first)} and {len(second)}")
    difference = np.asarray(first, float) - np.asarray(second, float)
    if len(difference) and np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    return mean_interval(difference.tolist(), confidence=confidence, seed=seed)


def median_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a median (Efron 1979), over items `[N]`; BCa's correction does not exist for a median.

    Raises:
      ValueError: There are no values.
    """
    array = np.asarray(values, float)
    if not len(array):
        raise ValueError("no values to take the median of")
    drawn = np.random.default_rng(seed).choice(array, (RESAMPLES, len(array)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_p_value(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of the mean of `first - second` by flipping signs (Fisher 1935, section 21), paired by item.

    Under the null hypothesis that the two are exchangeable within an item, each difference could as well have had the other sign:
    nothing is assumed about its distribution. For outcomes of 0 and 1 this is McNemar's exact test.

    Args:
      first: One number an item, `[N]`.
      second: Of the same items, `[N]`.
      seed: Of the draws. For up to 13 items that differ all patterns of signs are counted; for more, 9,999 are drawn, so that no
        p-value is below 0.0002.

    Returns:
      The p-value, above 0 and at most 1.

    Raises:
      ValueError: The lengths differ, or there are no values.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values must be equally many, not {len(first)} and {len(second)}")
    if not len(first):
        raise ValueError("no values to compare")
    difference = np.asarray(first, float) - np.asarray(second, float)
    difference = difference[difference != 0]  # an item without a difference is the same with either sign
    if len(difference) < 2:
        return 1.0  # both signs are as far from 0
    result = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=1000,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def seed_mean_difference(
    first: Float[np.ndarray, "S N"], second: Float[np.ndarray, "S N"], *, confidence: float = 0.95, seed: int = 0
) -> SeedMeanDifference:
    """Compares two methods that were run with the same seeds on the same items.

    Args:
      first: An outcome a seed and item, `[S, N]`.
      second: Of the other method, seeds and items in the same order, `[S, N]`.
      confidence: Coverage of the interval.
      seed: Of the resampling.

    Raises:
      ValueError: The shapes differ or are not `[S, N]`, there are no values, or some are not finite.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"expected outcomes by seed and item, the same for both, got shapes {first.shape} and {second.shape}")
    if not first.size:
        raise ValueError("no values to compare")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("an outcome is not finite")
    means = first.mean(axis=0).tolist(), second.mean(axis=0).tolist()
    by_seed = (first - second).mean(axis=1)
    return SeedMeanDifference(
        difference=float(by_seed.mean()),
        interval=paired_interval(*means, confidence=confidence, seed=seed),
        p_value=paired_p_value(*means, seed=seed),
        by_seed=tuple(by_seed.tolist()),
        same_sign=bool((by_seed > 0).all() or (by_seed < 0).all()),
    )


def benjamini_hochberg(p_values: Sequence[float]) -> Float[np.ndarray, "M"]:
    """Adjusts the p-values of a table's comparisons (Benjamini & Hochberg 1995).

    Calling those significant whose adjusted value is at most q keeps the expected share of false ones among them at or below q,
    where the comparisons are independent or positively dependent.

    Args:
      p_values: Of all comparisons of the table, `[M]`.

    Returns:
      Adjusted p-values in the same order, `[M]`.

    Raises:
      ValueError: A value does not lie in 0 .. 1.
    """
    return stats.false_discovery_control(np.asarray(p_values, float), method="bh")
