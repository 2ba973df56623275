"""Runs both contestants of a work in processes of their own, taking turns, and compares what they took."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.evaluation.statistics import median_interval
from pixelis_jax.speed.work import Work, make_examples

SIDES = ("ours", "theirs")

# For both sides, as `make demo` sets it: large blocks are kept, on large pages (docs/training.md). One arena, because glibc maps
# and unmaps what is larger than the heap of any other.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Another allocator, in glibc's place, and what it is told.
_OTHERS = ("LD_PRELOAD", "MALLOC_CONF")

_CHECKED_STEPS = 3
# The losses of the first steps may differ by rounding alone.
_TOLERANCE = 1e-3


class ContestantError(Exception):
    """A contestant's process has died, or the two do not compute the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a work took, per repetition; seconds of wall clock and of processor time of all threads.

    Attributes:
      seconds: side -> seconds of each repetition.
      processor_seconds: side -> processor time of each repetition.
      values: side -> losses of the first steps, or the sum of the prefill's logits: equal up to rounding.
      memory: side -> peak bytes above what weights and libraries take; empty where it cannot be measured.
      layout: side -> rows and tokens with padding.
      versions: package -> version.
      stages: side -> part of a step -> seconds and processor seconds of each repetition; empty unless asked for.
      roofline: what a decoding step takes at least on this machine, in seconds, by what limits it; empty for other tasks.
    """

    seconds: dict[str, list[float]]
    processor_seconds: dict[str, list[float]]
    values: dict[str, list[float]]
    memory: dict[str, int]
    layout: dict[str, dict[str, int]]
    versions: dict[str, str]
    stages: dict[str, dict[str, list[tuple[float, float]]]]
    roofline: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Their time over ours, repetition by repetition."""
        return [theirs / ours for ours, theirs in zip(self.seconds["ours"], self.seconds["theirs"], strict=True)]

    @property
    def ratio(self) -> float:
        """Median of `ratios`."""
        return float(np.median(self.ratios))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `ratio`."""
        return median_interval(self.ratios)

    @property
    def memory_ratio(self) -> float | None:
        """Our peak memory over theirs."""
        return self.memory["ours"] / self.memory["theirs"] if self.memory else None


def compare(work: Work, *, repetitions: int, threads: int, stages: bool = False) -> Comparison:
    """Measures a work.

    Args:
      work: what both sides do.
      repetitions: turns of each side.
      threads: of each side, alone on as many processors.
      stages: also time the parts of a step.

    Returns:
      What was measured.

    Raises:
      ContestantError: a process died, or the two sides' losses are not equal.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        maker = context.Process(target=_make, args=(work, folder))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise ContestantError(f"the weights for {work.title!r} could not be made")
        players = {side: stack.enter_context(_player(context, side, work, folder, threads)) for side in SIDES}
        values = {side: [players[side].ask("step")[2] for _ in range(_CHECKED_STEPS)] for side in SIDES}
        _check_equal(values)
        timed: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for repetition in range(repetitions):
            for side in SIDES if repetition % 2 else SIDES[::-1]:
                timed[side].append(players[side].ask("step")[:2])
        parts = _time_stages(players, repetitions) if stages else {}
        roofline = players["ours"].ask("roofline") if work.task == "decode" else {}
        memory = {side: players[side].ask("memory") for side in SIDES}
        about = {side: players[side].ask("about") for side in SIDES}
    return Comparison(
        seconds={side: [wall for wall, _ in timed[side]] for side in SIDES},
        processor_seconds={side: [processor for _, processor in timed[side]] for side in SIDES},
        values=values,
        memory={} if None in memory.values() else memory,
        layout={side: about[side][0] for side in SIDES},
        versions={package: version for side in SIDES for package, version in about[side][1].items()},
        stages=parts,
        roofline=roofline,
    )


@dataclasses.dataclass(frozen=True)
class _Player:
    side: str
    connection: Connection

    def ask(self, *request: str) -> Any:
        try:
            self.connection.send(request)
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise ContestantError(f"the process of {self.side} has died; it may have run out of memory") from error


