"""What abstaining buys: the error among the answered, against how many are answered."""

from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Bool, Float


def risk_coverage(
    confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The risk-coverage curve of selective prediction (https://arxiv.org/abs/1705.08500).

    Queries of equal confidence cannot be told apart, so where only some of them fit in, the risk is that expected of a random
    choice: it depends on no order.

    Args:
      confidence: of each query's answer.
      correct: whether it is right.

    Returns:
      Coverage `k / N` and risk, the share of errors among the k most confident, for k = 1 .. N.
    """
    chex.assert_rank([confidence, correct], 1)
    chex.assert_equal_shape([confidence, correct])
    errors = ~np.asarray(correct, bool)
    _, level, sizes = np.unique(-np.asarray(confidence, np.float64), return_inverse=True, return_counts=True)
    level_errors = np.bincount(level, weights=errors, minlength=len(sizes))
    expected = np.repeat(level_errors / sizes, sizes)
    answered = np.arange(1, len(errors) + 1)
    return answered / max(len(errors), 1), np.cumsum(expected) / answered


def risks_at(
    confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], coverages: Sequence[float]
) -> Float[np.ndarray, " C"]:
    """Risks when at least some shares of the queries are answered, the most confident first.

    Args:
      confidence: of each query's answer.
      correct: whether it is right.
      coverages: the shares, each in (0, 1].

    Raises:
      ValueError: there are no queries, or a coverage is no such share.
    """
    shares = np.asarray(coverages, np.float64)
    if not ((shares > 0) & (shares <= 1)).all() or not len(correct):
        raise ValueError(f"a risk needs a coverage in (0, 1] and at least one query, got {coverages} and {len(correct)}")
    # The slack is for shares such as 0.07 * 100, which is a little more than 7.
    answered = np.maximum(np.ceil(shares * len(correct) - 1e-9).astype(int), 1)
    return risk_coverage(confidence, correct)[1][answered - 1]


def risk_at(confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], coverage: float) -> float:
    """One of `risks_at`."""
    return float(risks_at(confidence, correct, [coverage])[0])
