"""How well the agent keeps a device and tools busy: both are simulated, the loop, the pipeline and the episodes are real.

The device sleeps for as long as a block would take, the tools answer after a delay. What is measured is the time of a run, over
the least that device and tools would take, and against the loop that waits for the slowest tool of a batch.
"""

import concurrent.futures
import dataclasses
import heapq
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelis_jax.encoding import Chunk, Encoder
from pixelis_jax.rollout.agent import Agent, Request
from pixelis_jax.rollout.engine import BlockResult, SlotOptions
from pixelis_jax.rollout.tracing import Tracer
from pixelis_jax.trajectory import Example, Source
from tools_host.config import ToolsConfig
from tools_host.protocol import ToolError, ToolOutput, ToolRequest

CALL = '<tool_call>\n{"name": "properties", "arguments": {"media": 1, "bbox_2d": [100, 200, 500, 600]}}\n</tool_call>'
ANSWER = "<answer>red</answer>"
TOOLS = ToolsConfig(tools=("properties",), boxes_in_text=False)

# A turn: its text, and the blocks that it takes to decode.
Turn = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulation:
    """One setting.

    Attributes:
      title: for the table.
      slots: sequences that are decoded together.
      workers: calls that run at a time.
      episodes: of `calls` calls each.
      calls: of an episode.
      blocks: fewest and most blocks of a turn.
      block_s: seconds of a block, whatever is decoded in it.
      slot_s: seconds that each slot adds to a block.
      delay_s: median seconds of a call.
      spread: sigma of the logarithm of its seconds; 0: all are equal.
      of_bound: goal: share of the bound, the larger of what device and tools take.
      over_batches: goal: times as fast as the loop that waits for all tools of a batch.
      idle: goal: most share of the time in which the device has nothing to do.
    """

    title: str
    slots: int
    workers: int
    episodes: int
    calls: int = 3
    blocks: tuple[int, int] = (1, 1)
    block_s: float = 0.0
    slot_s: float = 0.0
    delay_s: float
    spread: float = 0.0
    of_bound: float | None = None
    over_batches: float | None = None
    idle: float | None = None


# The mean of a lognormal with median 0.15 s and P99 2 s.
_SIGMA = float(np.log(2 / 0.15) / 2.3263478740408408)
_MEAN = float(0.15 * np.exp(_SIGMA**2 / 2))

SIMULATIONS = {
    # An episode of four turns and three calls costs the device 4 x 9.4 ms, and one of 16 workers 3 x 200 ms: both take as long.
    "constant": Simulation(
        title="tools 200 ms, device as long", slots=40, workers=16, episodes=640,
        slot_s=0.75 * 0.2 / 16, delay_s=0.2, of_bound=0.9,
    ),
    "heavy_tail": Simulation(
        title="tools lognormal, device their mean", slots=16, workers=16, episodes=96,
        blocks=(8, 8), block_s=_MEAN / 8, delay_s=0.15, spread=_SIGMA, over_batches=1.9,
    ),
    "idle": Simulation(
        title="tools 200 ms, blocks 100 ms", slots=16, workers=16, episodes=96,
        blocks=(1, 3), block_s=0.1, delay_s=0.2, idle=0.1,
    ),
}  # fmt: skip
"""Name -> simulation, of `pixelis bench rollout`."""


