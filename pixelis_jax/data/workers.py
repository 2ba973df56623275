"""Work spread over processes, with results in the order of the work."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from tools_host.process_life import end_with_parent, interrupts_blocked

Item = TypeVar("Item")
Result = TypeVar("Result")


def chain_in_order(work: Callable[[Item], Sequence[Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields everything that `work` returns for each item, in the order of the items; 0 workers: in this process."""
    if workers == 0:
        for item in items:
            yield from work(item)
        return
    with process_pool(workers) as executor:
        for results in executor.map(work, items):
            yield from results


@contextlib.contextmanager
def process_pool(workers: int, *, initializer: Callable[[], None] | None = None) -> Iterator[concurrent.futures.Executor]:
    """Spawned processes (a fork would copy whatever device state the parent holds) for the length of a block.

    A block that ends early, by an error or Ctrl-C, ends them at once: what they are still at is of no use to anybody.
    """
    context = multiprocessing.get_context("spawn")
    executor = _Executor(workers, mp_context=context, initializer=_start, initargs=(initializer,))
    try:
        yield executor
    except BaseException:
        # `terminate_workers` comes with Python 3.14; until then only this attribute knows them.
        under_way = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in under_way:
            process.terminate()
        raise
    executor.shutdown()


def single_thread() -> None:
    """Initialiser of a worker: OpenCV takes one core, the other workers the others."""
    import cv2

    cv2.setNumThreads(1)


class _Executor(concurrent.futures.ProcessPoolExecutor):
    """Starts its processes, which it does when work comes in, where Ctrl-C does not reach them."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **keywords: Any) -> concurrent.futures.Future[Any]:
        with interrupts_blocked():
            return super().submit(work, *args, **keywords)


def _start(initializer: Callable[[], None] | None) -> None:
    end_with_parent()
    if initializer is not None:
        initializer()
