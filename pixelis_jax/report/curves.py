"""Metrics as inline SVG: one small chart a scalar, one line a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 320, 160
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
MAX_POINTS = 300
"""A line is averaged down to this many points: more cannot be seen, and make the page slow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One run's line as SVG paths, smoothed and (`raw`, empty for short lines) as it is, and the last value."""

    run: int
    path: str
    raw: str
    last: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart in `WIDTH x HEIGHT` units; ticks are (position, label)."""

    name: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(runs: Sequence[Sequence[dict[str, float]]]) -> list[Chart]:
    """A chart for each scalar that has at least two finite values in some run, in order of name."""
    names = sorted({name for rows in runs for row in rows for name in row} - {"step", "time"})
    made = [_chart(name, runs) for name in names]
    return [chart for chart in made if chart is not None]


def _chart(name: str, runs: Sequence[Sequence[dict[str, float]]]) -> Chart | None:
    series = [(index, *_series(rows, name)) for index, rows in enumerate(runs)]
    series = [(index, x, y) for index, x, y in series if len(x) > 1]
    if not series:
        return None
    all_x, all_y = np.concatenate([x for _, x, _ in series]), np.concatenate([y for _, _, y in series])
    x_low, x_high = float(all_x.min()), float(all_x.max())
    y_ticks = _ticks(float(all_y.min()), float(all_y.max()))
    y_low, y_high = min(y_ticks[0], float(all_y.min())), max(y_ticks[-1], float(all_y.max()))

    def across(value: float) -> float:
        return round(LEFT + (value - x_low) / max(x_high - x_low, 1e-12) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / max(y_high - y_low, 1e-12) * (HEIGHT - TOP - BOTTOM), 1)

    def path(x: np.ndarray, y: np.ndarray) -> str:
        return "M" + " L".join(f"{across(a)},{down(b)}" for a, b in zip(x, y, strict=True))

    lines = []
    for index, x, y in series:
        thin_x, thin_y = _thinned(x, y)
        smooth = _smoothed(thin_y)
        raw = "" if smooth is thin_y else path(thin_x, thin_y)
        lines.append(Line(run=index, path=path(thin_x, smooth), raw=raw, last=f"{y[-1]:.4g}"))
    x_ticks = [(across(value), _label(value)) for value in _ticks(x_low, x_high) if x_low <= value <= x_high]
    return Chart(
        name=name,
        lines=tuple(lines),
        x_ticks=tuple(x_ticks),
        y_ticks=tuple((down(value), _label(value)) for value in y_ticks),
    )


def _series(rows: Sequence[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    array = np.asarray(points, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def _smoothed(y: np.ndarray) -> np.ndarray:
    """Centred moving average over a fiftieth of the line to each side; short lines stay as they are."""
    half = len(y) // 50
    if half == 0:
        return y
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    # Fewer neighbours on both sides near the ends, so that the line neither shifts nor stops short.
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values that cover or nearly cover the range."""
    if high - low < 1e-12 * max(1.0, abs(low)):
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 4)
    first = math.floor(low / step)
    return [index * step for index in range(first, math.ceil(high / step - 1e-9) + 1)]


def _label(value: float) -> str:
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    return f"{value / 1000:.3g}k" if abs(value) >= 10_000 else f"{value:.3g}"
