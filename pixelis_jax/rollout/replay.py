"""Runs every call of a trajectory again and compares what came back: the audit behind `pixelis replay`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pixelis_jax.trajectory import Trajectory, TrajectoryError, mask_iou, parse_turn
from pixelis_jax.trajectory.codec import from_json, to_json
from tools_host.config import Dialect, ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import decode_mask
from tools_host.media import MediaError, file_sha256
from tools_host.protocol import Media, Observation, ToolError, ToolPool

Tolerance = Literal["exact", "numeric"]

ENVIRONMENT = "environment"
"""Key in `Trajectory.sampling` under which `environment_record` stands."""

NUMERIC_PLACES = 2
"""`numeric`: how far integers, all of them coordinates or counts, may lie apart."""

NUMERIC_RELATIVE = 0.02
"""`numeric`: how far fractions may lie apart, relative to the larger one or to 1."""

NUMERIC_MASK_IOU = 0.95
"""`numeric`: least overlap of two masks."""

_NAMES = frozenset({"id", "media", "step"})
_PIECE = re.compile(r'"[^"\n]*"|[^\W\d]\w*|-?\d+(?:\.\d+)?|.', re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One value that is not what the trace says; `where` is its path, e.g. `steps[0].observation.regions[1].text`."""

    where: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"{self.where}: recorded {_short(self.recorded)}, now {_short(self.replayed)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay found.

    Attributes:
      id: Of the trajectory.
      calls: Calls that were run.
      differences: Values that differ, in the order of the trace.
      versions: For each tool whose implementation changed, its name and what changed; no difference by itself.
    """

    id: str
    calls: int
    differences: tuple[Difference, ...]
    versions: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """The settings that decide how observations are worded, as `ToolsConfig` has them."""

    dialect: Dialect = ToolsConfig.dialect
    boxes_in_text: bool = ToolsConfig.boxes_in_text
    max_lines: int = ToolsConfig.max_lines
    max_chars: int = ToolsConfig.max_chars
    backend_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def environment_record(config: ToolsConfig) -> dict[str, Any]:
    """The `Wording` of a config, kept in `Trajectory.sampling["environment"]` for the replay."""
    return {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(Wording)}


def tools_config(trajectory: Trajectory, imports: Sequence[str] = ()) -> ToolsConfig:
    """The tools as the trajectory had them.

    Args:
      trajectory: Brings its tools, their back-ends, and `environment_record` (defaults where it has none).
      imports: Modules of the user's own that register tools; never taken from a trace, which may come from anybody.

    Raises:
      TrajectoryError: If the record is none, or holds options that a back-end does not take.
      UnknownNameError: If there is no such tool or back-end.
    """
    where = f"{trajectory.id}: sampling.{ENVIRONMENT}"
    wording = from_json(Wording, trajectory.sampling.get(ENVIRONMENT, {}), where)
    fields = {field.name: getattr(wording, field.name) for field in dataclasses.fields(Wording)}
    if trajectory.tools:
        fields["tools"] = tuple(trajectory.tools)
    backends = {name: tool.backend for name, tool in trajectory.tools.items() if tool.backend != "builtin"}
    config = ToolsConfig(backends=backends, imports=tuple(imports), **fields)
    try:
        config.load()
        config.tool_versions()
    except (TypeError, ValueError, OSError) as error:
        raise TrajectoryError(f"{where}.backend_options: {error}") from error
    return config


def replay(
    trajectory: Trajectory,
    pool: ToolPool,
    config: ToolsConfig,
    *,
    media_root: Path,
    tolerance: Tolerance = "exact",
) -> ReplayReport:
    """Runs a trajectory's calls again in a fresh environment.

    Args:
      trajectory: As read from a trace.
      pool: Runs the calls; made from `config`.
      config: See `tools_config`.
      media_root: Directory that the media's `uri` is relative to.
      tolerance: `exact`; or `numeric` for another CPU: numbers and masks may differ a little, words may not.

    Raises:
      MediaError: if a file of the question does not exist.
    """
    roots = [medium for medium in trajectory.media if medium.parent is None]
    versions = tuple(_changed_versions(trajectory, config))
    if changed := list(_changed_files(roots, media_root)):
        return ReplayReport(id=trajectory.id, calls=0, differences=tuple(changed), versions=versions)
    paths = [str(media_path(medium, media_root)) for medium in roots]
    environment = EpisodeEnvironment(paths, config, uris=[medium.uri or "" for medium in roots])
    differences: list[Difference] = []
    for index, step in enumerate(trajectory.steps):
        turn = parse_turn(step.raw)
        differences += compare(f"steps[{index}].call", to_json(step.call), to_json(turn.call), "exact")
        if step.call is not None:
            observation = environment.run(step.call, pool)
        else:
            unparsed = turn.error or ToolError(code="bad_json", message="the turn holds no call")
            observation = environment.observe(None, unparsed)
        differences += _compare_observations(f"steps[{index}].observation", step.observation, observation, tolerance)
    differences += _compare_media(trajectory.media, environment.media, tolerance)
    calls = sum(step.call is not None for step in trajectory.steps)
    return ReplayReport(id=trajectory.id, calls=calls, differences=tuple(differences), versions=versions)


def media_path(medium: Media, media_root: Path) -> Path:
    """Where a root medium's file is; an absolute `uri` stays as it is."""
    return media_root / (medium.uri or "")


