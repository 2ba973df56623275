"""Pixel TTRL's online loop: every query is answered first and learnt from behind (docs/ttrl.md; algorithms.md, section 3).

What is behind a checkpoint is done again after a kill, to the same numbers: a query's answer follows from its place in the
stream, the policy and the memory, and the memory goes back with the policy. Answers, votes and updates that were written stand.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax import voting
from pixelis_jax.data import records
from pixelis_jax.data.examples import encode_record
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.encoding import Encoder
from pixelis_jax.memory import Memory, MemoryConfig, Neighbour, Record, Shown, discard
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Episode
from pixelis_jax.rollout.tracing import Compilations
from pixelis_jax.training import loop
from pixelis_jax.training.adaptation import Learner, Taught, Update
from pixelis_jax.training.answering import Answered, Answerer, Query
from pixelis_jax.training.collecting import is_masked
from pixelis_jax.training.logs import AppendLog
from pixelis_jax.training.progress import Progress
from pixelis_jax.trajectory import Trajectory, operations, valid_share
from pixelis_jax.trajectory.io import relative_media, write_trajectories
from pixelis_jax.workdir import Checkpoints, Workdir, describe_environment, write_bytes

MAY_DIFFER = (*loop.MAY_DIFFER, "rollout.workers", "read_only", "rate.updates", "rate.queries")
_GUARD, _OUTAGE = "kl_above_limit", "outage"


def run(
    config: ConfigDict,
    path: epath.PathLike,
    model: Qwen3VL,
    encoder: Encoder,
    answerer: Answerer,
    stream: Callable[[int], Iterator[Query]],
    probe: Sequence[Query],
    *,
    banned_ids: Sequence[int],
    mesh: Mesh,
    judge: Callable[[Trajectory], Trajectory] | None = None,
) -> tuple[Qwen3VL, loop.Result]:
    """Answers a stream of queries and learns from it, from the latest checkpoint in a work directory or from the start.

    Args:
      config: See `configs/tiny_ttrl.py`.
      path: The work directory, on a local disk.
      model: The initial policy; left as it is.
      encoder: Of the same model directory.
      answerer: Answers with `model` until now, as version -1 or lower.
      stream: number of the first query -> the queries from there on. It may end before `config.total_steps`.
      probe: Queries outside the stream; one trajectory of each shows how far the policy goes from its anchor.
      banned_ids: Tokens that the sampler never emits.
      mesh: The devices.
      judge: Gives a trajectory its `scores["task"]`, for measuring and for `config.poison` alone.

    Returns:
      The policy at the end, and how the run ended.

    Raises:
      WorkdirError: The directory is another run's, or no work directory.
      StoreError: The memory cannot be read or written.
      FloatingPointError: A loss or gradient is not finite; nothing behind it is saved.
    """
    with loop.on_mesh(mesh):
        learner = Learner(config, model, encoder, banned_ids, mesh)
        learner.probe([_encoded(episode, encoder) for episode in answerer.sample(probe)])
        return _Run(config, Path(path), learner, answerer, encoder, judge).run(stream)


class _Run:
    """The queries of a run in its work directory."""

    def __init__(
        self,
        config: ConfigDict,
        path: Path,
        learner: Learner,
        answerer: Answerer,
        encoder: Encoder,
        judge: Callable[[Trajectory], Trajectory] | None,
    ):
        self._config, self._learner, self._answerer, self._encoder, self._judge = config, learner, answerer, encoder, judge
        self._workdir = Workdir.create(
            path, config=config.to_dict(), environment=describe_environment(config.seed), may_differ=MAY_DIFFER
        )
        self._path = path
        self._updates: list[int] = []  # numbers of the queries of the last updates
        self._poisoned: list[int] = []  # ids of records that carry a wrong answer
        self._unsaved: list[Trajectory] = []
        # Greedy trajectories of the last queries that were not learnt from.
        self._held = collections.deque[EncodedExample](maxlen=config.held.window)
        self._exemplars = _Exemplars(path / "exemplars")
        self._switches = _Schedule(path / "switches.jsonl", _Switches.of(ConfigDict(self._workdir.config)))

    def run(self, stream: Callable[[int], Iterator[Query]]) -> tuple[Qwen3VL, loop.Result]:
        config, learner, pace = self._config, self._learner, loop.Pace(self._config)
        compilations = Compilations()
        writer = self._workdir.open_metrics()
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(contextlib.closing(self._workdir.open_checkpoints(config.keep_checkpoints)))
            stack.enter_context(contextlib.closing(writer))
            interrupted = stack.enter_context(loop.catch_signals())
            done = self._restore(checkpoints)
            memory = self._open_memory(stack, done)
            writer.resume(done)
            names = ("answers", "votes", "updates")
            answers, votes, audit = (
                stack.enter_context(AppendLog(self._path / f"{name}.jsonl", numbered=name == "updates")) for name in names
            )
            self._switches.throw(_Switches.of(config), max(done, votes.next))
            saved, stopped = done, False
            progress = stack.enter_context(Progress("ttrl", start=done, total=config.total_steps))
            if 0 < done < config.total_steps:
                progress.say(f"going on from query {done} of {self._path}")
            queries = stream(done)
            while done < config.total_steps and not stopped:
                query = next(queries, None)
                if query is None:
                    progress.say(f"the stream ended behind {done} queries")
                    break
                answered = self._answerer.answer(query, memory)
                answers.append(done, _answer_line(answered, done, learner.step))
                record, update, lesson = self._learn(answered, done, memory)
                votes.append(done, voting.vote_to_json(record))
                if update is not None:
                    audit.append(done, _audit_line(record, update, lesson, done))
                done += 1
                metrics = self._metrics(answered, record, update, memory) | {"compilations": float(compilations.count)}
                writer.write_scalars(done, metrics)
                progress.advance(done)
                if done % config.log_every == 0:
                    shown = ("accuracy/greedy", "accuracy/vote", "kl", "beta")
                    progress.report(done, {name: metrics[name] for name in shown if name in metrics})
                stopped = interrupted.is_set() or pace.out_of_time
                if done == config.total_steps or stopped or pace.due(done):
                    writer.flush()
                    self._save(checkpoints, memory, done)
                    saved = done
                    pace.saved()
            if saved < done:
                writer.flush()
                self._save(checkpoints, memory, done)
            finished = not stopped or done == config.total_steps
            if not finished:
                progress.say(f"stopped at query {done}; the same command goes on from there")
        result = loop.Result(state=learner.updater.state, finished=finished, compilations=compilations.count)
        return learner.policy(), result

    def _learn(
        self, answered: Answered, number: int, memory: Memory | None
    ) -> tuple[voting.VoteRecord, Update | None, list[tuple[str, float]]]:
        """Learns from a vote if it may; returns the record of it, what came of the update, and what it learnt from."""
        learner, switches = self._learner, self._switches.at(number)
        reason, before = answered.reason, learner.step
        if reason is None and switches.read_only:
            reason = "read_only"
        if reason is None and not self._may_update(number, switches):
            reason = "rate_limit"
        update: Update | None = None
        lesson: list[Taught] = []
        used: list[tuple[str, float]] = []
        if reason is None:
            lesson, used = self._lesson(answered, number, memory)
            reason = None if lesson else _OUTAGE
        if reason is None:
            update = learner.learn(lesson)
            self._updates.append(number)
            if update.accepted:
                self._answerer.update_policy(learner.policy(), learner.step)
                if memory is not None:
                    self._remember(answered, number, memory)
            else:
                reason = _GUARD
        if reason is not None and not switches.read_only:
            self._hold(answered.greedy)
        record = voting.make_record(
            answered.vote,
            query=answered.query.example.id,
            trajectories=[episode.trajectory.id for episode in answered.samples],
            calls=answered.fidelity.calls,
            neighbours=[
                voting.Neighbour(id=str(found.id), cosine=found.cosine, value=found.value) for found in answered.neighbours
            ],
            decision="abstain" if update is None else ("learn" if update.accepted else "rolled_back"),
            reason=reason,
            exemplar=None if answered.exemplar is None else answered.samples[answered.exemplar].trajectory.id,
            kl=None if update is None else update.kl,
            beta=None if update is None else update.beta,
            step_before=before,
            step_after=learner.step,
        )
        return record, update, used

    def _may_update(self, number: int, switches: _Switches) -> bool:
        """Whether the limit on updates leaves room for one."""
        self._updates = [other for other in self._updates if other > number - switches.queries]
        return len(self._updates) < switches.updates

    def _lesson(self, answered: Answered, number: int, memory: Memory | None) -> tuple[list[Taught], list[tuple[str, float]]]:
        """What an update sees, and of that, by the trajectories' ids, what it is drawn to."""
        config = self._config
        samples, chosen = answered.samples, answered.exemplar
        assert chosen is not None
        if config.objective == "grpo":
            advantages = voting.consensus_advantages(np.asarray(answered.vote.similarity), answered.vote.members)
            kept = [
                (episode, float(worth))
                for episode, worth in zip(samples, advantages, strict=True)
                if not is_masked(episode.trajectory)
            ]
            taught = [
                Taught(example=_encoded(e, self._encoder), worth=worth, anchored=True, log_probs=e.tokens.log_probs)
                for e, worth in kept
            ]
            return taught, [(episode.trajectory.id, worth) for episode, worth in kept]
        if config.objective == "entropy":
            each = 1 / len(samples)
            taught = [Taught(example=_encoded(episode, self._encoder), worth=each, anchored=True) for episode in samples]
            return taught, [(episode.trajectory.id, each) for episode in samples]
        lesson = [Taught(example=_encoded(samples[chosen], self._encoder), worth=1.0, anchored=True)]
        used = [(samples[chosen].trajectory.id, 1.0)]
        retrieved = self._retrieved(answered.neighbours, memory)
        for name, example, value in retrieved:
            worth = config.retrieved.weight * value / len(retrieved)
            lesson.append(Taught(example=example, worth=worth, anchored=False))
            used.append((name, worth))
        others = [index for index in range(len(samples)) if index != chosen]
        rng = np.random.default_rng([config.seed, number, 1])
        holding = [_encoded(samples[index], self._encoder) for index in rng.permutation(others)[: config.anchored].tolist()]
        holding += [self._held[index] for index in rng.permutation(len(self._held))[: config.held.each].tolist()]
        lesson += [Taught(example=example, worth=0.0, anchored=True) for example in holding]
        return lesson, used

    def _hold(self, episode: Episode) -> None:
        """Has what the policy does where nothing is taught stay as it is, among the last of its kind."""
        if self._config.held.each and not is_masked(episode.trajectory):
            self._held.append(_encoded(episode, self._encoder))

    def _retrieved(self, neighbours: Sequence[Neighbour], memory: Memory | None) -> list[tuple[str, EncodedExample, float]]:
        """The best neighbours' exemplars, with their values."""
        if memory is None:
            return []
        best = neighbours[: self._config.retrieved.most]
        names = [memory.get(found.id).trajectory.id for found in best]
        value_aware = self._config.memory.value_aware
        return [
            (name, self._exemplars.read(name), found.value if value_aware else 1.0)
            for name, found in zip(names, best, strict=True)
        ]

    def _remember(self, answered: Answered, number: int, memory: Memory) -> None:
        """Keeps the exemplar, and what its neighbours have shown."""
        chosen = answered.exemplar
        assert chosen is not None
        winner = answered.samples[chosen]
        used = operations(winner.trajectory)
        shown = {
            found.id: Shown(
                agreement=voting.operation_similarity(used, found.operations), fidelity=answered.fidelity.fidelity[chosen]
            )
            for found in answered.neighbours
        }
        kept, value = chosen, None
        if (loser := self._poison(answered, number)) is not None:
            kept, value = loser, memory.median_value(without=self._poisoned)
        episode = answered.samples[kept]
        self._exemplars.write(episode.trajectory.id, _encoded(episode, self._encoder))
        record = Record(
            key=answered.key,
            phash=answered.phash,
            query_id=answered.query.example.id,
            query=answered.query.example.question,
            trajectory=episode.trajectory,
            tokens=episode.tokens,
            fidelity=answered.fidelity.fidelity[kept],
            agreement=len(answered.vote.members),
        )
        if value is not None:
            record = dataclasses.replace(record, value=value)
        found = memory.remember(record, shown)
        if kept != chosen:
            self._poisoned.append(found.id)

    def _poison(self, answered: Answered, number: int) -> int | None:
        """A sample that lost with a wrong answer, for the share of records that the control poisons."""
        config = self._config
        if np.random.default_rng([config.seed, number, 2]).random() >= config.poison:
            return None
        assert self._judge is not None
        losers = [index for index in range(len(answered.samples)) if index not in answered.vote.members]
        trajectories = {index: answered.samples[index].trajectory for index in losers}
        wrong = [
            index
            for index, trajectory in trajectories.items()
            if voting.counted_answer(trajectory) is not None and self._judge(trajectory).scores["task"] == 0
        ]
        return wrong[0] if wrong else None

    def _metrics(
        self, answered: Answered, record: voting.VoteRecord, update: Update | None, memory: Memory | None
    ) -> dict[str, float]:
        """What is logged of a query, and keeps its trajectories for the next shard."""
        episodes = [answered.greedy, *answered.samples]
        judged = [self._judge(e.trajectory) if self._judge else e.trajectory for e in episodes]
        self._unsaved += judged
        metrics = {
            "learnt": float(record.decision == "learn"),
            "rolled_back": float(record.decision == "rolled_back"),
            "abstained": float(record.decision == "abstain"),
            "beta": self._learner.control.beta,
            "chain": float(np.mean([len(trajectory.steps) for trajectory in judged[1:]])),
            "chain_greedy": float(len(judged[0].steps)),
            "valid_calls": valid_share(judged),
            "fidelity": float(np.mean(answered.fidelity.fidelity)),
            "vote/mass": answered.vote.mass,
            "vote/margin": answered.vote.margin,
            "vote/classes": float(len(answered.vote.classes)),
            "memory/records": float(len(memory) if memory is not None else 0),
            "updates": float(self._learner.step),
        }
        if len(answered.vote.similarity) > 1:
            matrix = np.asarray(answered.vote.similarity)
            metrics["vote/similarity"] = float(matrix[~np.eye(len(matrix), dtype=bool)].mean())
        if update is not None:
            metrics["kl"] = update.kl
            metrics |= {f"update/{name}": value for name, value in update.metrics.items()}
        if self._judge is not None:
            metrics["accuracy/greedy"] = judged[0].scores["task"]
            winner = answered.vote.members[0] if answered.vote.members else None
            metrics["accuracy/vote"] = 0.0 if winner is None else judged[1 + winner].scores["task"]
            metrics["accuracy/samples"] = float(np.mean([trajectory.scores["task"] for trajectory in judged[1:]]))
        return metrics

    def _open_memory(self, stack: contextlib.ExitStack, done: int) -> Memory | None:
        """The memory as it was at the checkpoint of query `done`."""
        config = self._config.memory
        if not config.on:
            return None
        path = self._path / "memory.sqlite"
        if not done:  # what a run that was killed before its first checkpoint remembered is remembered again
            discard(path)
        settings = MemoryConfig(
            capacity=config.capacity, silent_below=config.silent_below, value_aware=config.value_aware, decay=config.decay
        )
        memory = stack.enter_context(Memory(path, dim=self._answerer.key_size, config=settings))
        if done:
            memory.restore(self._snapshot(done))
        return memory

    def _snapshot(self, done: int) -> Path:
        return self._path / "snapshots" / f"memory-{done}.sqlite"

    def _held_at(self, done: int) -> Path:
        return self._path / "snapshots" / f"held-{done}.array_record"

    def _restore(self, checkpoints: Checkpoints) -> int:
        """Goes on from the latest checkpoint; returns the queries that are done."""
        latest = checkpoints.latest()
        for shard in (self._path / "trajectories").glob("queries-0-*.jsonl"):
            if int(shard.stem.rpartition("-")[2]) > (latest or 0):
                shard.unlink()  # its queries are asked again
        if latest is None:
            return 0
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._learner.items())
        items, values = checkpoints.restore(latest, arrays=shapes, values=["controller", "data_iter"])
        self._learner.set_items(items, values["controller"])
        self._updates, self._poisoned = values["data_iter"]["updates"], values["data_iter"]["poisoned"]
        if values["data_iter"]["held"]:
            self._held.extend(records.RecordSource(self._held_at(latest)))
        if self._learner.step:
            self._answerer.update_policy(self._learner.policy(), self._learner.step)
        return latest

    def _save(self, checkpoints: Checkpoints, memory: Memory | None, done: int) -> None:
        """Trajectories, the memory, and last the checkpoint that counts on them."""
        shard = self._path / "trajectories" / f"queries-0-{done}.jsonl"
        shard.parent.mkdir(parents=True, exist_ok=True)
        write_trajectories(shard, relative_media(self._unsaved, shard.parent))
        self._unsaved = []
        values: dict[str, Any] = {
            "controller": self._learner.control.to_json(),
            "data_iter": {"updates": self._updates, "poisoned": self._poisoned, "held": len(self._held)},
        }
        (self._path / "snapshots").mkdir(exist_ok=True)
        if self._held:
            records.write_records(self._held_at(done), self._held)
        if memory is not None:
            snapshot = self._snapshot(done)
            snapshot.unlink(missing_ok=True)
            values["data_iter"]["memory_seq"] = memory.snapshot(snapshot).memory_seq
        checkpoints.save(done, arrays=self._learner.items(), values=values)
        kept = {str(step) for step in (*checkpoints.steps(), done)}
        for old in (self._path / "snapshots").iterdir():
            if old.name.partition(".")[0].rpartition("-")[2] not in kept:
                old.unlink()


