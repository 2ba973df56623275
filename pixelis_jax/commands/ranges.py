"""Numbers and choices of a config that a run can have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelis_jax.commands.errors import UserError

Fits = Callable[[Any], bool]


def whole(least: int = 1, below: float = math.inf) -> Fits:
    """A whole number in ``[least, below)``."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def number(least: float = 0.0, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf) -> Fits:
    """A number from `least` to `most`, both in it, and between `above` and `below`, both not."""

    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and above < value < below

    return fits


def switch(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def among(known: Iterable[str]) -> tuple[str, Fits]:
    """The words for a choice, and what fits."""
    names = tuple(known)
    return f"one of {', '.join(names)}", lambda value: value in names


def check(path: Path, values: Mapping[str, Any], ranges: Sequence[tuple[str, Fits, str]]) -> None:
    """Checks fields.

    Args:
      path: of the config, for the message.
      values: by dotted name; what is None or absent is not looked at.
      ranges: in words, what fits, and the fields' names with spaces between.

    Raises:
      UserError: A value does not fit.
    """
    for words, fits, names in ranges:
        for name in names.split():
            if values.get(name) is not None and not fits(values[name]):
                raise UserError(f"{path}: {name} must be {words}, got {values[name]!r}")
