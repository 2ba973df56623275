"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pixelis_jax.workdir.errors import WorkdirError


class WriterLock:
    """Held from creation to `release`, or until the process ends, however it ends.

    The file stays when the lock is gone: whoever removed it could remove one that another process has just taken.
    """

    def __init__(self, path: Path, of: Path) -> None:
        """Takes the lock.

        Args:
          path: A file beside what is locked; made if absent.
          of: What is locked, for the message.

        Raises:
          WorkdirError: Another writer holds it, here or in another process, or the file cannot be made.
        """
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WorkdirError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise WorkdirError(f"{of} is being written by process {holder}; stop it or wait for it") from error
        except OSError:
            pass  # a file system without locks: a bucket, some network disks
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next writer in."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