def compare(where: str, recorded: Any, replayed: Any, tolerance: Tolerance) -> Iterator[Difference]:
    """Yields every leaf at which two JSON values differ.

    Args:
      where: Path of the values.
      recorded: JSON value of the trace.
      replayed: JSON value of now.
      tolerance: As for `replay`.
    """
    if tolerance == "numeric" and _is_mask(recorded) and _is_mask(replayed):
        if not _same_mask(recorded, replayed):
            yield Difference(where=where, recorded=recorded, replayed=replayed)
    elif isinstance(recorded, dict) and isinstance(replayed, dict):
        for key in [*recorded, *(key for key in replayed if key not in recorded)]:
            yield from compare(f"{where}.{key}", recorded.get(key, _ABSENT), replayed.get(key, _ABSENT), tolerance)
    elif isinstance(recorded, list) and isinstance(replayed, list) and len(recorded) == len(replayed):
        for index, (before, now) in enumerate(zip(recorded, replayed, strict=True)):
            yield from compare(f"{where}[{index}]", before, now, tolerance)
    elif not _same_leaf(where, recorded, replayed, tolerance):
        yield Difference(where=where, recorded=recorded, replayed=replayed)


def _same_mask(recorded: Mapping[str, Any], replayed: Mapping[str, Any]) -> bool:
    try:
        before, now = decode_mask(recorded), decode_mask(replayed)
    except ValueError:  # a changed trace may hold anything
        return False
    return before.shape == now.shape and mask_iou(before, now) >= NUMERIC_MASK_IOU


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _same_leaf(where: str, recorded: Any, replayed: Any, tolerance: Tolerance) -> bool:
    # `1 == True` and `1 == 1.0` in Python, but a trace that says one and not the other was changed.
    if type(recorded) is type(replayed) and recorded == replayed:
        return True
    if tolerance == "exact":
        return False
    if isinstance(recorded, str) and isinstance(replayed, str):
        # Only the wording holds numbers that the tool measured; a digit that it read, there in quotes, is a word.
        return where.endswith("observation.text") and _same_wording(recorded, replayed)
    name = where.rpartition(".")[2].partition("[")[0]
    if name in _NAMES or not (_is_number(recorded) and _is_number(replayed)):
        return False
    return _close(recorded, replayed, isinstance(recorded, float) or isinstance(replayed, float))


def _same_wording(recorded: str, replayed: str) -> bool:
    before, now = _PIECE.findall(recorded), _PIECE.findall(replayed)
    return len(before) == len(now) and all(map(_same_piece, before, now))


def _same_piece(a: str, b: str) -> bool:
    if a == b:
        return True
    numbers = _NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)
    return bool(numbers) and _close(float(a), float(b), "." in a or "." in b)


def _close(a: float, b: float, fraction: bool) -> bool:
    if max(abs(a), abs(b)) > sys.float_info.max:  # too large an integer to compare with a fraction
        return a == b
    return abs(a - b) <= (NUMERIC_RELATIVE * max(1.0, abs(a), abs(b)) if fraction else NUMERIC_PLACES)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_mask(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"size", "counts"}


def _compare_observations(where: str, recorded: Observation, replayed: Observation, tolerance: Tolerance) -> Iterator[Difference]:
    yield from compare(where, to_json(recorded), to_json(replayed), tolerance)


def _compare_media(recorded: Sequence[Media], replayed: Sequence[Media], tolerance: Tolerance) -> Iterator[Difference]:
    if len(recorded) != len(replayed):
        yield Difference(where="media", recorded=f"{len(recorded)} media", replayed=f"{len(replayed)} media")
    for index, (before, now) in enumerate(zip(recorded, replayed, strict=False)):
        # What the model saw of a medium is the policy's business; no call can bring it back.
        a, b = (to_json(dataclasses.replace(medium, shown=None)) for medium in (before, now))
        if tolerance == "numeric" and before.parent is not None:
            a["sha256"] = b["sha256"] = ""
        yield from compare(f"media[{index}]", a, b, tolerance)


def _changed_files(roots: Sequence[Media], media_root: Path) -> Iterator[Difference]:
    for medium in roots:
        path = media_path(medium, media_root)
        try:
            found = file_sha256(str(path))
        except MediaError as error:
            if not path.exists():
                raise
            found = str(error)
        if found != medium.sha256:
            yield Difference(where=f"media[{medium.id - 1}].sha256 ({path})", recorded=medium.sha256, replayed=found)


def _changed_versions(trajectory: Trajectory, config: ToolsConfig) -> Iterator[str]:
    config.load()
    now = config.tool_versions()
    for name, tool in trajectory.tools.items():
        current: Mapping[str, Any] = now[name]
        for field, value in to_json(tool).items():
            if current[field] != value:
                yield f"{name}: {field} was {value}, is {current[field]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"
