"""What the memory promises: that it finds the nearest among many keys in little time, and that a killed writer loses nothing.

    python experiments/memory_checks.py recall --json=FILE --keys=1000000
    python experiments/memory_checks.py kills --json=FILE --points=200

`recall`: keys from a mixture of clusters (about 200 keys each, cosine 0.55 within one); recall at 8 against comparing with every
key, time to build, resident memory, time of a search while keys come and go, and the cache on disk.

`kills`: a writer on a full store, which adds, evicts and changes values, is killed (SIGKILL) at random moments, half of them
counted from its start and half from its first transaction, writing of the index's cache included. After each the store must be
what was acknowledged, or that and one transaction more, and the index must have its ids.
"""

import argparse
import json
import os
import platform
import random
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pixelis_jax.memory import Index, IndexConfig, Memory, MemoryConfig, Record, Shown, Stamp
from pixelis_jax.memory.store import StoredKeys
from pixelis_jax.trajectory import Final, Source, Step, TokenRecord, Trajectory
from tools_host.protocol import Observation, ToolCall

K = 8
CLUSTER = 200  # keys in one
COSINE = 0.55
GIB = 2**30


def main() -> None:
    """Runs one check and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--keys", type=int, default=50_000, help="`recall`: how many (default: 50,000)")
    parser.add_argument("--dim", type=int, default=512, help="`recall`: numbers of a key (default: 512)")
    parser.add_argument("--queries", type=int, default=500, help="`recall`: how many (default: 500)")
    parser.add_argument("--points", type=int, default=200, help="`kills`: how many (default: 200)")
    parser.add_argument("--records", type=int, default=5000, help="`kills`: records of the store (default: 5,000)")
    parser.add_argument("--early", action="store_true", help="`kills`: acknowledge before the commit; the check must then fail")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    record = {"study": "memory", "check": args.check, "command": " ".join(["python", *sys.argv]), "seed": args.seed}
    record |= {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        **CHECKS[args.check](args),
    }
    record["wall_time_s"] = round(time.monotonic() - began)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def check_recall(args: argparse.Namespace) -> dict[str, Any]:
    """One index, built, searched, changed and saved."""
    clusters = max(1, args.keys // CLUSTER)
    mixture = Mixture(clusters, args.dim, args.seed)
    keys = mixture.draw(args.keys)
    queries = mixture.draw(args.queries)
    stored = StoredKeys(ids=np.arange(args.keys), keys=keys, stamp=Stamp(store="recall", memory_seq=1, state="recall"))
    with Resident() as resident:
        began = time.monotonic()
        index = Index.of(stored, IndexConfig())
        build_s = time.monotonic() - began
    found, times = searched(index, queries)
    result = {
        "keys": args.keys,
        "dim": args.dim,
        "clusters": clusters,
        "cosine_within": mixture.within(),
        "index": {"approximate": index.approximate, **vars_of(index.config)},
        "build_s": build_s,
        "recall_at_8": recall(found, exact(keys, np.arange(args.keys), queries)),
        "search_ms": quantiles(times),
    }
    # Keys come and go: each search stands between an insertion and a removal.
    steps = 2 * args.queries
    fresh, gone = mixture.draw(steps), np.random.default_rng(args.seed).permutation(args.keys)[:steps]
    times, changes = [], []
    with Resident() as changing:
        for step in range(steps):
            began = time.perf_counter()
            index.add(args.keys + step, fresh[step])
            index.remove(int(gone[step]))
            changes.append(time.perf_counter() - began)
            times += searched(index, queries[step % args.queries][None])[1]
    found, _ = searched(index, queries)
    ids = np.array(sorted(index.ids))
    now = np.concatenate([np.delete(keys, gone, axis=0), fresh]) if args.keys <= 200_000 else None
    result |= {
        "changes": 2 * steps,
        "change_ms": quantiles([t / 2 for t in changes]),
        "search_while_changing_ms": quantiles(times),
    }
    result["removed_returned"] = len(set(gone.tolist()) & set(found.ravel().tolist()))
    if now is not None:
        result["recall_at_8_after"] = recall(found, exact(now, ids, queries))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        index.save(Path(folder) / "index", stored.stamp)
        result["save_s"] = time.monotonic() - began
        result["saved_gib"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / GIB
    result["resident_gib"] = {"before": resident.before / GIB, "most": max(resident.most, changing.most) / GIB}
    return result


class Mixture:
    """Unit vectors around random centres."""

    def __init__(self, clusters: int, dim: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._centres = self._unit(self._random.standard_normal((clusters, dim), np.float32))

    def draw(self, count: int) -> np.ndarray:
        """Returns keys, float32 `[count, dim]`."""
        clusters, dim = self._centres.shape
        keys = np.empty((count, dim), np.float32)
        for start in range(0, count, 65_536):
            part = keys[start : start + 65_536]
            self._random.standard_normal(dtype=np.float32, out=part)
            part *= np.sqrt((1 - COSINE) / dim)
            part += np.sqrt(COSINE) * self._centres[self._random.integers(clusters, size=len(part))]
            self._unit(part)
        return keys

    def within(self) -> float:
        """Mean cosine of two keys of one cluster, measured."""
        dim = self._centres.shape[1]
        noise = self._random.standard_normal((2, 1000, dim)) * np.sqrt((1 - COSINE) / dim)
        left, right = (self._unit(np.sqrt(COSINE) * self._centres[0] + part) for part in noise)
        return float(np.einsum("nd,nd->n", left, right).mean())

    @staticmethod
    def _unit(x: np.ndarray) -> np.ndarray:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x


class Resident:
    """Resident memory of this process while a block runs, in bytes."""

    def __enter__(self) -> "Resident":
        self._process, self._done = psutil.Process(), threading.Event()
        self.before = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self._process.memory_info().rss)


def exact(keys: np.ndarray, ids: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ids of the nearest by comparing with every key, `[Q, 8]`."""
    best_ids, best = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(keys), 50_000):
        cosines = queries @ keys[start : start + 50_000].T
        top = np.argpartition(-cosines, min(K, cosines.shape[1] - 1), axis=1)[:, :K]
        best = np.concatenate([best, np.take_along_axis(cosines, top, axis=1)], axis=1)
        best_ids = np.concatenate([best_ids, ids[start + top]], axis=1)
    return np.take_along_axis(best_ids, np.argsort(-best, axis=1)[:, :K], axis=1)


