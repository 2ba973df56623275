"""One worker process that is replaced whenever it dies."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pebble

from tools_host import worker_process
from tools_host.protocol import ToolError, ToolOutput, ToolRequest

Result = ToolOutput | ToolError


class WorkerSlot:
    """A pebble pool of one process, started on the first call.

    One pool a process, because the processes of a pebble pool share a lock: one that dies while it holds the lock, idle
    or not, ends the whole pool.

    Args:
      pickled_config: A `ToolsConfig`, pickled.
      timeout_s: Limit of one call in seconds.
      memory_limit_bytes: Ceiling of the process's address space, or None.
    """

    def __init__(self, pickled_config: bytes, timeout_s: float, memory_limit_bytes: int | None) -> None:
        self._start_arguments = (pickled_config, memory_limit_bytes)
        self._timeout_s = timeout_s
        self._process: pebble.ProcessPool | None = None
        self._task: Future[Result] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def run(self, request: ToolRequest) -> Result:
        """Runs one call and waits for it; nothing is raised."""
        with contextlib.suppress(BrokenProcessPool):
            return self._attempt(request)
        # The process had died before the call reached it: a new one is started.
        try:
            return self._attempt(request)
        except BrokenProcessPool as error:
            return ToolError(code="worker_lost", message=f"the worker of {request.tool} was lost: {error}")

    def close(self) -> None:
        """Ends the process; a call under way becomes `worker_lost`. May be called from another thread."""
        with self._lock:
            self._closed = True
            if self._task is not None:
                # Stopping a pebble pool leaves its tasks open: whoever waits for one would wait for ever.
                self._task.cancel()
            self._stop()

    def _attempt(self, request: ToolRequest) -> Result:
        try:
            return self._scheduled(request).result()
        except concurrent.futures.TimeoutError:
            message = f"{request.tool} took longer than {self._timeout_s:g} s"
            return ToolError(code="timeout", message=message, hint="try a smaller region or a shorter time")
        except concurrent.futures.CancelledError:
            return ToolError(code="worker_lost", message="the pool of tool workers was closed")
        except MemoryError:
            return ToolError(code="out_of_memory", message=f"{request.tool} needs more memory than a worker may use")
        except BrokenProcessPool:
            raise
        except Exception as error:
            # Whatever a dying worker leaves behind (an exit code, half a message), the call may be made again.
            return ToolError(code="worker_lost", message=f"the worker of {request.tool} was lost: {error}")

    def _scheduled(self, request: ToolRequest) -> Future[Result]:
        with self._lock:
            if self._closed:
                raise concurrent.futures.CancelledError
            if self._process is not None and not self._process.active:
                self._stop()
            if self._process is None:
                self._process = pebble.ProcessPool(
                    max_workers=1,
                    context=multiprocessing.get_context("spawn"),
                    initializer=worker_process.start,
                    initargs=self._start_arguments,
                )
            self._task = self._process.schedule(worker_process.execute, args=(request,), timeout=self._timeout_s)
            return self._task

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()
            process.join()
