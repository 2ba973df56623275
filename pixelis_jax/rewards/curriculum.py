"""Rewards one after another: the task first, then coherence, then curiosity (algorithms.md, section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

STAGES: Sequence[Sequence[str]] = ((), ("coherence",), ("coherence", "curiosity"))
"""Shaped rewards that are paid in each stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Which stage a run is in; plain numbers, so that a checkpoint holds it as JSON.

    Attributes:
      window: iterations whose mean task reward is looked at.
      gain: by how much that mean has to exceed what it was when the stage began, to go on.
      drop: by how much it may fall under the best of the stage before, until the stage is taken back.
      patience: windows without such a gain after which the run goes on all the same.
      stage: number of the stage.
      recent: mean task rewards of the last iterations, oldest first, at most `window`.
      start: mean of the first window of the stage; None before it is full.
      best: best mean so far.
      waited: iterations in the stage.
    """

    window: int = 4
    gain: float = 0.02
    drop: float = 0.1
    patience: int = 3
    stage: int = 0
    recent: tuple[float, ...] = ()
    start: float | None = None
    best: float = 0.0
    waited: int = 0

    def paid(self, part: str) -> bool:
        """Whether a shaped reward counts in this stage."""
        return part in STAGES[self.stage]

    def update(self, task: float) -> Curriculum:
        """Returns the curriculum behind one more iteration with this mean task reward."""
        recent = (*self.recent, task)[-self.window :]
        now = dataclasses.replace(self, recent=recent, waited=self.waited + 1)
        if len(recent) < self.window:
            return now
        mean = sum(recent) / len(recent)
        if self.start is None:
            return dataclasses.replace(now, start=mean, best=max(self.best, mean))
        if self.stage > 0 and mean < self.best - self.drop:
            return self._moved(self.stage - 1, mean)
        now = dataclasses.replace(now, best=max(self.best, mean))
        waited_enough = now.waited >= self.window * (1 + self.patience)
        if self.stage + 1 < len(STAGES) and (mean >= self.start + self.gain or waited_enough):
            return now._moved(self.stage + 1, now.best)
        return now

    def _moved(self, stage: int, best: float) -> Curriculum:
        return dataclasses.replace(self, stage=stage, recent=(), start=None, best=best, waited=0)

    def to_json(self) -> dict[str, Any]:
        """What changes, for a checkpoint."""
        return {name: getattr(self, name) for name in ("stage", "start", "best", "waited")} | {"recent": list(self.recent)}

    def restored(self, data: Mapping[str, Any]) -> Curriculum:
        """The curriculum that `to_json` described."""
        return dataclasses.replace(self, **{**data, "recent": tuple(data["recent"])})
