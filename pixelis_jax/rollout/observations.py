"""Completed calls to prefills, while the device decodes: a Grain pipeline over a live queue.

Calls enter in the order in which their tools finish. All that have finished by then, at most `most`, make one batch, so a
partial batch never waits and a slow tool holds up nobody else. Batches leave in the order in which they were made: the stages
run in one thread, and what comes out is a function of the order of completion. At most one call of a slot is under way, so the
queue holds at most as many calls as there are slots.

A live queue cannot be rewound. The pipeline's state names the calls that were submitted and whose observations were not yet
taken; who restores it submits them again (`Agent.state`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grain

Call = TypeVar("Call")
Ready = TypeVar("Ready")

_END: Any = object()


class CompletedCalls(grain.IterDataset[list[Call]]):
    """The source: lists of calls that have completed."""

    def __init__(self, most: int):
        super().__init__()
        self._most = most
        self._queue: queue.SimpleQueue[Call] = queue.SimpleQueue()

    def put(self, call: Call) -> None:
        """Adds a completed call; any thread may."""
        self._queue.put(call)

    def close(self) -> None:
        """Lets the iterator end behind what it holds."""
        self._queue.put(_END)

    def __iter__(self) -> grain.DatasetIterator[list[Call]]:
        return _CompletedCallsIterator(self._queue, self._most)


class _CompletedCallsIterator(grain.DatasetIterator[list[Call]]):
    def __init__(self, calls: queue.SimpleQueue[Call], most: int):
        super().__init__()
        self._queue, self._most = calls, most
        self._taken, self._ended = 0, False

    def __next__(self) -> list[Call]:
        if self._ended:
            raise StopIteration
        batch = [self._queue.get()]
        while len(batch) < self._most and batch[-1] is not _END:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        if batch[-1] is _END:
            self._ended = True
            batch.pop()
            if not batch:
                raise StopIteration
        self._taken += len(batch)
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]


class ObservationPipeline(Generic[Call, Ready]):
    """Encodes completed calls, pads them to buckets, and puts them on the device, in a thread of its own."""

    def __init__(self, *, encode: Callable[[Call], Ready], lay_out: Callable[[list[Ready]], Any], most: int):
        """Starts the thread.

        Args:
          encode: a completed call -> its observation as tokens: decode, resize, normalise, patchify.
          lay_out: observations -> padded arrays on the device.
          most: calls of one batch.
        """
        self._source: CompletedCalls[Call] = CompletedCalls(most)
        dataset = self._source.map(lambda calls: [encode(call) for call in calls])
        self._iterator = iter(dataset.map(lambda batch: (batch, lay_out(batch))))
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pump, name="observations", daemon=True)
        self._pending: dict[str, None] = {}
        self._lock = threading.Lock()
        self._thread.start()

    def expect(self, name: str) -> None:
        """Notes a call that was submitted to its tool."""
        with self._lock:
            self._pending[name] = None

    def put(self, call: Call) -> None:
        """Adds a completed call; any thread may."""
        self._source.put(call)

    def take(self, *, block: bool) -> list[tuple[list[Ready], Any]]:
        """Returns the batches that are ready, perhaps none; `block` waits for one.

        Raises:
          Exception: what a stage raised.
        """
        batches = []
        while block or not self._ready.empty():
            item = self._ready.get()
            block = False
            if isinstance(item, BaseException):
                raise item
            batches.append(item)
        return batches

    def taken(self, name: str) -> None:
        """Notes that a call's observation has reached its episode."""
        with self._lock:
            self._pending.pop(name, None)

    def state(self) -> dict[str, Any]:
        """Returns the names of the calls that were submitted and whose observations were not yet taken."""
        with self._lock:
            return {"pending": list(self._pending)}

    def close(self) -> None:
        """Ends the thread; observations that nobody took are lost."""
        self._source.close()
        self._thread.join()

    def _pump(self) -> None:
        try:
            for item in self._iterator:
                self._ready.put(item)
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self._ready.put(error)
