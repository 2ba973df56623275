"""What the rollout engine promises, on episodes of a shipped policy: exactness, no wasted prefill, no compilation.

    python experiments/rollout_checks.py episodes --out=runs/rollout --json=FILE
    python experiments/rollout_checks.py slots --out=runs/rollout --json=FILE
    python experiments/rollout_checks.py soak --out=runs/rollout --json=FILE --episodes=10000

`episodes`: groups of 8 over mixed media with real tools; prefilled tokens over those that had to be, compilations after warm-up,
and the sampled log-probs against the trainer's. `slots`: the same requests with tools slowed at random and neighbours shuffled at
7 slots, bit for bit, then at 1 and 32 slots. `soak`: simulated tools with injected faults; resident memory, and how episodes end.
"""

import argparse
import collections
import concurrent.futures
import json
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from flax import nnx
from ml_collections import ConfigDict

from pixelis_jax.commands import models
from pixelis_jax.commands.eval import build_examples
from pixelis_jax.data.examples import encode_record
from pixelis_jax.data.pipeline import Bucket, make_batch
from pixelis_jax.data.supervised import show
from pixelis_jax.rollout.agent import Agent, Episode, EpisodeLimits, Request, banned_ids, make_engine
from pixelis_jax.rollout.tracing import Compilations
from pixelis_jax.training import sft
from pixelis_jax.training.log_probs import token_log_probs
from pixelis_jax.trajectory import ACTION_ROLES, Example
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore
from tools_host.pool import WorkerPool
from tools_host.protocol import ToolError, ToolOutput, ToolPool, ToolRequest

MODEL = "tiny_sft"
FAMILIES = ("read", "shape", "angle", "where", "blink", "cut", "flash_read", "flash_shape", "follow_read")


class SlowedPool:
    """A pool whose answers come up to `most_s` later, by chance."""

    def __init__(self, pool: ToolPool, most_s: float):
        self._pool, self._most, self._random = pool, most_s, random.Random(0)

    def submit(self, request: ToolRequest) -> concurrent.futures.Future[ToolOutput | ToolError]:
        late: concurrent.futures.Future[ToolOutput | ToolError] = concurrent.futures.Future()
        delay = self._random.uniform(0, self._most)

        def done(future: concurrent.futures.Future[ToolOutput | ToolError]) -> None:
            threading.Timer(delay, lambda: late.set_result(future.result())).start()

        self._pool.submit(request).add_done_callback(done)
        return late

    def close(self) -> None:
        """The inner pool belongs to the caller."""