@contextlib.contextmanager
def _player(context: Any, side: str, work: Work, folder: str, threads: int) -> Iterator[_Player]:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, side, work, folder, threads), daemon=True)
    with _environment(ALLOCATOR):
        process.start()
    there.close()
    player = _Player(side, here)
    try:
        player.ask("ready")
        yield player
    finally:
        here.close()
        process.join(10)
        process.kill()


def allocator() -> dict[str, str]:
    """What decides where the memory of both sides comes from: `ALLOCATOR`, and what the caller has set."""
    return ALLOCATOR | {name: os.environ[name] for name in (*ALLOCATOR, *_OTHERS) if name in os.environ}


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Sets what is not set, for processes that start inside."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _check_equal(values: dict[str, list[float]]) -> None:
    ours, theirs = (np.array(values[side]) for side in SIDES)
    if not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ContestantError(f"the two sides do not compute the same: {ours.tolist()} and {theirs.tolist()}")


def _time_stages(players: dict[str, _Player], repetitions: int) -> dict[str, dict[str, list[tuple[float, float]]]]:
    names = [players[side].ask("stages") for side in SIDES][0]
    times: dict[str, dict[str, list[tuple[float, float]]]] = {side: {name: [] for name in names} for side in SIDES}
    for repetition in range(repetitions + 1):
        for name in names:
            for side in SIDES:
                seconds = players[side].ask("stage", name)
                if repetition:  # the first one compiles
                    times[side][name].append(seconds)
    return times


def _make(work: Work, folder: str) -> None:
    """Writes weights and examples; runs in a process of its own, whose memory goes with it."""
    from flax import nnx

    from pixelis_jax.data.records import write_records
    from pixelis_jax.policy import Qwen3VL, weights

    model = Qwen3VL(work.model, rngs=nnx.Rngs(0))
    if work.task == "decode":  # spreads the logits, so that rounding does not decide which token is the most probable
        model.decoder.embedding[...] = model.decoder.embedding[...] * 8
    weights.save(model, f"{folder}/model")
    write_records(f"{folder}/examples.array_record", make_examples(work))


def _serve(connection: Connection, side: str, work: Work, folder: str, threads: int) -> None:
    """Answers requests until the other end is closed."""
    if hasattr(os, "sched_setaffinity"):  # XLA starts a thread for each processor that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from pixelis_jax.data.records import RecordSource
    from pixelis_jax.speed import memory

    module = importlib.import_module(f"pixelis_jax.speed.{side}{'_decoding' if work.task == 'decode' else ''}")
    source = RecordSource(Path(folder) / "examples.array_record")
    contestant = module.Contestant(work, f"{folder}/model", threads)
    baseline = memory.resident() if memory.supported() else 0
    contestant.prepare(source.read(range(len(source))))
    stages: dict[str, Any] = {}
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        if request == "ready":
            answer: Any = True
        elif request == "step":
            answer = _timed(contestant.step)
        elif request == "stages":
            stages = contestant.stages()
            answer = list(stages)
        elif request == "stage":
            answer = _timed(stages[arguments[0]])[:2]
        elif request == "roofline":
            answer = contestant.roofline()
        elif request == "memory":
            answer = _peak(contestant.step, baseline) if memory.supported() else None
        else:
            answer = contestant.describe(), {package: importlib.metadata.version(package) for package in module.PACKAGES}
        connection.send(answer)


def _timed(run: Any) -> tuple[float, float, Any]:
    processor, wall = time.process_time(), time.perf_counter()
    value = run()
    seconds = time.perf_counter() - wall, time.process_time() - processor
    if isinstance(value, tuple):  # only a part of what ran is to be compared
        return value[0], seconds[1], value[1]
    return *seconds, value if isinstance(value, float) else None


def _peak(run: Any, baseline: int) -> int:
    """Most memory during two steps, above the baseline."""
    from pixelis_jax.speed import memory

    memory.reset_peak()
    for _ in range(2):
        run()
    return memory.peak() - baseline
