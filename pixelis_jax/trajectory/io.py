"""Trajectories, examples and token records on disk.

Object stores cannot append, so what is written is whole: a file appears under its name only when it is complete.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from etils import epath

from pixelis_jax.trajectory.codec import from_json, json_schema, to_json, unwritable
from pixelis_jax.trajectory.consistency import check_consistent
from pixelis_jax.trajectory.errors import TrajectoryError
from pixelis_jax.trajectory.types import SCHEMA, Example, TokenRecord, Trajectory
from tools_host.protocol import Media

Parsed = TypeVar("Parsed")

_RECORD_TYPES = {
    "ids": np.int32,
    "roles": np.int8,
    "log_probs": np.float32,
    "forced": np.bool_,
    "policy_step": np.int32,
    "media_spans": np.int32,
    "margins": np.float32,
}
_OPTIONAL = {"margins"}

RECORD_BYTES = 64 * 2**20
"""Most bytes that a token record unpacks to; one of a million tokens takes 17 MB."""


def trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    """The object that stands on one line of a trace."""
    return {"schema": SCHEMA, **to_json(trajectory)}


def trajectory_from_json(value: Any) -> Trajectory:
    """Reads what `trajectory_to_json` wrote.

    Raises TrajectoryError for another schema, an unknown field or a wrong type.
    """
    if not isinstance(value, dict):
        raise TrajectoryError("a trajectory is a JSON object")
    schema = value.get("schema")
    if schema != SCHEMA:
        raise TrajectoryError(f"schema: expected {SCHEMA!r}, got {schema!r}; this version reads no other")
    return from_json(Trajectory, {key: item for key, item in value.items() if key != "schema"})


def relative_media(trajectories: Iterable[Trajectory], folder: epath.PathLike) -> list[Trajectory]:
    """Names media relative to the folder that the traces will lie in, so that both can be moved together."""
    place = epath.Path(folder).resolve()

    def moved(medium: Media) -> Media:
        return medium if medium.uri is None else dataclasses.replace(medium, uri=os.path.relpath(medium.uri, place))

    return [
        dataclasses.replace(trajectory, media=tuple(moved(medium) for medium in trajectory.media)) for trajectory in trajectories
    ]


def trajectory_schema() -> dict[str, Any]:
    """The JSON Schema of a line of a trace; `schema.json` is this."""
    definitions: dict[str, Any] = {}
    json_schema(Trajectory, definitions)
    root = definitions.pop("Trajectory")
    root["properties"] = {"schema": {"const": SCHEMA}, **root["properties"]}
    root["required"] = ["schema", *root["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **root, "$defs": definitions}


def read_trajectories(path: epath.PathLike, *, consistent: bool = True) -> Iterator[Trajectory]:
    """Trajectories of a `.jsonl` trace, in order.

    Args:
      path: The trace.
      consistent: Whether to check that their parts fit together. The replay does without: it follows no id that it reads, and a
        changed one is a difference.

    Raises:
      TrajectoryError: Names file, line and field.
    """

    def read(value: Any) -> Trajectory:
        trajectory = trajectory_from_json(value)
        if consistent:
            check_consistent(trajectory)
        return trajectory

    return read_lines(path, read)


def read_examples(path: epath.PathLike) -> Iterator[Example]:
    """Examples of a `.jsonl` file, in order; raises TrajectoryError naming file, line and field."""
    return read_lines(path, example_from_json)


def write_trajectories(path: epath.PathLike, trajectories: Iterable[Trajectory]) -> None:
    """Writes a whole trace at once."""
    _write_lines(path, map(trajectory_to_json, trajectories))


def write_examples(path: epath.PathLike, examples: Iterable[Example]) -> None:
    """Writes a whole file of examples at once."""
    _write_lines(path, map(example_to_json, examples))


def example_to_json(example: Example) -> dict[str, Any]:
    """The object that stands on one line of a file of examples; its gold trajectory has the form of a trace's line."""
    value = to_json(dataclasses.replace(example, gold=None))
    return {**value, "gold": None if example.gold is None else trajectory_to_json(example.gold)}


def example_from_json(value: Any) -> Example:
    """Reads what `example_to_json` wrote."""
    if not isinstance(value, dict):
        raise TrajectoryError("an example is a JSON object")
    gold = value.get("gold")
    example: Example = from_json(Example, {key: item for key, item in value.items() if key != "gold"})
    return dataclasses.replace(example, gold=None if gold is None else trajectory_from_json(gold))