class FaultyPool:
    """Answers without running anything: mostly with text, sometimes with an error, rarely late."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        self.faults: collections.Counter[str] = collections.Counter()

    def submit(self, request: ToolRequest) -> concurrent.futures.Future[ToolOutput | ToolError]:
        future: concurrent.futures.Future[ToolOutput | ToolError] = concurrent.futures.Future()
        draw = self._random.random()
        fault = "none"
        output: ToolOutput | ToolError = ToolOutput(summary="nothing stands out")
        for limit, code in ((0.03, "timeout"), (0.06, "worker_lost"), (0.08, "out_of_memory"), (0.10, "unreadable")):
            if draw < limit:
                fault, output = code, ToolError(code=code, message="injected", hint="try again")
                break
        else:
            if draw < 0.15:
                fault, output = "long", ToolOutput(summary="more and more words " * 60)
        self.faults[fault] += 1
        if draw > 0.98:
            threading.Timer(0.05, future.set_result, [output]).start()
        else:
            future.set_result(output)
        return future

    def close(self) -> None:
        """There is nothing to close."""


def main() -> None:
    """Runs one check and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--out", type=Path, required=True, help="where the questions are built")
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--episodes", type=int, default=504, help="episodes (default: 504)")
    parser.add_argument("--slots", type=int, default=16, help="slots of `episodes` and `soak` (default: 16)")
    args = parser.parse_args()
    began = time.monotonic()
    result = CHECKS[args.check](args)
    record = {"study": "rollout", "check": args.check, "command": " ".join(["python", *sys.argv]), "model": MODEL}
    record |= {"jax": jax.__version__, "machine": platform.machine(), **result, "wall_time_s": round(time.monotonic() - began)}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def check_episodes(args: argparse.Namespace) -> dict[str, Any]:
    """Groups of 8 at temperature 1."""
    loaded, examples, tools = _load(args.out)
    requests = [_request(example, sample=n) for example in examples for n in range(8)][: args.episodes]
    engine = make_engine(loaded.model, loaded.encoder, slots=args.slots, capacity=loaded.encoder.prompt.context)
    engine.warm_up()
    with WorkerPool(tools, workers=1) as pool:
        agent = Agent(engine, loaded.encoder, pool, tools)
        compilations = Compilations()
        began = time.monotonic()
        episodes = list(agent.run(requests))
        seconds = time.monotonic() - began
    compiled = compilations.count
    prompts = {episode.request.example.id: _lengths(episode)[0] for episode in episodes}
    needed = sum(prompts.values()) + sum(_lengths(episode)[1] for episode in episodes)
    counters = engine.counters
    differences = np.concatenate(list(_differences(episodes, loaded)))
    return {
        "episodes": len(episodes),
        "groups": len(prompts),
        "steps": sum(len(episode.trajectory.steps) for episode in episodes),
        "images_and_clips": collections.Counter(medium.kind for episode in episodes for medium in episode.trajectory.media),
        "seconds": seconds,
        "prefill_tokens": counters.prefill_tokens,
        "unique_tokens": needed,
        "prefill_ratio": counters.prefill_tokens / needed,
        "compilations": compiled,
        "decoded": counters.decoded,
        "occupancy": counters.active / counters.blocks / args.slots,
        "log_probs": {
            "tokens": len(differences),
            "max": float(differences.max()),
            "p99.9": float(np.quantile(differences, 0.999)),
        },
    }


def check_slots(args: argparse.Namespace) -> dict[str, Any]:
    """The same requests in other company."""
    loaded, examples, tools = _load(args.out)
    requests = [_request(example, sample=n) for example in examples for n in range(3)][: args.episodes]
    shuffled = random.Random(1).sample(requests, len(requests))
    runs: dict[str, dict[str, Episode]] = {}
    with WorkerPool(tools, workers=1) as pool:
        for name, slots, order, slowed in (
            ("7", 7, requests, 0.0),
            ("7, slowed and shuffled", 7, shuffled, 0.3),
            ("1", 1, requests, 0.0),
            ("32", 32, requests, 0.0),
        ):
            engine = make_engine(loaded.model, loaded.encoder, slots=slots, capacity=loaded.encoder.prompt.context)
            agent = Agent(engine, loaded.encoder, SlowedPool(pool, slowed) if slowed else pool, tools)
            runs[name] = {episode.request.id: episode for episode in agent.run(order)}
            print(f"{name} slots: {len(runs[name])} episodes", file=sys.stderr, flush=True)
    base = runs["7"]
    return {
        "episodes": len(base),
        "against_7_slots": {name: _compare(base, other) for name, other in runs.items() if name != "7"},
    }


