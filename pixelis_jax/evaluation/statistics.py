"""Intervals and corrections (`docs/algorithms.md`, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000


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
