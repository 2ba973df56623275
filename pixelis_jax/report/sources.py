"""Finds what a report can show: trajectories, votes, metrics and results of work directories, or single traces."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.trajectory import Trajectory, TrajectoryError, read_lines, read_trajectories
from pixelis_jax.trajectory.types import SCHEMA

if TYPE_CHECKING:
    from pixelis_jax.voting import VoteRecord

VOTES = "votes.jsonl"

_SHARD = re.compile(r"^(.*?)-(\d+)-(\d+)\.jsonl$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """A trajectory and the directory that its media are relative to."""

    trajectory: Trajectory
    media_root: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What one source holds.

    Attributes:
      name: Of the directory or file.
      traces: Trajectories.
      votes: Those of `votes.jsonl`, in order of arrival.
      metrics: Rows of the metrics shards, by step; numbers only.
      results: Contents of result files by name.
      facts: Configuration and environment, flat, for the page's foot.
    """

    name: str
    traces: tuple[Traced, ...]
    votes: tuple[VoteRecord, ...]
    metrics: tuple[dict[str, float], ...]
    results: dict[str, Any]
    facts: dict[str, Any]


def read_source(path: Path, media_root: Path | None = None) -> Run:
    """Reads a work directory or a trace.

    Args:
      path: A directory, or a `.jsonl` file of trajectories.
      media_root: Overrides the directory that media are relative to.

    Raises:
      TrajectoryError: if it cannot be read, or holds nothing to show.
    """
    if not path.exists():
        raise TrajectoryError(f"{path}: no such file or directory")
    if not path.is_dir():
        traced = tuple(_read_traces([path], media_root))
        if not traced:
            raise TrajectoryError(f"{path}: holds no trajectory")
        return Run(name=path.name, traces=traced, votes=(), metrics=(), results={}, facts={})
    shards = sorted([*path.glob("*.jsonl"), *path.glob("trajectories/*.jsonl")], key=_shard_order)
    traces = [shard for shard in shards if not shard.name.startswith("metrics-") and _is_trace(shard)]
    run = Run(
        name=path.resolve().name,
        traces=tuple(_read_traces(traces, media_root)),
        votes=tuple(_read_votes(path / VOTES)) if (path / VOTES).is_file() else (),
        metrics=tuple(_read_metrics([shard for shard in shards if shard.name.startswith("metrics-")])),
        results={file.stem: _read_json(file) for file in sorted([*path.glob("results*.json"), *path.glob("results/*.json")])},
        facts={file.stem: _read_json(file) for file in (path / "config.json", path / "environment.json") if file.is_file()},
    )
    if not (run.traces or run.votes or run.metrics or run.results):
        raise TrajectoryError(f"{path}: holds no trajectories, votes, metrics or results")
    return run


def _read_traces(paths: Sequence[Path], media_root: Path | None) -> list[Traced]:
    return [
        Traced(trajectory=trajectory, media_root=media_root or path.parent)
        for path in paths
        for trajectory in read_trajectories(path)
    ]


def _read_votes(path: Path) -> Iterator[VoteRecord]:
    # Imported here: the package checks shapes with chex, which imports JAX, and a report without votes does without.
    from pixelis_jax.voting import vote_from_json

    return read_lines(path, vote_from_json)


def _is_trace(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.readline(200)
    return SCHEMA.rpartition("/")[0].encode() in head


def _read_metrics(paths: Sequence[Path]) -> list[dict[str, float]]:
    rows: dict[float, dict[str, float]] = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                row = rows.setdefault(float(values["step"]), {})
            except (ValueError, TypeError, KeyError) as error:
                raise TrajectoryError(f"{path}, line {number}: not a row of metrics ({error})") from error
            row |= {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return [rows[step] for step in sorted(rows)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise TrajectoryError(f"{path}: not valid JSON: {error}") from error


def _shard_order(path: Path) -> tuple[str, int, int]:
    match = _SHARD.match(path.name)
    # `name-0-10` comes after `name-0-2`.
    return (f"{path.parent}/{match[1]}", int(match[2]), int(match[3])) if match else (str(path), 0, 0)
