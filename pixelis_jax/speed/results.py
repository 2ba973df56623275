"""Figures of a comparison as rows for a table and for JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.speed.duel import SIDES, Comparison
from pixelis_jax.speed.work import Work

_MEBI = 1 << 20


def make_row(name: str, work: Work, comparison: Comparison, parameters: int) -> dict[str, Any]:
    """Returns every figure of a work, measured and derived, and whether the goals are met.

    Args:
      name: of the work.
      work: what was done.
      comparison: what it took.
      parameters: of the model.
    """
    low, high = comparison.interval
    medians = {side: float(np.median(comparison.seconds[side])) for side in SIDES}
    memory = comparison.memory_ratio
    light = None if work.at_most_memory is None or memory is None else memory <= work.at_most_memory
    return {
        "work": name,
        "title": work.title,
        "parameters": parameters,
        "useful_tokens": work.tokens,
        "layout": comparison.layout,
        "seconds": comparison.seconds,
        "processor_seconds": comparison.processor_seconds,
        "median_seconds": medians,
        "useful_tokens_per_second": {side: work.tokens / medians[side] for side in SIDES},
        "ratio": comparison.ratio,
        "interval": [low, high],
        "at_least": work.at_least,
        "fast": comparison.ratio >= work.at_least,
        "peak_bytes": comparison.memory,
        "memory_ratio": memory,
        "at_most_memory": work.at_most_memory,
        "light": light,
        "values": comparison.values,
        "roofline": comparison.roofline,
        "roofline_share": max(comparison.roofline.values()) / medians["ours"] if comparison.roofline else None,
        "stages": comparison.stages,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Times and memory: a line a work. Ratios above 1 are in our favour for time, below 1 for memory."""
    above = f"{'':38}{'tokens/s, not padding':^26}{'their time / ours':^34}{'peak MiB':^18}{'ours / theirs':^20}"
    head = f"{'work':38}{'ours':>13}{'theirs':>13}{'median':>10}{'interval':>13}{'goal':>9}"
    lines = [above, f"{head}  {'ours':>9}{'theirs':>9}{'':>9}{'goal':>9}"]
    for row in rows:
        rates, interval = row["useful_tokens_per_second"], "{:.2f}-{:.2f}".format(*row["interval"])
        goal = f">= {row['at_least']:g}{'' if row['fast'] else ' !'}"
        line = f"{row['title']:38}{rates['ours']:>13,.0f}{rates['theirs']:>13,.0f}{row['ratio']:>10.2f}{interval:>13}{goal:>9}  "
        if row["peak_bytes"]:
            ours, theirs = (row["peak_bytes"][side] / _MEBI for side in SIDES)
            line += f"{ours:>9,.0f}{theirs:>9,.0f}{row['memory_ratio']:>9.2f}"
        if row["light"] is not None:
            most = f"<= {row['at_most_memory']:g}{'' if row['light'] else ' !'}"
            line += f"{most:>9}"
        if row["roofline_share"] is not None:
            line += f"  {100 * row['roofline_share']:.0f} % of the roofline"
        lines.append(line)
    return "\n".join(lines)


def stage_table(rows: list[dict[str, Any]]) -> str:
    """What the parts of a step add, in seconds of wall clock, medians."""
    lines = []
    for row in (row for row in rows if row["stages"]):
        names = list(row["stages"]["ours"])
        lines += ["", row["title"], f"{'':10}" + "".join(f"{'+ ' + name:>18}" for name in names)]
        for side in SIDES:
            lines.append(f"{side:10}" + "".join(f"{seconds:>18.3f}" for seconds in added_seconds(row["stages"][side])))
    return "\n".join(lines)


def added_seconds(stages: Mapping[str, Sequence[Sequence[float]]]) -> list[float]:
    """What each part of one side's step adds to the parts before it: differences of medians of wall clock.

    Args:
      stages: part -> (wall clock, processor time) of each repetition, in seconds; each part holds those before it.
    """
    totals = [float(np.median([wall for wall, _ in times])) for times in stages.values()]
    return np.diff(totals, prepend=0.0).tolist()
