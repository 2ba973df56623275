"""Append-only files of JSON lines that a run which was killed goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelis_jax.workdir import WorkdirError


class AppendLog:
    """One object a line, on the disk when `append` returns.

    A run goes back to its last checkpoint and does again what came behind it. What was written then stands, and is not written
    twice: lines have numbers that only grow.
    """

    def __init__(self, path: Path, *, numbered: bool = False):
        """Opens a log, or makes one. Half a line at the end, of a run that was killed, is cut off.

        Args:
          path: a local file.
          numbered: lines have a field ``number``, and some numbers may have none; else line k has number k.

        Raises:
          WorkdirError: The last line of a numbered log has no number.
        """
        held = path.read_bytes() if path.exists() else b""
        whole = held[: held.rfind(b"\n") + 1]
        lines = whole.splitlines()
        last = _number_of(lines[-1], path) if numbered and lines else len(lines) - 1
        self._path, self._numbered, self._next = path, numbered, last + 1
        self._file = path.open("r+b" if path.exists() else "xb")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))

    @property
    def next(self) -> int:
        """Number of the line that may come next."""
        return self._next

    def append(self, number: int, value: dict[str, Any]) -> None:
        """Writes a line, unless one of this number or above is there.

        Raises:
          WorkdirError: Lines between are missing, and the log is not `numbered`.
          ValueError: JSON cannot hold the value.
        """
        if number < self._next:
            return
        if number > self._next and not self._numbered:
            raise WorkdirError(f"{self._path} has {self._next} lines, and the next one is to be number {number}: some were lost")
        self._file.write(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._next = number + 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _number_of(line: bytes, path: Path) -> int:
    try:
        return int(json.loads(line)["number"])
    except (ValueError, TypeError, KeyError) as error:
        raise WorkdirError(f"{path}: the last line has no number: {line[:80]!r}") from error
