"""Runs `pixelis` commands as processes of this machine, so many at a time, and ends them when asked to."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STOPPED_EARLY = 3
POLL_S = 0.1
_ENDED_BY_REQUEST = (
    STOPPED_EARLY,
    *(status for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for status in (-number, 128 + number)),
)
"""Exit statuses of a command that was stopped and may go on; of a signal, as Popen and as a shell say it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One command: its name, the arguments of `pixelis`, and the file that its output is added to."""

    name: str
    arguments: tuple[str, ...]
    log: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """How a job ended: exit status (negative: by that signal), seconds it took, whether it was stopped rather than failed."""

    status: int
    seconds: float
    stopped: bool


def run_jobs(
    jobs: Sequence[Job],
    *,
    program: Sequence[str],
    at_once: int,
    seconds: float | None,
    keep_open: int,
    began: Callable[[Job], None],
    ended: Callable[[Job, End], None],
) -> None:
    """Runs jobs in order, and goes on after one that fails.

    SIGTERM, SIGHUP, the first Ctrl-C and the end of the time send SIGTERM to the jobs that run, which lets training save a
    checkpoint, and nothing further is started; a second Ctrl-C kills them.

    Args:
      jobs: What to run.
      program: The command that takes a job's arguments.
      at_once: Most jobs at a time.
      seconds: Time after which to stop; None: no limit.
      keep_open: A file descriptor that each job inherits: a lock on it is held until the last of them is gone.
      began: Called before a job's process starts.
      ended: Called after it has ended.
    """
    waiting = collections.deque(jobs)
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    deadline = None if seconds is None else time.monotonic() + seconds
    stopping = killing = False
    with _stop_requests() as requests:
        try:
            while waiting or running:
                if not stopping and (requests or (deadline is not None and time.monotonic() >= deadline)):
                    stopping = True
                    waiting.clear()
                    for process, _ in running.values():
                        process.terminate()
                if not killing and requests.count(signal.SIGINT) > 1:
                    killing = True
                    _kill(process for process, _ in running.values())
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    began(job)
                    running[job] = _start(job, program, keep_open), time.monotonic()
                for job, (process, started) in list(running.items()):
                    status = process.poll()
                    if status is not None:
                        del running[job]
                        stopped = status in _ENDED_BY_REQUEST or (killing and status < 0)
                        ended(job, End(status=status, seconds=time.monotonic() - started, stopped=stopped))
                if running:
                    time.sleep(POLL_S)
        finally:
            _kill(process for process, _ in running.values())


def _start(job: Job, program: Sequence[str], keep_open: int) -> subprocess.Popen[bytes]:
    """A process group of its own: Ctrl-C of the terminal reaches the job through us alone, once."""
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            [*program, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=(keep_open,),
        )


def _kill(processes: Iterator[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects the signals that ask this process to end; one that is ignored (`nohup`) stays so."""
    requests: list[int] = []
    asked = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in asked}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
