"""How a divergence kept to its corridor (`docs/algorithms.md`, section 4)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

BOTTOM, TOP = 0.10, 0.20
"""The paper's corridor, in nats a token. The top is a safety limit; the bottom is a sign of life."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corridor:
    """Shares of the updates whose divergence lay inside, below and above, which sum to 1, and what it was.

    Attributes:
      updates: How many.
      inside: Share within [bottom, top].
      below: Share.
      above: Share.
      median: Divergence.
      p95: Divergence that 95 % did not exceed.
      greatest: Divergence.
    """

    updates: int
    inside: float
    below: float
    above: float
    median: float
    p95: float
    greatest: float


def in_corridor(divergences: Sequence[float], *, bottom: float = BOTTOM, top: float = TOP) -> Corridor:
    """Counts the updates of a run inside, below and above a corridor.

    Args:
      divergences: After each update, `[U]`.
      bottom: Of the corridor; itself inside.
      top: Of the corridor; itself inside.

    Raises:
      ValueError: There are none, or one is not finite.
    """
    values = np.asarray(divergences, float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected at least one divergence, all finite, got {len(values)}")
    below, above = float(np.mean(values < bottom)), float(np.mean(values > top))
    return Corridor(
        updates=len(values),
        inside=float(np.mean((values >= bottom) & (values <= top))),
        below=below,
        above=above,
        median=float(np.median(values)),
        p95=float(np.quantile(values, 0.95)),
        greatest=float(values.max()),
    )