class SimulatedEngine:
    """The engine's protocol over a device that sleeps. Episodes follow their scripts in the order in which they begin."""

    def __init__(self, encoder: Encoder, scripts: Sequence[Sequence[Turn]], setting: Simulation, tracer: Tracer):
        """Allocates nothing.

        Args:
          encoder: gives the tokens of a turn.
          scripts: turns of each episode.
          setting: slots and times.
          tracer: takes the time that the device is busy.
        """
        self.slots, self.version = setting.slots, 0
        self._encoder, self._setting, self._tracer = encoder, setting, tracer
        self._scripts = [list(script) for script in scripts]
        self._begun = 0
        self._free = list(range(setting.slots))
        self._turns: dict[int, list[Turn]] = {}
        self._left: dict[int, int] = {}
        self._flight: tuple[float, float, tuple[int, ...]] | None = None
        self.device_s = 0.0

    @property
    def free_slots(self) -> int:
        """As `Engine`."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """As `Engine`."""
        return bool(self._left)

    def version_of(self, slot: int) -> int:
        """As `Engine`."""
        return 0

    def room(self, slot: int) -> int:
        """As `Engine`; there is always room."""
        return 1 << 20

    def layout(self, items: Sequence[tuple[int, Chunk]]) -> list[Any]:
        """As `Engine`."""
        return []

    def submit(self, prompt: Chunk, options: SlotOptions) -> int:
        """As `Engine`."""
        slot = self._free.pop(0)
        self._turns[slot] = self._scripts[self._begun]
        self._begun += 1
        self._left[slot] = self._turns[slot][0][1]
        return slot

    def extend(self, items: Sequence[tuple[int, Chunk]], prefills: Any = None) -> None:
        """As `Engine`."""
        for slot, _ in items:
            self._left[slot] = self._turns[slot][0][1]

    def release(self, slot: int) -> None:
        """As `Engine`."""
        self._left.pop(slot, None)
        self._free.append(slot)

    def begin(self) -> None:
        """Starts a block."""
        now = time.perf_counter()
        decoding = tuple(sorted(self._left))
        self._flight = now, now + self._setting.block_s + self._setting.slot_s * len(decoding), decoding

    def finish(self) -> list[BlockResult]:
        """Sleeps until the block is over."""
        assert self._flight is not None  # begin came before
        begin, end, decoding = self._flight
        time.sleep(max(0.0, end - time.perf_counter()))
        self._tracer.add("decode", "device", begin, end, slots=len(decoding))
        self.device_s += end - begin
        results = []
        for slot in decoding:
            if slot not in self._left:
                continue
            self._left[slot] -= 1
            if not self._left[slot]:
                del self._left[slot]
                text, _ = self._turns[slot].pop(0)
                ids = np.asarray(self._encoder.tokenizer.encode(text + "<|im_end|>"), np.int32)
                nothing = np.zeros(len(ids))
                results.append(
                    BlockResult(slot=slot, ids=ids, log_probs=nothing.astype(np.float32), forced=nothing > 0, ended="stop")
                )
        return results


class SimulatedPool:
    """Answers after delays that were drawn beforehand, at most `workers` calls at a time."""

    def __init__(self, delays: Iterable[float], workers: int):
        """Starts the clock's thread."""
        self._delays, self._idle = iter(delays), workers
        self._due: list[tuple[float, int, concurrent.futures.Future[ToolOutput | ToolError]]] = []
        self._waiting: list[concurrent.futures.Future[ToolOutput | ToolError]] = []
        self._changed = threading.Condition()
        self._closed, self._count = False, 0
        self.tool_s = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: ToolRequest | None) -> concurrent.futures.Future[ToolOutput | ToolError]:
        """Starts a call, or queues it."""
        future: concurrent.futures.Future[ToolOutput | ToolError] = concurrent.futures.Future()
        with self._changed:
            self._waiting.append(future)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting and self._idle:
                    delay = next(self._delays)
                    self.tool_s += delay
                    self._idle -= 1
                    self._count += 1
                    heapq.heappush(self._due, (time.perf_counter() + delay, self._count, self._waiting.pop(0)))
                now = time.perf_counter()
                done = []
                while self._due and self._due[0][0] <= now:
                    done.append(heapq.heappop(self._due)[2])
                    self._idle += 1
                if not done:
                    if self._closed:
                        return
                    self._changed.wait(self._due[0][0] - now if self._due else None)
            for future in done:
                future.set_result(ToolOutput(summary="red"))


