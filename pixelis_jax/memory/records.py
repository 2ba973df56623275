"""What the memory keeps of a query, and how a row of the store holds it."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from typing import Any

import numpy as np

from pixelis_jax.memory.errors import StoreError
from pixelis_jax.trajectory import (
    TokenRecord,
    Trajectory,
    TrajectoryError,
    operations,
    record_from_bytes,
    record_to_bytes,
    strict_json,
    trajectory_from_json,
    trajectory_to_json,
)

CONTENT_BYTES = 16 * 2**20
"""Most bytes of a record's trajectory, and of its tokens."""

VALUE_AT_BIRTH = 0.5

_UNIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """An answered query.

    Attributes:
      key: Where it lies, float32 `[D]`, of length 1 (`keys.join`).
      phash: Perceptual hash of what was asked about, in `[0, 2^64)` (`encoding.frames_hash`); None without a medium.
      query_id: Names the query; the same query asked again has the same.
      query: Its text.
      trajectory: The exemplar.
      tokens: The exemplar's tokens as they were sampled.
      fidelity: The exemplar's, in [0, 1].
      agreement: How many samples of the group gave its answer.
      value: Usefulness so far, in [0, 1].
    """

    key: np.ndarray
    phash: int | None
    query_id: str
    query: str
    trajectory: Trajectory
    tokens: TokenRecord
    fidelity: float
    agreement: int
    value: float = VALUE_AT_BIRTH

    @property
    def operations(self) -> tuple[str, ...]:
        """As `trajectory.operations`: what the vote compares."""
        return operations(self.trajectory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What ranking needs of a record; the fields are `Record`'s."""

    value: float
    phash: int | None
    query_id: str
    operations: tuple[str, ...]
    fidelity: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A record as SQLite holds it. A checksum covers all but the value, which changes."""

    value: float
    phash: int | None
    query_id: str
    operations: str
    fidelity: float
    agreement: int
    key: bytes
    query: str
    trajectory: bytes
    tokens: bytes

    def checksum(self) -> int:
        """CRC-32 of every field but the value, each with its length, so that no byte can move from one to the next."""
        crc = 0
        for field in dataclasses.fields(self):
            if field.name != "value":
                held = getattr(self, field.name)
                content = held if isinstance(held, bytes) else repr(held).encode("utf-8", "surrogatepass")
                crc = zlib.crc32(content, zlib.crc32(len(content).to_bytes(8, "little"), crc))
        return crc


def to_row(record: Record, dim: int) -> Row:
    """Checks a record and serialises it, without pickle.

    Raises:
      StoreError: It is not what `Record` says; names the field.
    """
    check_key(record.key, dim)
    check_share("value", record.value)
    check_share("fidelity", record.fidelity)
    if record.agreement < 0:
        raise StoreError(f"agreement is {record.agreement}, expected 0 or more")
    if record.phash is not None and not 0 <= record.phash < 2**64:
        raise StoreError(f"phash is {record.phash}, expected 64 bits")
    try:
        text = json.dumps(trajectory_to_json(record.trajectory), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        trajectory, tokens = text.encode(), record_to_bytes(record.tokens)
    except ValueError as error:  # TrajectoryError is one, and so is what json and UTF-8 refuse
        raise StoreError(f"trajectory {record.trajectory.id} cannot be stored: {error}") from error
    for name, content in (("trajectory", trajectory), ("tokens", tokens)):
        if len(content) > CONTENT_BYTES:
            raise StoreError(f"{name} takes {len(content)} bytes, more than {CONTENT_BYTES}")
    return Row(
        value=float(record.value),
        phash=None if record.phash is None else _signed(record.phash),
        query_id=record.query_id,
        operations=json.dumps(record.operations),
        fidelity=float(record.fidelity),
        agreement=int(record.agreement),
        key=record.key.astype("<f4").tobytes(),
        query=record.query,
        trajectory=trajectory,
        tokens=tokens,
    )


def from_row(row: Row, dim: int, *, checksum: int) -> Record:
    """Reads what `to_row` gave.

    Raises:
      StoreError: The row is not what was written.
    """
    if row.checksum() != checksum:
        raise StoreError("its checksum differs from what was written")
    try:
        trajectory = trajectory_from_json(strict_json(row.trajectory))
        tokens = record_from_bytes(row.tokens)
    except TrajectoryError as error:
        raise StoreError(str(error)) from error
    key = np.frombuffer(row.key, "<f4").astype(np.float32)
    check_key(key, dim)
    return Record(
        key=key,
        phash=_unsigned(row.phash),
        query_id=row.query_id,
        query=row.query,
        trajectory=trajectory,
        tokens=tokens,
        fidelity=row.fidelity,
        agreement=row.agreement,
        value=row.value,
    )


def summary(value: float, phash: int | None, query_id: str, operations: str, fidelity: float) -> Summary:
    """What ranking needs, from the columns that hold it."""
    names: Any = json.loads(operations)
    return Summary(value=value, phash=_unsigned(phash), query_id=query_id, operations=tuple(names), fidelity=fidelity)


def check_key(key: np.ndarray, dim: int) -> None:
    """Raises StoreError unless a key is float32 `[dim]` and of length 1."""
    if key.dtype != np.float32 or key.shape != (dim,):
        raise StoreError(f"key is {key.dtype} {list(key.shape)}, expected float32 [{dim}]")
    check_lengths(key[None])


def check_lengths(keys: np.ndarray) -> None:
    """Raises StoreError unless all keys, float32 `[N, D]`, are of length 1."""
    squared = np.einsum("nd,nd->n", keys, keys)
    wrong = ~(np.abs(squared - 1) <= 2 * _UNIT_TOLERANCE)  # also true for NaN
    if wrong.any():
        raise StoreError(f"key has length {np.sqrt(squared[wrong][0]):.6g}, expected 1")


def check_share(name: str, value: float) -> None:
    """Raises StoreError unless a number is in [0, 1]."""
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise StoreError(f"{name} is {value}, expected a number in [0, 1]")


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits  # SQLite's integers are signed


def _unsigned(bits: int | None) -> int | None:
    return None if bits is None else bits % 2**64
