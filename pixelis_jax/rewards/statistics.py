"""A mean that goes along with a run."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningMean:
    """Mean of the values so far; beyond `most` of them, older ones fade, so that the mean follows a policy that changes.

    The order of the values counts, if little: callers add them in the order of the prompts, never in that in which episodes
    happened to end.

    Attributes:
      mean: of the values; 0 before the first.
      count: number of values that the mean stands for, at most `most`.
      most: the count beyond which a new value weighs `1 / most`.
    """

    mean: float = 0.0
    count: int = 0
    most: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.most or self.most < 1:
            raise ValueError(f"a running mean needs 0 <= count <= most and most >= 1, not count {self.count} of {self.most}")

    def add(self, values: Iterable[float]) -> "RunningMean":
        """The mean after more values, in their order.

        Raises:
          ValueError: a value is not finite; it would stay in the mean for ever.
        """
        mean, count = self.mean, self.count
        for value in map(float, values):
            if not math.isfinite(value):
                raise ValueError(f"a running mean takes finite values, not {value}")
            count = min(count + 1, self.most)
            mean += (value - mean) / count
        return dataclasses.replace(self, mean=mean, count=count)

    def to_json(self) -> dict[str, Any]:
        """The state as a dict that JSON gives back to the bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunningMean":
        """The state that `to_json` described."""
        return cls(mean=float(data["mean"]), count=int(data["count"]), most=int(data["most"]))