def simulate(setting: Simulation, encoder: Encoder, tracer: Tracer | None = None) -> dict[str, Any]:
    """Runs a setting.

    Args:
      setting: what takes how long.
      encoder: of any policy.
      tracer: takes spans.

    Returns:
      Every figure, and whether the goals are met.
    """
    tracer = tracer or Tracer(on=True)
    random = np.random.default_rng(0)
    fewest, most = setting.blocks
    lengths = random.integers(fewest, most + 1, (setting.episodes, setting.calls + 1)).tolist()
    scripts = [[(CALL, n) for n in row[:-1]] + [(ANSWER, row[-1])] for row in lengths]
    delays = setting.delay_s * np.exp(setting.spread * random.standard_normal(setting.episodes * setting.calls))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path)
        engine = SimulatedEngine(encoder, scripts, setting, tracer)
        requests = [Request(example=_example(number, path), uris=(path.name,)) for number in range(setting.episodes)]
        pool = SimulatedPool(delays, setting.workers)
        agent = Agent(engine, encoder, pool, TOOLS, tracer=tracer)  # type: ignore[arg-type]
        began = time.perf_counter()
        ended = sum(episode.trajectory.stopped == "answer" for episode in agent.run(requests))
        seconds = time.perf_counter() - began
        pool.close()
    assert ended == setting.episodes
    bound = max(engine.device_s, pool.tool_s / setting.workers)
    row: dict[str, Any] = {
        "title": setting.title,
        "setting": dataclasses.asdict(setting),
        "seconds": seconds,
        "device_s": engine.device_s,
        "tool_s_a_worker": pool.tool_s / setting.workers,
        "of_bound": bound / seconds,
        "idle": 1 - tracer.busy("device") / seconds,
    }
    if setting.over_batches is not None:
        row["batches_s"] = _in_batches(setting, encoder, scripts, delays)
        row["over_batches"] = row["batches_s"] / seconds
    goals: dict[str, Callable[[float, float], bool]] = {
        "of_bound": lambda found, goal: found >= goal,
        "over_batches": lambda found, goal: found >= goal,
        "idle": lambda found, goal: found <= goal,
    }
    row["met"] = all(
        reach(row[name], getattr(setting, name)) for name, reach in goals.items() if getattr(setting, name) is not None
    )
    return row


def _in_batches(setting: Simulation, encoder: Encoder, scripts: Sequence[Sequence[Turn]], delays: np.ndarray) -> float:
    """Seconds of the loop that decodes a batch until all turns have ended, then waits for all of its tools, run in parallel."""
    engine = SimulatedEngine(encoder, scripts, setting, Tracer())
    pool = SimulatedPool(delays, setting.workers)
    prompt: Any = None
    options: Any = None
    began = time.perf_counter()
    for first in range(0, setting.episodes, setting.slots):
        count = min(setting.slots, setting.episodes - first)
        slots = [engine.submit(prompt, options) for _ in range(count)]
        for turn in range(setting.calls + 1):
            while engine.busy:
                engine.begin()
                engine.finish()
            if turn < setting.calls:
                concurrent.futures.wait([pool.submit(None) for _ in slots])
                engine.extend([(slot, prompt) for slot in slots])
        for slot in slots:
            engine.release(slot)
    seconds = time.perf_counter() - began
    pool.close()
    return seconds


def _example(number: int, path: Path) -> Example:
    return Example(
        id=f"episode-{number}",
        question="What colour is it?",
        media=(str(path),),
        verifier="exact",
        truth="red",
        source=Source(dataset="simulation"),
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Simulations: a line each."""
    head = f"{'simulated':38}{'seconds':>9}{'device':>9}{'tools':>9}{'of bound':>10}{'idle':>8}{'/ batches':>11}{'goals met':>11}"
    lines = [head]
    for row in rows:
        batches = f"{row['over_batches']:.2f}" if "over_batches" in row else "-"
        lines.append(
            f"{row['title']:38}{row['seconds']:>9.1f}{row['device_s']:>9.1f}{row['tool_s_a_worker']:>9.1f}"
            f"{row['of_bound']:>10.2f}{row['idle']:>8.2f}{batches:>11}{'yes' if row['met'] else 'no':>11}"
        )
    return "\n".join(lines)
