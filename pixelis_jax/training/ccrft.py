"""Curiosity-coherence reinforcement fine-tuning (algorithms.md, section 2): sample, reward, update, again.

An iteration samples groups of episodes with the present weights, rewards them, and takes one step of the optimiser for each
minibatch. Everything that it changes is in the checkpoint behind it, and everything random in it follows from the seed and its
number: a run that was killed anywhere repeats the iteration that it was in, to the same numbers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax import losses, rewards
from pixelis_jax.data.examples import encode_record
from pixelis_jax.encoding import Encoder
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Episode
from pixelis_jax.rollout.tracing import Compilations
from pixelis_jax.training import loop, microbatches, policy_update
from pixelis_jax.training.collecting import Collected, Collector, is_masked, zero_spread
from pixelis_jax.training.microbatches import MicroBatch, Sampled
from pixelis_jax.training.policy_update import Reference
from pixelis_jax.training.progress import Progress
from pixelis_jax.training.rewarding import Judged, Rewarded, Rewarder
from pixelis_jax.training.updater import Updater, control_settings
from pixelis_jax.training.watch import CollapseError, Watch
from pixelis_jax.trajectory import Trajectory, racpr, rapr, valid_share
from pixelis_jax.trajectory.io import relative_media, write_trajectories
from pixelis_jax.workdir import Checkpoints, Workdir, describe_environment

MAY_DIFFER = (*loop.MAY_DIFFER, "rollout.workers", "save_trajectories_every")  # slots change the last bits
_ITEMS = ("params", "opt_state", "rng")
# What may have a floor, and its metric.
_FLOORS = {"valid_calls": "rollout/valid_calls", "rapr": "rollout/rapr", "entropy": "entropy"}


def run(
    config: ConfigDict,
    path: epath.PathLike,
    model: Qwen3VL,
    encoder: Encoder,
    collector: Collector,
    *,
    banned_ids: Sequence[int],
    mesh: Mesh,
) -> tuple[Qwen3VL, loop.Result]:
    """Trains from the latest checkpoint in a work directory, or from the start.

    Args:
      config: See `configs/tiny_ccrft.py`.
      path: The work directory.
      model: The initial policy, which is also the reference; left as it is.
      encoder: Of the same model directory.
      collector: Samples episodes; its engine sampled with `model` until now, as version -1 or lower.
      banned_ids: Tokens that the sampler never emits; they take no probability here either.
      mesh: The devices.

    Returns:
      The trained policy, and how the run ended.

    Raises:
      WorkdirError: The directory is another run's, or no work directory.
      CollapseError: What is sampled has fallen under a floor; the last good checkpoint is kept, and named.
      FloatingPointError: A loss or gradient is not finite; nothing behind it is saved.
    """
    with loop.on_mesh(mesh):
        trainer = _Trainer(config, model, encoder, banned_ids, mesh)
        return _Run(config, epath.Path(path), trainer, collector).run()


class _Trainer:
    """Parameters, rewards and updates: what a checkpoint is of."""

    def __init__(self, config: ConfigDict, model: Qwen3VL, encoder: Encoder, banned_ids: Sequence[int], mesh: Mesh):
        self._config, self._encoder = config, encoder
        updates = config.total_steps * config.minibatches
        self.updater = Updater(config, model, encoder, banned_ids, mesh, updates=updates)
        # The reference shares the parameters that are not trained.
        self._anchor = self.updater.trained()
        self.rewarder = Rewarder(
            config,
            features=model.config.text.hidden_size,
            max_steps=config.rollout.max_steps,
            episodes=config.prompts * config.samples,
            seed=config.seed,
        )
        self._control = control_settings(config.kl)
        self.control = losses.ControlState(beta=config.kl.beta)

    def learn(self, collected: Collected, iteration: int) -> tuple[dict[str, float], list[Trajectory]]:
        """Rewards what an iteration sampled and updates the policy; returns what to log, and the trajectories with rewards."""
        config, begin = self._config, time.monotonic()
        groups = [group.episodes for group in collected.groups]
        episodes = [episode for group in groups for episode in group]
        order = np.random.default_rng([config.seed, iteration]).permutation(len(episodes))
        parts = np.array_split(order, config.minibatches)
        minibatches = [self._pack([episodes[number] for number in part]) for part in parts]
        references = [self.updater.see(self._anchor, micros) for micros, _ in minibatches]
        judged: list[Judged] = [None] * len(episodes)  # type: ignore[list-item]  # filled in below
        for part, (_, places), made in zip(parts, minibatches, references, strict=True):
            roles = [episodes[number].tokens.roles for number in part]
            for number, features in zip(part, policy_update.features_of(places, made, roles), strict=True):
                trajectory = episodes[number].trajectory
                judged[number] = Judged(trajectory=trajectory, masked=is_masked(trajectory), seen=features[0], step=features[1])
        ends = np.cumsum([len(group) for group in groups])
        by_group = [judged[end - len(group) : end] for end, group in zip(ends, groups, strict=True)]
        rewarded = self.rewarder.reward(by_group)
        rewarding_s, begin = time.monotonic() - begin, time.monotonic()

        worth = [turns for group in rewarded.advantages for turns in group]
        updates: list[dict[str, float]] = []
        for part, (micros, places), made in zip(parts, minibatches, references, strict=True):
            advantages = [_by_token(episodes[number], worth[number]) for number in part]
            learns = [not judged[number].masked for number in part]
            updates.append(self._update(microbatches.with_advantages(micros, places, advantages, learns), made))
        trajectories = _with_scores(episodes, rewarded)
        metrics = {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
        metrics |= {
            **{f"rollout/{name}": value for name, value in _rollout_metrics(episodes).items()},
            **rewarded.metrics,
            "rollout/zero_spread": float(np.mean(zero_spread(collected.groups))),
            "rollout/masked": float(np.mean([episode.masked for episode in judged])),
            "rollout/refilled": float(collected.refilled),
            "kl_above_top": float(np.mean([update["kl"] > self._control.top for update in updates])),
            "kl_smoothed": self.control.kl,
            "beta": self.control.beta,
            "learning_rate": float(self.updater.schedule(int(self.updater.state.step) - 1)),
            "time/rollout_s": collected.seconds,
            "time/rewarding_s": rewarding_s,
            "time/update_s": time.monotonic() - begin,
        }
        return metrics, trajectories

    def _pack(self, episodes: Sequence[Episode]) -> tuple[list[MicroBatch], list[microbatches.Place]]:
        return self.updater.pack(
            [
                Sampled(example=encode_record(e.tokens, e.thumbnails, self._encoder), log_probs=e.tokens.log_probs)
                for e in episodes
            ]
        )

    def _update(self, micros: Sequence[MicroBatch], references: Sequence[Reference]) -> dict[str, float]:
        """One step of the optimiser, and what it shows to the controller."""
        scale = policy_update.scale_of(micros, self.control.beta)
        found = self.updater.step(self._anchor, micros, references, scale)
        self.control = losses.update_control(self.control, self._control, max(found["kl"], 0.0))
        return found


class _Run:
    """The iterations of a run in its work directory."""

    def __init__(self, config: ConfigDict, path: epath.Path, trainer: _Trainer, collector: Collector):
        self._config, self._trainer, self._collector = config, trainer, collector
        self._workdir = Workdir.create(
            path, config=config.to_dict(), environment=describe_environment(config.seed), may_differ=MAY_DIFFER
        )
        floors = {_FLOORS[name]: floor for name, floor in config.floors.items()}
        self._watch = Watch(floors=floors, patience=config.patience)
        self._asked = 0
        self._good = 0  # the last checkpoint behind which nothing was under its floor

    def run(self) -> tuple[Qwen3VL, loop.Result]:
        config, trainer = self._config, self._trainer
        pace = loop.Pace(config)
        compilations = Compilations()
        writer = self._workdir.open_metrics()
        with (
            contextlib.closing(self._workdir.open_checkpoints(config.keep_checkpoints)) as checkpoints,
            contextlib.closing(writer),
            loop.catch_signals() as interrupted,
            concurrent.futures.ThreadPoolExecutor(1, "rollout") as ahead,
        ):
            done = self._restore(checkpoints)
            writer.resume(done)
            saved = done
            sampled = self._sample(ahead, done)
            with Progress("ccrft", start=done, total=config.total_steps) as progress:
                if 0 < done < config.total_steps:
                    progress.say(f"going on from iteration {done} of {self._workdir.path}")
                while done < config.total_steps:
                    collected = next(sampled)
                    metrics, trajectories = trainer.learn(collected, done)
                    self._asked += collected.asked
                    done += 1
                    self._watch = self._watch.look(metrics)
                    writer.write_scalars(done, metrics | {"compilations": float(compilations.count)})
                    progress.advance(done)
                    progress.report(done, {name: metrics[name] for name in ("rollout/accuracy", "reward/total", "kl", "beta")})
                    if done % config.save_trajectories_every == 0 or done == config.total_steps:
                        self._save_trajectories(trajectories, done)
                    if collapsed := self._watch.collapsed:
                        raise CollapseError(self._farewell(checkpoints, collapsed))
                    last, stop = done == config.total_steps, interrupted.is_set() or pace.out_of_time
                    # A policy that is under a floor may be about to collapse: the checkpoint before it is not overwritten.
                    if last or stop or (pace.due(done) and self._watch.calm):
                        writer.flush()
                        self._save(checkpoints, done)
                        saved = done
                        pace.saved()
                    if stop and not last:
                        progress.say(f"stopped at iteration {done}; the same command goes on from there")
                        break
        result = loop.Result(state=trainer.updater.state, finished=saved == config.total_steps, compilations=compilations.count)
        return trainer.updater.policy(), result

    def _sample(self, ahead: concurrent.futures.Executor, done: int) -> Iterator[Collected]:
        """What each iteration learns from; one is sampled ahead of the update where the run is asynchronous."""
        config, first = self._config, self._asked

        def begin(iteration: int) -> concurrent.futures.Future[Collected]:
            return ahead.submit(self._collector.collect, self._trainer.updater.policy(), iteration, first)

        pending = begin(done)
        while True:
            collected = pending.result()
            first += collected.asked
            done += 1
            more = done < config.total_steps
            if more and config.asynchronous:
                pending = begin(done)
            yield collected
            if more and not config.asynchronous:
                pending = begin(done)

    def _restore(self, checkpoints: Checkpoints) -> int:
        """Goes on from the latest checkpoint; returns the iterations that are done."""
        latest = checkpoints.latest()
        if latest is None:
            return 0
        trainer, rewarder = self._trainer, self._trainer.rewarder
        arrays = {name: trainer.updater.state.items()[name] for name in _ITEMS} | {"dynamics": rewarder.network}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)
        items, values = checkpoints.restore(latest, arrays=shapes, values=["controller", "rewards", "data_iter"])
        network = items.pop("dynamics")
        trainer.updater.state = trainer.updater.state.with_items(items)
        trainer.control = losses.ControlState.from_json(values["controller"])
        rewarder.set_state(values["rewards"], network)
        self._asked, self._good = values["data_iter"]["asked"], values["data_iter"]["good"]
        self._watch = self._watch.restored(values["data_iter"]["under"])
        return latest

    def _save(self, checkpoints: Checkpoints, done: int) -> None:
        trainer, rewarder = self._trainer, self._trainer.rewarder
        if self._watch.calm:
            self._good = done
        checkpoints.save(
            done,
            arrays={name: trainer.updater.state.items()[name] for name in _ITEMS} | {"dynamics": rewarder.network},
            values={
                "controller": trainer.control.to_json(),
                "rewards": rewarder.state(),
                "data_iter": {"asked": self._asked, "good": self._good, "under": self._watch.to_json()},
            },
        )

    def _save_trajectories(self, trajectories: Sequence[Trajectory], done: int) -> None:
        path = Path(self._workdir.path) / "trajectories" / f"iteration-0-{done}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_trajectories(path, relative_media(trajectories, path.parent))

    def _farewell(self, checkpoints: Checkpoints, collapsed: str) -> str:
        where = f"{self._workdir.path}/checkpoints"
        kept = (
            f"the last good checkpoint is {where}/{self._good}" if self._good in checkpoints.steps() else "no checkpoint is good"
        )
        return f"the run was ended: {collapsed}; {kept}"


def _by_token(episode: Episode, worth: np.ndarray) -> np.ndarray:
    """Spreads what turns are worth, ``[turns]``, over their tokens."""
    turn = microbatches.turns_of(episode.tokens.roles)
    return np.where(turn >= 0, worth[np.clip(turn, 0, len(worth) - 1)], 0).astype(np.float32)


def _with_scores(episodes: Sequence[Episode], rewarded: Rewarded) -> list[Trajectory]:
    """Trajectories with what they earned."""
    parts = [one for group in rewarded.parts for one in group]
    return [
        dataclasses.replace(episode.trajectory, scores={**episode.trajectory.scores, **_reward_scores(one)})
        for episode, one in zip(episodes, parts, strict=True)
    ]


def _reward_scores(parts: rewards.Parts) -> dict[str, float]:
    return {f"reward_{name}": value for name, value in dataclasses.asdict(parts).items()}


def _rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    trajectories = [episode.trajectory for episode in episodes]
    stops = [trajectory.stopped for trajectory in trajectories]
    return {
        "accuracy": float(np.mean([trajectory.scores["task"] for trajectory in trajectories])),
        "rapr": rapr(trajectories),
        "racpr": racpr(trajectories),
        "valid_calls": valid_share(trajectories),
        "chain": float(np.mean([len(trajectory.steps) for trajectory in trajectories])),
        "tokens": float(np.mean([len(episode.tokens.ids) for episode in episodes])),
        **{f"stopped_{reason}": stops.count(reason) / len(stops) for reason in ("answer", "max_steps", "max_tokens")},
    }