def strict_json(text: str | bytes) -> Any:
    """Reads JSON from anybody.

    Raises:
      TrajectoryError: If it is not JSON, repeats a key, holds a number that JSON has not, or could not be written again.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise TrajectoryError(str(error)) from error
    if problem := unwritable(value):
        raise TrajectoryError(problem)
    return value


class ShardWriter:
    """Writes values as closed shards `name-<process>-<n>.jsonl`; a shard is never written to again.

    Args:
      directory: Where; made if absent. Shards that are there already are kept, numbering goes on behind them.
      name: First part of the file names.
      process: Index of this process.
      shard_size: Values in a shard.
    """

    def __init__(self, directory: epath.PathLike, name: str, *, process: int = 0, shard_size: int = 1000) -> None:
        self._directory = epath.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._prefix = f"{name}-{process}-"
        self._size = shard_size
        self._rows: list[dict[str, Any]] = []
        taken = [path.stem.removeprefix(self._prefix) for path in self._directory.glob(f"{self._prefix}*.jsonl")]
        self._next = 1 + max((int(number) for number in taken if number.isdigit()), default=-1)

    def write(self, trajectory: Trajectory) -> None:
        """Takes a trajectory; it is on disk when its shard is full, or at `close`."""
        self._rows.append(trajectory_to_json(trajectory))
        if len(self._rows) >= self._size:
            self.close()

    def close(self) -> None:
        """Closes the open shard, if it holds anything."""
        if self._rows:
            _write_lines(self._directory / f"{self._prefix}{self._next}.jsonl", self._rows)
            self._rows, self._next = [], self._next + 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def save_record(path: epath.PathLike, record: TokenRecord) -> None:
    """Writes a token record as `.npz`."""
    content = record_to_bytes(record)
    with AtomicFile(path) as file:
        file.write(content)


def load_record(path: epath.PathLike) -> TokenRecord:
    """Reads a token record; raises TrajectoryError if it is none. Never unpickles."""
    path = epath.Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{path}: not a token record: {error}") from error
    return record_from_bytes(content, name=str(path))


def record_to_bytes(record: TokenRecord) -> bytes:
    """What `save_record` writes."""
    _check_record(record, "record")
    content = io.BytesIO()
    arrays = {name: getattr(record, name) for name in _RECORD_TYPES}
    np.savez_compressed(content, **{name: array for name, array in arrays.items() if array is not None})
    return content.getvalue()


def record_from_bytes(content: bytes, *, name: str = "record") -> TokenRecord:
    """Reads what `record_to_bytes` gave. Never unpickles, and unpacks at most `RECORD_BYTES`.

    Args:
      content: An `.npz` archive.
      name: What an error calls it.

    Raises:
      TrajectoryError: It is no token record.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > RECORD_BYTES:
            raise TrajectoryError(f"{name}: would unpack to {unpacked} bytes, more than {RECORD_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if set(arrays.files) | _OPTIONAL != set(_RECORD_TYPES):
                found = ", ".join(arrays.files)
                raise TrajectoryError(f"{name}: expected the arrays {', '.join(_RECORD_TYPES)}, got {found}")
            record = TokenRecord(**{field: arrays[field] for field in arrays.files})
    except TrajectoryError:
        raise
    # A damaged archive fails in the zip reader, in zlib, or where an array's header asks for more memory than there is.
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise TrajectoryError(f"{name}: not a token record: {error}") from error
    _check_record(record, name)
    return record


def _check_record(record: TokenRecord, name: str) -> None:
    length = len(record.ids)
    for field, dtype in _RECORD_TYPES.items():
        array = getattr(record, field)
        if array is None and field in _OPTIONAL:
            continue
        shape = (len(record.media_spans), 4) if field == "media_spans" else (length,)
        if array.dtype != dtype or array.shape != shape:
            expected = f"{np.dtype(dtype)} {list(shape)}"
            raise TrajectoryError(f"{name}: {field} is {array.dtype} {list(array.shape)}, expected {expected}")


def read_lines(path: epath.PathLike, parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
    """What `parse` makes of each line of a file of JSON objects, in order; blank lines are left out.

    Args:
      path: The file.
      parse: Takes the value of a line; raises TrajectoryError if it is not what it should be.

    Raises:
      TrajectoryError: Names file and line.
    """
    path = epath.Path(path)
    try:
        # Bytes, and split at newlines alone: `str.splitlines` would also cut at U+2028 inside a string.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse(strict_json(line))
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}, line {number}: {error}") from error


def _write_lines(path: epath.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    with AtomicFile(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n")


class AtomicFile:
    """A binary file that appears under its name only when the block ends well."""

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._partial = self._path.parent / f".{self._path.name}.partial"

    def __enter__(self) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise TrajectoryError("a key stands twice in an object")
    return result


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_constant(text)


def _no_constant(text: str) -> Any:
    raise TrajectoryError(f"{text} is no JSON number")
