"""Scalars of a run: JSON lines in closed shards, and TensorBoard."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
from etils import epath

from pixelis_jax.workdir import atomic
from pixelis_jax.workdir.errors import WorkdirError


class MetricsWriter:
    """Writes the scalars of one process.

    Object stores cannot append, so rows wait in memory until `flush` closes them into a shard
    ``metrics-<process>-<n>.jsonl``. A row is ``{"step": ..., "time": seconds since the epoch, name: number, ...}``; a
    number that is not finite is written as the string ``nan``, ``inf`` or ``-inf``.
    """

    def __init__(self, path: epath.PathLike, *, process: int, flush_rows: int = 100):
        """Opens the metrics of a run.

        Args:
          path: the work directory.
          process: index of this process; process 0 alone writes TensorBoard files.
          flush_rows: rows after which a shard is closed.
        """
        self._path = epath.Path(path)
        self._process = process
        self._flush_rows = flush_rows
        self._rows: list[dict[str, Any]] = []
        self._next = 1 + max((_shard_number(shard) for shard in self._shards()), default=-1)
        self._board: tensorboardX.SummaryWriter | None = None

    def resume(self, step: int) -> None:
        """Forgets every row after `step`: those steps will be taken again.

        Args:
          step: the restored step.
        """
        self._rows = [row for row in self._rows if row["step"] <= step]
        for shard in self._shards():
            rows = _read_shard(shard)
            kept = [row for row in rows if row["step"] <= step]
            if not kept:
                shard.unlink()
            elif len(kept) < len(rows):
                _write_shard(shard, kept)
        if self._process == 0:
            self._board = self._open_board(purge_step=step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one row.

        Args:
          step: the step that the scalars belong to.
          scalars: by name.
        """
        row = {name: _as_json(float(value)) for name, value in scalars.items()}
        self._rows.append({"step": int(step), "time": round(time.time(), 3)} | row)
        if self._process == 0:
            self._board = self._board or self._open_board(purge_step=None)
            for name, value in scalars.items():
                self._board.add_scalar(name, float(value), step)
        if len(self._rows) >= self._flush_rows:
            self.flush()

    def flush(self) -> None:
        """Closes the waiting rows into a shard."""
        if self._rows:
            _write_shard(self._path / f"metrics-{self._process}-{self._next}.jsonl", self._rows)
            self._rows = []
            self._next += 1
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and lets go of the files."""
        self.flush()
        if self._board is not None:
            self._board.close()
            self._board = None

    def _shards(self) -> list[epath.Path]:
        return _shards(self._path, f"metrics-{self._process}-*.jsonl")

    def _open_board(self, purge_step: int | None) -> tensorboardX.SummaryWriter:
        return tensorboardX.SummaryWriter(str(self._path / "tensorboard"), purge_step=purge_step)


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of all processes, by process and in the order in which they were written.

    Args:
      path: the work directory.

    Returns:
      The rows.

    Raises:
      WorkdirError: a shard is damaged.
    """
    return [row for shard in _shards(epath.Path(path), "metrics-*.jsonl") for row in _read_shard(shard)]


def _shards(path: epath.Path, pattern: str) -> list[epath.Path]:
    return sorted(path.glob(pattern), key=lambda shard: (int(shard.stem.split("-")[1]), _shard_number(shard)))


def _shard_number(shard: epath.Path) -> int:
    return int(shard.stem.rsplit("-", 1)[1])


def _write_shard(shard: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    atomic.write_bytes(shard, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _read_shard(shard: epath.Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in shard.read_text().splitlines()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkdirError(f"{shard} is damaged ({error}); remove it to go on without its rows") from error


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
