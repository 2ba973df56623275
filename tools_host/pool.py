"""Where calls run: `WorkerPool` in worker processes, `InlinePool` in this one."""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from concurrent.futures import Future

from tools_host.cache import ByteCache
from tools_host.config import ToolsConfig
from tools_host.process_life import interrupts_blocked
from tools_host.protocol import OUTAGE_CODES, ToolError, ToolRequest
from tools_host.worker import Worker
from tools_host.worker_slot import Result, WorkerSlot

_CLOSE_CHECK_S = 0.1
"""How often an idle thread looks whether the pool was closed."""


class InlinePool:
    """A `ToolPool` that runs each call at once, here, without limits: for single commands and tests.

    Args:
      config: Tools and back-ends.
    """

    def __init__(self, config: ToolsConfig) -> None:
        self._worker = Worker(config)

    def submit(self, request: ToolRequest) -> Future[Result]:
        """Runs the call; the future is done when this returns."""
        future: Future[Result] = Future()
        future.set_result(self._worker.execute(request))
        return future

    def close(self) -> None:
        """Nothing is left to end."""


class WorkerPool:
    """A `ToolPool` of spawned processes, which never see the parent's devices.

    A call over its time limit is killed with its worker, and the worker is replaced. Results are remembered by the
    request's key, and equal calls under way share one future.

    Args:
      config: Tools and back-ends.
      workers: Number of processes.
      timeout_s: Limit of one call in seconds; the first call of a tool in a worker also loads the tool's model.
      memory_limit_bytes: Ceiling of a worker's address space, or None.
      queue_size: Calls that may wait; `submit` blocks beyond it.
      memo_bytes: Ceiling of the remembered results, 0 to remember none.

    Raises:
      UnknownNameError, ImportError, ValueError: As `ToolsConfig.load`, before any worker starts.
    """

    def __init__(
        self,
        config: ToolsConfig,
        *,
        workers: int = 2,
        timeout_s: float = 30.0,
        memory_limit_bytes: int | None = None,
        queue_size: int = 64,
        memo_bytes: int = 64 * 2**20,
    ) -> None:
        config.load()
        self._memo: ByteCache[Result] = ByteCache(memo_bytes)
        self._under_way: dict[str, Future[Result]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: queue.Queue[ToolRequest] = queue.Queue(queue_size)
        pickled = pickle.dumps(config)
        self._slots = [WorkerSlot(pickled, timeout_s, memory_limit_bytes) for _ in range(workers)]
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in self._slots]
        for thread in self._threads:
            thread.start()

    def submit(self, request: ToolRequest) -> Future[Result]:
        """Queues a call; blocks while the bounded queue is full.

        Raises:
          RuntimeError: If the pool was closed.
        """
        if self._closed:
            raise RuntimeError("the pool of tool workers is closed")
        with self._lock:
            if request.key in self._under_way:
                return self._under_way[request.key]
            future: Future[Result] = Future()
            future.set_running_or_notify_cancel()
            result = self._memo.get(request.key)
            if result is not None:
                future.set_result(result)
                return future
            self._under_way[request.key] = future
        self._waiting.put(request)
        if self._closed:
            self._drop_waiting()
        return future

    def close(self) -> None:
        """Ends the workers; calls under way become `worker_lost`."""
        self._closed = True
        for slot in self._slots:
            slot.close()
        for thread in self._threads:
            thread.join()
        self._drop_waiting()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _serve(self, slot: WorkerSlot) -> None:
        # Of this thread: it starts the worker, and the threads that replace it later.
        with interrupts_blocked():
            while not self._closed:
                with contextlib.suppress(queue.Empty):
                    request = self._waiting.get(timeout=_CLOSE_CHECK_S)
                    self._finish(request.key, slot.run(request))

    def _drop_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                error = ToolError(code="worker_lost", message="the pool of tool workers was closed")
                self._finish(self._waiting.get_nowait().key, error)

    def _finish(self, key: str, result: Result) -> None:
        with self._lock:
            future = self._under_way.pop(key)
            if not (isinstance(result, ToolError) and result.code in OUTAGE_CODES):
                self._memo.put(key, result, _size(result))
        future.set_result(result)


def _size(result: Result) -> int:
    # Masks dominate; everything else is a few hundred bytes.
    regions = () if isinstance(result, ToolError) else result.regions
    return 1024 + sum(256 + (0 if region.mask is None else region.mask.nbytes) for region in regions)