def check_soak(args: argparse.Namespace) -> dict[str, Any]:
    """Many episodes with faults."""
    loaded, examples, tools = _load(args.out)
    engine = make_engine(loaded.model, loaded.encoder, slots=args.slots, capacity=260)
    engine.warm_up()
    pool, process = FaultyPool(), psutil.Process()
    limits = EpisodeLimits(max_steps=3, max_turn_tokens=40)
    agent = Agent(engine, loaded.encoder, pool, tools, limits=limits)
    ends: collections.Counter[str] = collections.Counter()
    resident: list[tuple[int, int]] = []

    def requests() -> Iterator[Request]:
        for number in range(args.episodes):
            yield _request(examples[number // 4 % len(examples)], sample=number, temperature=1.5)

    for episode in agent.run(requests()):
        ends[episode.trajectory.stopped] += 1
        if (count := ends.total()) % max(1, args.episodes // 100) == 0:
            resident.append((count, process.memory_info().rss))
            print(f"{count} episodes, {resident[-1][1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    middle = next(size for count, size in resident if count >= args.episodes / 2)
    return {
        "episodes": ends.total(),
        "stopped": ends,
        "faults": pool.faults,
        "resident_mib": [[count, round(size / 2**20, 1)] for count, size in resident],
        "second_half_growth": max(size for count, size in resident if count >= args.episodes / 2) / middle - 1,
    }


CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "episodes": check_episodes,
    "slots": check_slots,
    "soak": check_soak,
}


def _load(out: Path) -> tuple[models.Loaded, list[Example], ToolsConfig]:
    loaded = models.load(MODEL)
    examples = build_examples(out / "data", "test", dict.fromkeys(FAMILIES, 7), workers=2)
    return loaded, examples, ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)


def _request(example: Example, *, sample: int, temperature: float = 1.0) -> Request:
    return Request(example=example, sample=sample, temperature=temperature)


def _lengths(episode: Episode) -> tuple[int, int]:
    """Tokens of the prompt, and of all observations."""
    sampled = episode.tokens.policy_step >= 0
    first = int(np.argmax(sampled)) if sampled.any() else len(sampled)
    return first, int((~sampled[first:]).sum())


def _differences(episodes: Sequence[Episode], loaded: models.Loaded) -> Iterator[np.ndarray]:
    """Sampled log-probs against those that training computes of the same tokens, by one forward pass over each trajectory."""
    encoder, store = loaded.encoder, MediaStore(2**28)
    banned = np.isin(np.arange(encoder.model.text.vocab_size), banned_ids(encoder))
    channels = encoder.processing
    pixels = ConfigDict({"mean": tuple(channels.mean), "std": tuple(channels.std)})
    graph, params = nnx.split(loaded.model)

    @jax.jit
    def recompute(params: Any, batch: Any) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden, _ = sft.encode(model, batch, pixels)
        return token_log_probs(model, hidden[:, :-1], batch.ids[:, 1:], banned, chunk=256, vocab_chunk=2048)

    for episode in episodes:
        _, thumbnails = show(episode.trajectory, Path("/"), encoder, store)
        example = encode_record(episode.tokens, thumbnails, encoder)
        count = len(example["ids"])
        tokens, frames = (-(-len(example[name]) // step) * step for name, step in (("ids", 128), ("grid", 8)))
        bucket = Bucket(rows=1, tokens=tokens, frames=frames, patches=encoder.prompt.patch_bucket, calls=1, weighted=count)
        batch = make_batch([example], bucket, encoder.model.vision.patch_size)
        found = np.asarray(recompute(params, batch))[0, : count - 1]
        sampled = np.isin(episode.tokens.roles, ACTION_ROLES)[1:]
        yield np.abs(found - episode.tokens.log_probs[1:])[sampled]


def _compare(base: dict[str, Episode], other: dict[str, Episode]) -> dict[str, Any]:
    """How many trajectories are the same, and how far log-probs of the same tokens are apart."""
    identical, to_the_bit, apart = 0, 0, 0.0
    for name, one in base.items():
        two = other[name]
        same = np.array_equal(one.tokens.ids, two.tokens.ids)
        identical += same
        to_the_bit += same and np.array_equal(one.tokens.log_probs, two.tokens.log_probs)
        if same:
            apart = max(apart, float(np.abs(one.tokens.log_probs - two.tokens.log_probs).max()))
    return {"identical": identical, "to_the_bit": to_the_bit, "of": len(base), "log_probs_apart": apart}


if __name__ == "__main__":
    main()