@dataclasses.dataclass(frozen=True)
class _Switches:
    """What may be changed from one start to the next and changes what a query leads to."""

    read_only: bool
    updates: int
    queries: int

    @classmethod
    def of(cls, config: ConfigDict) -> _Switches:
        return cls(config.read_only, config.rate.updates, config.rate.queries)


class _Schedule:
    """From which query on which switches hold: queries that are done again after a kill are done as they were."""

    def __init__(self, path: Path, first: _Switches):
        """Reads the schedule that a run has; `first` holds until anything else is said."""
        self._path, self._changes = path, [(0, first)]
        if not path.exists():
            return
        with AppendLog(path):  # cuts off half a line
            pass
        for line in path.read_text().splitlines():
            values = json.loads(line)
            self._changes.append((values.pop("from"), _Switches(**values)))

    def at(self, number: int) -> _Switches:
        """Those of a query: of the changes up to it the last that was made."""
        return next(switches for start, switches in reversed(self._changes) if start <= number)

    def throw(self, switches: _Switches, number: int) -> None:
        """Has other switches hold from a query on, and writes that down first."""
        if switches != self._changes[-1][1]:
            with AppendLog(self._path) as log:
                log.append(log.next, {"from": number, **dataclasses.asdict(switches)})
            self._changes.append((number, switches))


