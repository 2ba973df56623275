"""The total reward and its parts (algorithms.md, section 2)."""

import dataclasses
import math

# Parts are rounded to multiples of this, so that float64 adds them exactly in any order: whoever sums what was logged, with
# whatever routine, gets the logged total to the bit.
_GRID = 2.0**-40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the shaping rewards beside the task's, which is 1; `penalty` is subtracted, `usage` is a peer's."""

    curiosity: float = 0.05
    coherence: float = 0.10
    penalty: float = 0.10
    usage: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A trajectory's reward: what was earned, what it weighs, and the sum.

    Attributes:
      task: as earned.
      curiosity: as earned.
      coherence: as earned.
      penalty: as incurred, not negative.
      usage: as earned.
      weighted_task: `task`.
      weighted_curiosity: times its weight.
      weighted_coherence: times its weight.
      weighted_penalty: times minus its weight.
      weighted_usage: times its weight.
      total: exactly the sum of the five weighted parts.
    """

    task: float
    curiosity: float
    coherence: float
    penalty: float
    usage: float
    weighted_task: float
    weighted_curiosity: float
    weighted_coherence: float
    weighted_penalty: float
    weighted_usage: float
    total: float


def combine(task: float, curiosity: float, coherence: float, penalty: float, weights: Weights, *, usage: float = 0.0) -> Parts:
    """Computes `R = R_task + l_cur R_cur + l_coh R_coh - l_pen P`, and `+ l_use R_use` where a peer's bonus is asked for.

    Args:
      task: `R_task`, the verifier's score.
      curiosity: `R_cur`.
      coherence: `R_coh`.
      penalty: `P`.
      weights: of all but the task.
      usage: `R_use` (`usage`).

    Returns:
      The parts and the total.

    Raises:
      ValueError: a part is not finite.
    """
    raw = {"task": float(task), "curiosity": float(curiosity), "coherence": float(coherence), "penalty": float(penalty)}
    raw["usage"] = float(usage)
    for name, value in raw.items():
        if not math.isfinite(value):
            raise ValueError(f"the reward's part {name} is {value}")
    factors = {"task": 1.0, "curiosity": weights.curiosity, "coherence": weights.coherence, "penalty": -weights.penalty}
    factors["usage"] = weights.usage
    weighted = {f"weighted_{name}": round(factors[name] * value / _GRID) * _GRID for name, value in raw.items()}
    return Parts(**raw, **weighted, total=sum(weighted.values()))
