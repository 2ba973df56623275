"""Puts the page together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from pixelis_jax.report import curves, sources, tables, views, vote_views, votes
from pixelis_jax.trajectory import Trajectory, has_valid_call, is_chained, valid_share
from tools_host.media import MediaStore

RUN_COLOURS = ("#ff3d81", "#0091d6", "#e08a00", "#1a9d57", "#8b5cf6", "#e4572e")


def write_report(
    paths: Sequence[Path], out: Path, *, media_root: Path | None = None, max_traces: int = 200, max_votes: int = 40
) -> str:
    """Writes the page, whole or not at all.

    Args:
      paths: Work directories and traces.
      out: The HTML file; its directory is made.
      media_root: Overrides the directories that media are relative to.
      max_traces: Most trajectories shown; of more, half are kept for those of the votes shown, and the wrong ones come first.
      max_votes: Most votes shown; of more, those that tell most (`votes.telling`).

    Returns:
      One line that says what is on the page.

    Raises:
      TrajectoryError: if a source cannot be read, or holds nothing to show.
    """
    runs = [sources.read_source(path, media_root) for path in paths]
    ballots = votes.ballots(runs)
    shown = votes.telling(ballots, max_votes)
    traced = [(index, item) for index, run in enumerate(runs) for item in run.traces]
    chosen = _chosen(traced, max_traces, votes.wanted(shown))
    links = {(run, item.trajectory.id): f"t{place}" for place, (run, item) in enumerate(chosen)}
    pictures, store = views.Pictures(), MediaStore()
    section = vote_views.view_votes(runs, ballots, shown, links, pictures, store) if ballots else None
    traces = [views.view_trace(item, runs[run].name, pictures, store) for run, item in chosen]
    trajectories = [item.trajectory for _, item in traced]
    charts = curves.charts([run.metrics for run in runs])
    html = (
        _environment()
        .get_template("report.html")
        .render(
            runs=runs,
            run_colours=RUN_COLOURS,
            figures=_figures(trajectories),
            charts=charts,
            chart=curves,
            tables=[table for run in runs for name, value in run.results.items() for table in tables.tables(name, value)],
            facts=[
                table
                for run in runs
                for name, value in run.facts.items()
                for table in tables.tables(f"{run.name} · {name}", value)
            ],
            votes=section,
            side=vote_views.CELL,
            pictures=list(pictures),
            traces=traces,
            asked_by=votes.asked_by(shown, links),
            total=len(trajectories),
        )
    )
    _write(out, html)
    voted = f"{len(shown)} of {len(ballots)} votes, " if ballots else ""
    return f"{voted}{len(traces)} of {len(trajectories)} trajectories, {len(charts)} curves, {out.stat().st_size / 1e6:.1f} MB"


def _chosen(
    traced: Sequence[tuple[int, sources.Traced]], most: int, wanted: Sequence[votes.Key]
) -> Sequence[tuple[int, sources.Traced]]:
    """At most so many trajectories: at least half of the places, if so many are wanted, for those that votes name."""
    if len(traced) <= most:
        return traced
    order = sorted(traced, key=lambda item: views.verdict(item[1].trajectory) != "wrong")
    rank = {key: place for place, key in enumerate(wanted)}
    keys = [(run, item.trajectory.id) for run, item in order]
    voted = sorted((place for place, key in enumerate(keys) if key in rank), key=lambda place: rank[keys[place]])
    others = [place for place, key in enumerate(keys) if key not in rank]
    taken = voted[: max(most // 2, most - len(others))]
    taken += others[: most - len(taken)]
    return [order[place] for place in sorted(taken)]


def _figures(trajectories: Sequence[Trajectory]) -> list[tuple[str, str, str]]:
    """The numbers at the top: (name, value, what it means)."""
    if not trajectories:
        return []
    verdicts = [views.verdict(trajectory) for trajectory in trajectories]
    judged = [item == "right" for item in verdicts if item != "open"]
    answered = [trajectory for trajectory in trajectories if trajectory.answer is not None]
    figures = [("trajectories", str(len(trajectories)), f"{len(answered)} of them answered")]
    if judged:
        figures.append(("accuracy", _percent(judged), f"{sum(judged)} right of {len(judged)} judged"))
    if answered:
        figures.append(("RaPR", _percent([has_valid_call(item) for item in answered]), "answered with a valid tool call"))
        figures.append(("RaCPR", _percent([is_chained(item) for item in answered]), "answered by chaining two tools"))
    figures.append(("valid calls", f"{100 * valid_share(trajectories):.1f} %", "of all calls"))
    figures.append(("chain", f"{np.mean([len(item.steps) for item in trajectories]):.2f}", "calls a trajectory"))
    return figures


def _percent(values: Sequence[bool]) -> str:
    return f"{100 * float(np.mean(values)):.1f} %"


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("pixelis_jax.report", "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def _write(out: Path, html: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