def searched(index: Index, queries: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """What the index finds, `[Q, 8]`, and the seconds that each search takes."""
    found, times = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(index.search(query, K)[0])
        times.append(time.perf_counter() - began)
    return np.stack(found), times


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the truly nearest that were found."""
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / truth.size


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and tail, in milliseconds."""
    return {"median": 1e3 * statistics.median(seconds), "p95": 1e3 * float(np.quantile(seconds, 0.95)), "max": 1e3 * max(seconds)}


def vars_of(config: IndexConfig) -> dict[str, Any]:
    """Fields of a configuration."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


DIM = 64
KILLED = 1.0  # seconds, at most
PATIENCE = 60.0  # seconds until a writer's first transaction
COUNTS = ("acknowledged", "lost", "wrong", "index_differs", "one_more", "killed_before_writing", "cache_left")


def check_kills(args: argparse.Namespace) -> dict[str, Any]:
    """One store, one writer after another, each killed."""
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory(dir=args.json.parent.resolve()) as folder:
        path = Path(folder) / "memory.sqlite"
        config = MemoryConfig(capacity=args.records, index=IndexConfig(exact_below=args.records // 2, candidates=64, threads=1))
        with Memory(path, dim=DIM, config=config) as memory:
            records = writes(args.seed)
            for _ in range(args.records):
                memory.remember(next(records), {})
            expected, seq = content(memory), memory.memory_seq
        counts = dict.fromkeys(COUNTS, 0)
        for point in range(args.points):
            after_s, busy = chance.uniform(0, KILLED), point % 2 == 0 or args.early
            acknowledged = killed_writer(path, config, after_s, busy=busy, seed=args.seed + 1 + point, early=args.early)
            for line in acknowledged:
                apply(expected, line)
                seq = line["seq"]
            counts["acknowledged"] += len(acknowledged)
            counts["killed_before_writing"] += not acknowledged
            cache = path.with_name(path.name + ".index") / "index.json"
            counts["cache_left"] += cache.exists()
            with Memory(path, config=config) as memory:
                found, more = content(memory), memory.memory_seq - seq
                counts["lost"] += max(0, -more)
                counts["one_more"] += more == 1
                new, gone = found.keys() - expected.keys(), expected.keys() - found.keys()
                # The transaction that was under way adds a record, evicts one, and changes the values of some, or does nothing.
                counts["wrong"] += not ((more == 0 and found == expected) or (more == 1 and len(new) == len(gone) == 1))
                counts["index_differs"] += memory.ids != found.keys()
                for line in acknowledged[-3:]:
                    if line["id"] in found:  # whole, and found
                        record = memory.get(line["id"])
                        nearest = memory.retrieve(record.key, phash=None, query_id="another", k=1)[0]
                        counts["wrong"] += (record.query_id, nearest.id) != (line["query"], line["id"])
                expected, seq = found, memory.memory_seq
        with Memory(path, config=config) as memory:
            memory._store.check()
    held = not (counts["lost"] or counts["wrong"] or counts["index_differs"])
    return {"points": args.points, "records": args.records, **counts, "held": held}


def content(memory: Memory) -> dict[int, tuple[str, float]]:
    """Query and value of every record of the store."""
    found = memory._store.summaries(memory._store.ids())
    return {record_id: (summary.query_id, summary.value) for record_id, summary in found.items()}


def apply(expected: dict[int, tuple[str, float]], line: Mapping[str, Any]) -> None:
    """What an acknowledged transaction did."""
    for record_id in line["evicted"]:
        del expected[record_id]
    for record_id, value in line["values"]:
        expected[record_id] = (expected[record_id][0], value)
    expected[line["id"]] = (line["query"], 0.5)


def killed_writer(
    path: Path, config: MemoryConfig, after_s: float, *, busy: bool, seed: int, early: bool
) -> list[dict[str, Any]]:
    """Runs a writer, kills it so long after its start, or if `busy` after its first transaction; returns what it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()  # nothing here has started JAX, whose threads a fork would not take along
    if child == 0:
        try:
            write(path, config, writing, seed=seed, early=early)
        finally:
            os._exit(1)  # not reached: it writes until it is killed
    os.close(writing)
    deadline, text = time.monotonic() + (PATIENCE if busy else after_s), b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 65_536)
            if not part:
                raise SystemExit("the writer ended by itself")
            if busy and not text:
                deadline = time.monotonic() + after_s
            text += part
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(reading, 65_536):
        text += part
    os.close(reading)
    # A line is complete: it takes less than what a pipe writes at once.
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path, config: MemoryConfig, acknowledgements: int, *, seed: int, early: bool) -> None:
    """Remembers records and acknowledges each, without end."""
    chance = random.Random(seed)
    with Memory(path, config=config) as memory:
        for count, record in enumerate(writes(seed)):
            shown = {n: Shown(agreement=chance.random(), fidelity=chance.random()) for n in chance.sample(sorted(memory.ids), 8)}
            if early:
                os.write(acknowledgements, line_of(memory.memory_seq + 1, 0, record, (), []))
                time.sleep(PATIENCE)
            done = memory.remember(record, shown)
            held = memory._store.summaries(list(shown))
            values = [(record_id, held[record_id].value) for record_id in held]
            os.write(acknowledgements, line_of(done.memory_seq, done.id, record, done.evicted, values))
            if count % 20 == 10:
                memory.save_index()


