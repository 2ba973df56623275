"""Rewards of a batch of episodes, and the curiosity network that is trained on them (algorithms.md, section 2).

What runs on is updated once a batch and in the order of the prompts, so that a run can be repeated: running means, the network,
and its optimiser. Rewards are judged before a batch is learnt from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from pixelis_jax import losses, rewards
from pixelis_jax.data.examples import OPERATIONS
from pixelis_jax.trajectory import Trajectory, is_valid, repeats
from tools_host.protocol import ToolCall

_ARGUMENTS: Mapping[str, int] = {"bbox_2d": 4, "point_2d": 2, "time_s": 1, "until_s": 1, "start_s": 1, "end_s": 1}
_ORDER = ("media", "region", "other")
ACTION_WIDTH = len(OPERATIONS) + 1 + 2 * (sum(_ARGUMENTS.values()) + len(_ORDER))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One episode, with what its rewards are made of.

    Attributes:
      trajectory: with the verifier's `scores["task"]`.
      masked: it takes no part in learning.
      seen: features of the prompt and of each observation, float32 ``[K + 1, D]``.
      step: features of each step, float32 ``[K, D]``. K may be less than its steps, where the last observation did not fit.
    """

    trajectory: Trajectory
    masked: bool
    seen: Float[np.ndarray, "K1 D"]
    step: Float[np.ndarray, "K D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarded:
    """What a batch earned.

    Attributes:
      parts: of each episode of each group.
      advantages: of each episode's turns, ``[T + 1]``; its answer is the last.
      metrics: means over the batch.
    """

    parts: tuple[tuple[rewards.Parts, ...], ...]
    advantages: tuple[tuple[Float[np.ndarray, " T1"], ...], ...]
    metrics: Mapping[str, float]


class Rewarder:
    """Rewards batches one after another."""

    def __init__(self, config: ConfigDict, *, features: int, max_steps: int, episodes: int, seed: int):
        """Starts with a new network and empty running means.

        Args:
          config: ``weights`` (``curiosity``, ``coherence``, ``penalty``, ``usage``), ``curiosity`` (``variant``, ``heads``,
            ``hidden``, ``learning_rate``, ``steps``), ``usage`` (as `rewards.usage`), ``advantage`` (``least_std``,
            ``credit``), ``curriculum`` (``on``, and as `rewards.Curriculum`).
          features: D.
          max_steps: T_max.
          episodes: of a batch.
          seed: of the network.
        """
        self._config, self._max_steps = config, max_steps
        self._room = episodes * max_steps
        key = jax.random.key(seed)
        sizes = {"heads": config.curiosity.heads, "hidden": config.curiosity.hidden}
        params = losses.init_dynamics(key, features, ACTION_WIDTH, **sizes)
        self._optimizer = optax.adam(config.curiosity.learning_rate)
        self.network: dict[str, Any] = {"params": params, "opt_state": self._optimizer.init(params)}
        self._means = {name: rewards.RunningMean() for name in ("surprise", "strangers", "coherence")}
        options = {name: value for name, value in config.curriculum.items() if name != "on"}
        self._curriculum = rewards.Curriculum(**options) if config.curriculum.on else None

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps as JSON; it keeps `network` as arrays."""
        curriculum = None if self._curriculum is None else self._curriculum.to_json()
        return {"means": {name: mean.to_json() for name, mean in self._means.items()}, "curriculum": curriculum}

    def set_state(self, state: Mapping[str, Any], network: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._means = {name: rewards.RunningMean.from_json(mean) for name, mean in state["means"].items()}
        if self._curriculum is not None:
            self._curriculum = self._curriculum.restored(state["curriculum"])
        self.network = network

    def reward(self, groups: Sequence[Sequence[Judged]]) -> Rewarded:
        """Rewards a batch, then learns from it.

        Args:
          groups: episodes of each prompt, in a fixed order.
        """
        episodes = [episode for group in groups for episode in group]
        numbers = [number for number, group in enumerate(groups) for episode in group for _ in episode.step]
        steps = np.concatenate([episode.step for episode in episodes])
        strangers = rewards.background_cosine(steps, np.asarray(numbers)) if numbers else None
        if strangers is not None:
            self._means["strangers"] = self._means["strangers"].add([strangers])
        surprises, network_loss = self._surprise(episodes)
        counted = [rewards.counted_calls(episode.trajectory) for episode in episodes]
        self._means["surprise"] = self._means["surprise"].add(
            np.concatenate([f[c] for f, c in zip(surprises, counted, strict=True)])
        )
        weights = self._weights()
        tool_shares = [share for group in groups for share in [_tool_share(group)] * len(group)]
        made = [self._parts(*given, weights) for given in zip(episodes, surprises, counted, tool_shares, strict=True)]
        # Of episodes that have pairs: of the others the mean would only hear itself.
        self._means["coherence"] = self._means["coherence"].add(
            [parts.coherence for (parts, _), episode in zip(made, episodes, strict=True) if len(episode.step) > 1]
        )
        parts = _by_group([one for one, _ in made], groups)
        advantages = self._advantages(groups, parts, _by_group([shaped for _, shaped in made], groups))
        if self._curriculum is not None:
            self._curriculum = self._curriculum.update(float(np.mean([one.task for one, _ in made])))
        metrics = _summary([one for one, _ in made]) | {
            "dynamics/loss": network_loss,
            "dynamics/surprise": self._means["surprise"].mean,
            "coherence/strangers": self._means["strangers"].mean,
        }
        if self._curriculum is not None:
            metrics["curriculum/stage"] = float(self._curriculum.stage)
        return Rewarded(parts=parts, advantages=advantages, metrics=metrics)

    def _weights(self) -> rewards.Weights:
        weights = rewards.Weights(**self._config.weights)
        if self._curriculum is None:
            return weights
        unpaid = {name: 0.0 for name in ("curiosity", "coherence") if not self._curriculum.paid(name)}
        return dataclasses.replace(weights, **unpaid)

    def _parts(
        self,
        episode: Judged,
        surprises: Float[np.ndarray, " T"],
        counted: Bool[np.ndarray, " T"],
        tool_share: float,
        weights: rewards.Weights,
    ) -> tuple[rewards.Parts, Float[np.ndarray, " T"]]:
        """What an episode earned, and what of it, weighted, at each of its steps."""
        trajectory, most = episode.trajectory, self._max_steps
        task = trajectory.scores["task"]
        valid = np.array([is_valid(step) for step in trajectory.steps], bool)
        curiosity = rewards.curiosity_rewards(surprises, counted, self._means["surprise"].mean, most_calls=most, task=task)
        again = np.array(repeats(trajectory), bool)[: len(episode.step)]
        pairs = rewards.pair_rewards(episode.step, again, self._means["strangers"].mean)
        parts = rewards.combine(
            task=task,
            curiosity=float(curiosity.sum()),
            coherence=rewards.coherence_reward(pairs, self._means["coherence"].mean),
            penalty=rewards.efficiency_penalty(valid, most_calls=most),
            usage=rewards.usage(int(valid.sum()), tool_share, **self._config.usage),
            weights=weights,
        )
        # Of an episode whose last observation did not fit, the last pair is unknown; such an episode is masked.
        pairs = np.pad(pairs, (0, max(len(valid) - 1, 0) - len(pairs)))
        return parts, rewards.step_rewards(curiosity, pairs, rewards.step_penalties(valid, most_calls=most), weights)

    def _advantages(
        self,
        groups: Sequence[Sequence[Judged]],
        parts: Sequence[Sequence[rewards.Parts]],
        shaped: Sequence[Sequence[Float[np.ndarray, " T"]]],
    ) -> tuple[tuple[Float[np.ndarray, " T1"], ...], ...]:
        total = np.array([[one.total for one in group] for group in parts])
        valid = np.array([[not episode.masked for episode in group] for group in groups])
        least_std = self._config.advantage.least_std
        if self._config.advantage.credit == "step":
            # What no step earned belongs to the answer.
            returns = [
                [rewards.turn_returns(steps, one.total - float(steps.sum())) for steps, one in zip(*group, strict=True)]
                for group in zip(shaped, parts, strict=True)
            ]
            return tuple(
                tuple(losses.turn_advantages(group, mask, least_std=least_std))
                for group, mask in zip(returns, valid, strict=True)
            )
        found = losses.group_advantages(total, valid, least_std=least_std)
        return tuple(
            tuple(np.full(len(steps) + 1, value) for value, steps in zip(*group, strict=True))
            for group in zip(found, shaped, strict=True)
        )

    def _surprise(self, episodes: Sequence[Judged]) -> tuple[list[Float[np.ndarray, " K"]], float]:
        """How surprising each call was before the network learnt from the batch, and its loss."""
        width = episodes[0].seen.shape[1]
        before, after = np.zeros((self._room, width), np.float32), np.zeros((self._room, width), np.float32)
        actions, known = np.zeros((self._room, ACTION_WIDTH), np.float32), np.zeros(self._room, np.float32)
        counts, row = [], 0
        for episode in episodes:
            count = len(episode.step)
            here = slice(row, row + count)
            before[here], after[here] = episode.seen[:count], episode.seen[1 : count + 1]
            for place, step in enumerate(episode.trajectory.steps[:count], start=row):
                actions[place], known[place] = encode_action(step.call), is_valid(step)
            counts.append(count)
            row += count
        found, self.network, loss = _look_and_learn(
            self._optimizer, self.network, before, actions, after, known,
            paper=self._config.curiosity.variant == "paper", steps=self._config.curiosity.steps,
        )  # fmt: skip
        ends = np.cumsum(counts)
        parts = [np.asarray(found, np.float64)[end - count : end] for end, count in zip(ends, counts, strict=True)]
        # A call whose observation is not known surprised nobody.
        return [np.pad(part, (0, len(e.trajectory.steps) - len(part))) for part, e in zip(parts, episodes, strict=True)], float(
            loss
        )


@functools.partial(jax.jit, static_argnums=0, static_argnames=("paper", "steps"))
def _look_and_learn(
    optimizer: optax.GradientTransformation,
    network: dict[str, Any],
    before: jax.Array,
    actions: jax.Array,
    after: jax.Array,
    known: jax.Array,
    *,
    paper: bool,
    steps: int,
) -> tuple[jax.Array, dict[str, Any], jax.Array]:
    predictions = losses.predict_features(network["params"], before, actions)
    surprise = losses.prediction_error(predictions, after) if paper else losses.disagreement(predictions)

    def learn(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = carry
        loss, gradient = jax.value_and_grad(losses.dynamics_loss)(params, before, actions, after, known)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), history = jax.lax.scan(learn, (network["params"], network["opt_state"]), length=steps)
    return surprise, {"params": params, "opt_state": opt_state}, history[0]


def encode_action(call: ToolCall | None) -> Float[np.ndarray, " A"]:
    """A call as numbers: one-hot operation (the last place for any other), arguments in about [0, 1], and which are given.

    Boxes and points count in thousandths of the medium, times in units of 10 s, media and regions in tenths.
    """
    operation = np.zeros(len(OPERATIONS) + 1, np.float32)
    name = "" if call is None else call.name
    operation[OPERATIONS.index(name) if name in OPERATIONS else -1] = 1
    values: list[float] = []
    given: list[float] = []
    arguments = {} if call is None else call.arguments
    for argument, width in (*_ARGUMENTS.items(), *((name, 1) for name in _ORDER)):
        scale = 1e-3 if width > 1 else 0.1
        value = np.ravel(np.asarray(arguments.get(argument, []), object))
        fits = len(value) == width and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        values += [float(np.clip(scale * x, -2, 2)) for x in value] if fits else [0.0] * width
        given += [float(fits)] * width
    return np.concatenate([operation, values, given]).astype(np.float32)


def _tool_share(group: Sequence[Judged]) -> float:
    """Share of a question's episodes that call a tool as they should."""
    return float(np.mean([any(is_valid(step) for step in episode.trajectory.steps) for episode in group]))


def _by_group(values: Sequence[Any], groups: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    ends = np.cumsum([len(group) for group in groups])
    return tuple(tuple(values[end - len(group) : end]) for end, group in zip(ends, groups, strict=True))


def _summary(parts: Sequence[rewards.Parts]) -> dict[str, float]:
    names = [field.name for field in dataclasses.fields(rewards.Parts)]
    means = {f"reward/{name}": float(np.mean([getattr(one, name) for one in parts])) for name in names}
    return means | {"reward/total_std": float(np.std([one.total for one in parts]))}
