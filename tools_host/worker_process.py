"""Start of a spawned worker. Thread counts are set before any numerical library is imported, which reads them then."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

from tools_host.process_life import end_with_parent

if TYPE_CHECKING:
    from tools_host.protocol import ToolError, ToolOutput, ToolRequest
    from tools_host.worker import Worker

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_worker: Worker | None = None
_failure = ""


def start(pickled_config: bytes, memory_limit_bytes: int | None) -> None:
    """Prepares the process: one thread, a memory limit, tools imported.

    A failure is kept and told by every call: if a worker ended here, the pool would start the next one for ever.

    Args:
      pickled_config: A `ToolsConfig`, pickled by the caller because unpickling it imports libraries.
      memory_limit_bytes: Ceiling of the address space, or None.
    """
    global _worker, _failure
    end_with_parent()
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    try:
        if memory_limit_bytes is not None:
            _limit_memory(memory_limit_bytes)
        _worker = _make_worker(pickled_config)
    except Exception as error:
        _failure = f"{type(error).__name__}: {error}"


def execute(request: ToolRequest) -> ToolOutput | ToolError:
    """Runs one call in this process."""
    from tools_host.protocol import ToolError

    if _worker is None:
        return ToolError(code="worker_lost", message=f"the worker could not start: {_failure}")
    return _worker.execute(request)


def _make_worker(pickled_config: bytes) -> Worker:
    import cv2

    from tools_host.worker import Worker

    cv2.setNumThreads(1)
    return Worker(pickle.loads(pickled_config))


def _limit_memory(limit_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