def line_of(seq: int, new: int, record: Record, evicted: Sequence[int], values: Sequence[tuple[int, float]]) -> bytes:
    """An acknowledgement."""
    line = {"seq": seq, "id": new, "query": record.query_id, "evicted": list(evicted), "values": list(values)}
    return json.dumps(line).encode() + b"\n"


def writes(seed: int) -> Iterator[Record]:
    """Records without end, each unlike any other."""
    chance = np.random.default_rng(seed)
    number = 0
    while True:
        key = chance.standard_normal(DIM).astype(np.float32)
        yield make_record(f"{seed}-{number}", key / np.linalg.norm(key))
        number += 1


def make_record(name: str, key: np.ndarray) -> Record:
    """A record of two steps and 150 tokens."""
    steps = tuple(
        Step(
            raw=f"look {n}",
            thought="look closer",
            call=ToolCall(name=operation, arguments={"media": 1, "bbox_2d": [100, 100, 500, 500]}),
            observation=Observation(ok=True, text="seen"),
        )
        for n, operation in enumerate(("zoom", "ocr"))
    )
    trajectory = Trajectory(
        id=name,
        example=name,
        question="What is written there?",
        media=(),
        steps=steps,
        final=Final(raw="<answer>4</answer>", thought=""),
        answer="4",
        stopped="answer",
        source=Source(dataset="memory_checks"),
    )
    tokens = TokenRecord(
        ids=np.arange(150, dtype=np.int32),
        roles=np.full(150, 2, np.int8),
        log_probs=np.linspace(-2, 0, 150, dtype=np.float32),
        forced=np.zeros(150, bool),
        policy_step=np.zeros(150, np.int32),
        media_spans=np.array([[0, 64, 1, 0]], np.int32),
    )
    return Record(
        key=key,
        phash=None,
        query_id=name,
        query="What is written there?",
        trajectory=trajectory,
        tokens=tokens,
        fidelity=0.8,
        agreement=5,
    )


CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"recall": check_recall, "kills": check_kills}

if __name__ == "__main__":
    main()
