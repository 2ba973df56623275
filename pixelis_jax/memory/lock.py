"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pixelis_jax.memory.errors import StoreError


class WriterLock:
    """Held from creation to `release`, or until the process ends, however it ends.

    The file stays when the lock is gone: whoever removed it could remove one that another process has just taken.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Args:
          path: A file beside what is locked; made if absent.

        Raises:
          StoreError: Another writer holds it, here or in another process, or the file cannot be made.
        """
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            store = path.with_suffix("")
            raise StoreError(f"{store} is being written by process {holder}; wait for it, or open it read-only") from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next writer in."""
        os.close(self._file)
