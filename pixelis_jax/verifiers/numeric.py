"""Answers that are numbers and times."""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"(?<![\w.]){_NUMBER}")
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)(?![\d:])")


def number(answer: str, truth: Any) -> float:
    """1 if the one number in the answer lies within the tolerance.

    Args:
      answer: Text with exactly one number; units and words around it do not matter, `1,200` is 1200.
      truth: A number, or `{"value": x, "abs": a, "rel": r}`; off by at most `max(a, r * |x|)`, 0 if left out.
    """
    value = the_number(answer)
    return 0.0 if value is None else _within(value, truth)


def time(answer: str, truth: Any) -> float:
    """1 if the one time in the answer lies within the tolerance.

    Args:
      answer: Seconds (`3.5`, `3.5 seconds`) or a clock (`1:03.5`, `0:01:03.5`).
      truth: As for `number`, in seconds; `abs` is the tolerance.
    """
    value = the_time(answer)
    return 0.0 if value is None else _within(value, truth)


def the_number(answer: str) -> float | None:
    """The one number in an answer; None if it has none or several."""
    found = _NUMBERS.findall(answer)
    return float(found[0].replace(",", "").replace("\u2212", "-")) if len(found) == 1 else None


def the_time(answer: str) -> float | None:
    """The one time in an answer, in seconds; None if it has none or several."""
    clock = _CLOCK.findall(answer)
    if not clock:
        return the_number(answer)
    if len(clock) > 1:
        return None
    hours, minutes, seconds = clock[0]
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)


def _within(value: float, truth: Any) -> float:
    fields = truth if isinstance(truth, dict) else {"value": truth}
    numbers = [fields.get("value"), fields.get("abs", 0.0), fields.get("rel", 0.0)]
    if set(fields) - {"value", "abs", "rel"} or not all(_is_number(item) for item in numbers):
        raise ValueError(f"the truth must be a number or {{'value': x, 'abs': a, 'rel': r}}, got {truth!r}")
    target, absolute, relative = numbers
    # The slack is for decimal fractions only: 0.3 within 0.1 of 0.2.
    return float(abs(value - target) <= max(absolute, relative * abs(target)) + 1e-9)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
