"""Work spread over processes, with results in the order of the work."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def chain_in_order(work: Callable[[Item], Sequence[Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields everything that `work` returns for each item, in the order of the items; 0 workers: in this process."""
    if workers == 0:
        for item in items:
            yield from work(item)
        return
    # Spawned: a fork would copy whatever device state the parent holds.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
        for results in executor.map(work, items):
            yield from results


def single_thread() -> None:
    """Initialiser of a worker: OpenCV takes one core, the other workers the others."""
    import cv2

    cv2.setNumThreads(1)
