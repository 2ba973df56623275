"""Ends a run of reinforcement learning that collapses, before it overwrites what was good."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


class CollapseError(RuntimeError):
    """A run was ended because what it samples has fallen under a floor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """How long each number has been under its floor; plain numbers, so that a checkpoint holds it as JSON.

    Attributes:
      floors: name of a metric -> its floor.
      patience: iterations in a row under one that end the run.
      under: name -> iterations in a row that it has been under its floor.
    """

    floors: Mapping[str, float]
    patience: int
    under: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def look(self, metrics: Mapping[str, float]) -> Watch:
        """Returns the watch behind one more iteration; a number that is missing or NaN is under its floor."""

        def low(name: str, floor: float) -> bool:
            value = metrics.get(name, math.nan)
            return not value >= floor

        under = {name: self.under.get(name, 0) + 1 if low(name, floor) else 0 for name, floor in self.floors.items()}
        return dataclasses.replace(self, under=under)

    @property
    def calm(self) -> bool:
        """Whether nothing is under its floor."""
        return not any(self.under.values())

    @property
    def collapsed(self) -> str:
        """What has been under its floor for too long, in words; empty if nothing has."""
        names = [name for name, count in self.under.items() if count >= self.patience]
        return ", ".join(f"{name} under {self.floors[name]:g} for {self.under[name]} iterations" for name in names)

    def to_json(self) -> dict[str, Any]:
        """What changes, for a checkpoint."""
        return dict(self.under)

    def restored(self, under: Mapping[str, Any]) -> Watch:
        """The watch that `to_json` described."""
        return dataclasses.replace(self, under={name: int(count) for name, count in under.items()})
