"""Spans and counters of a rollout, in the trace format that Perfetto and chrome://tracing open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from jax import monitoring

TRACKS = ("device", "host", "pipeline", "tool")


class Tracer:
    """Collects events when it is on; costs next to nothing when it is off. Any thread may use it."""

    def __init__(self, *, on: bool = False, most_events: int = 1_000_000):
        """Starts the clock; behind `most_events`, events are dropped and counted."""
        self.on = on
        self._start = time.perf_counter()
        self._events: list[dict[str, Any]] = []
        self._most, self._dropped = most_events, 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def span(self, name: str, track: str, **about: Any) -> Iterator[None]:
        """Times what happens inside, on one of `TRACKS`."""
        if not self.on:
            yield
            return
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, track, begin, time.perf_counter(), **about)

    def add(self, name: str, track: str, begin: float, end: float, *, lane: int = 0, **about: Any) -> None:
        """Adds a span that was timed elsewhere, in seconds of `time.perf_counter`; `lane` tells apart what overlaps."""
        if self.on:
            self._append(
                {
                    "name": name, "ph": "X", "ts": 1e6 * (begin - self._start), "dur": 1e6 * (end - begin),
                    "tid": 1000 * TRACKS.index(track) + lane, "args": about,
                }
            )  # fmt: skip

    def count(self, name: str, value: float) -> None:
        """Adds a point of a curve."""
        if self.on:
            now = 1e6 * (time.perf_counter() - self._start)
            self._append({"name": name, "ph": "C", "ts": now, "tid": 0, "args": {name: value}})

    def busy(self, track: str) -> float:
        """Seconds that spans of a track cover; those that overlap count once."""
        with self._lock:
            spans = [event for event in self._events if event["ph"] == "X" and event["tid"] // 1000 == TRACKS.index(track)]
        total, reached = 0.0, float("-inf")
        for event in sorted(spans, key=lambda event: event["ts"]):
            begin, end = event["ts"], event["ts"] + event["dur"]
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total / 1e6

    def save(self, path: epath.PathLike) -> None:
        """Writes the events as one JSON file, whole or not at all."""
        with self._lock:
            events = [{"pid": 1, **event} for event in self._events]
        lanes = sorted({event["tid"] for event in events if event["ph"] == "X"})
        labels = [f"{TRACKS[lane // 1000]} {lane % 1000}" for lane in lanes]
        names = [
            {"pid": 1, "ph": "M", "name": "thread_name", "tid": lane, "args": {"name": label}}
            for lane, label in zip(lanes, labels, strict=True)
        ]
        path = epath.Path(path)
        partial = path.parent / f".{path.name}.partial-{os.getpid()}"
        partial.write_text(json.dumps({"traceEvents": names + events, "otherData": {"dropped": self._dropped}}))
        partial.replace(path)

    def _append(self, event: dict[str, Any]) -> None:
        with self._lock:
            if len(self._events) < self._most:
                self._events.append(event)
            else:
                self._dropped += 1


class Compilations:
    """Counts what XLA compiles in this process from now on; a program that the cache on disk has counts too."""

    def __init__(self) -> None:
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
