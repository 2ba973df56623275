"""When worker processes end: not at a signal that is sent to all of them, but with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in this thread; a process that it starts meanwhile never gets one, not even before its first line of code."""
    # Python starts this process with the first worker, and unblocks Ctrl-C behind it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a worker: ends it as soon as the process that started it is gone, however that ended, and not before.

    It leaves the process group: what asks a whole group to stop (`timeout`, a batch system's notice, `kill -- -GROUP`) means the
    process that started it, which may have an iteration to finish with this worker's help, and then a checkpoint to write.
    """
    os.setpgrp()
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