class _Exemplars:
    """What the policy saw of each exemplar that is remembered: a file a trajectory, so that it can be learnt from again."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, name: str, example: EncodedExample) -> None:
        """Keeps an encoded trajectory."""
        self._path.mkdir(exist_ok=True)
        write_bytes(self._file(name), records.encode(example))

    def read(self, name: str) -> EncodedExample:
        """Reads it back; raises RecordError if it is damaged, FileNotFoundError if it is gone."""
        example = records.decode(self._file(name).read_bytes())
        records.check_example(example)
        return example

    def _file(self, name: str) -> Path:
        return self._path / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.msgpack"


def _encoded(episode: Episode, encoder: Encoder) -> EncodedExample:
    return encode_record(episode.tokens, episode.thumbnails, encoder)


def _answer_line(answered: Answered, number: int, step: int) -> dict[str, Any]:
    """What is acknowledged of a query."""
    return {
        "number": number,
        "query": answered.query.example.id,
        "answer": answered.answer,
        "greedy": answered.greedy.trajectory.answer,
        "confidence": answered.vote.mass,
        "step": step,
    }


def _audit_line(record: voting.VoteRecord, update: Update, used: Sequence[tuple[str, float]], number: int) -> dict[str, Any]:
    """What an update learnt from, and where it led."""
    return {
        "number": number,
        "query": record.query,
        "learnt_from": [{"trajectory": name, "weight": weight} for name, weight in used],
        "decision": record.decision,
        "kl": update.kl,
        "beta": update.beta,
        "step_before": record.step_before,
        "step_after": record.step_after,
        "gradient_norm": update.metrics["gradient_norm"],
    }
