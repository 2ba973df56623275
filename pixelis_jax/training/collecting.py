"""Rollouts for training: which questions an iteration asks, and their episodes in an order that does not depend on the tools."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from pixelis_jax import losses
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Agent, Episode, Request
from pixelis_jax.trajectory import Example, PolicyInfo, Trajectory

OUTAGES = ("timeout", "worker_lost", "out_of_memory")
"""Errors of a tool that are no fault of the policy."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Episodes of one question, by sample number."""

    example: Example
    episodes: tuple[Episode, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What an iteration sampled.

    Attributes:
      groups: in the order in which their questions were drawn.
      asked: questions drawn, those of groups that were refilled included.
      refilled: groups whose episodes were all worth the same, and which others replaced.
      seconds: it took.
    """

    groups: tuple[Group, ...]
    asked: int
    refilled: int
    seconds: float


class Collector:
    """Samples groups of episodes with an agent."""

    def __init__(
        self,
        agent: Agent,
        examples: Sequence[Example],
        *,
        judge: Callable[[Trajectory, Example], Trajectory],
        prompts: int,
        samples: int,
        seed: int,
        temperature: float = 1.0,
        refills: int = 0,
        policy: str = "",
    ):
        """Binds an agent to questions.

        Args:
          agent: Runs the episodes.
          examples: Are asked in a shuffled order, another one every epoch.
          judge: Gives an episode its `scores["task"]`.
          prompts: Questions of an iteration.
          samples: Episodes of a question.
          seed: Of the order, and of the sampling.
          temperature: Of the sampling.
          refills: How often groups whose episodes are all worth the same are replaced by others.
          policy: What trajectories call the policy.
        """
        self._agent, self._examples, self._judge = agent, list(examples), judge
        self._prompts, self._samples, self._seed = prompts, samples, seed
        self._temperature, self._refills, self._policy = temperature, refills, policy

    def collect(self, model: Qwen3VL, version: int, first: int) -> Collected:
        """Samples the groups of one iteration.

        Args:
          model: The policy; the engine keeps its parameters, so they must not be donated.
          version: Number of the policy, above that of every one before.
          first: Questions that were drawn before.
        """
        begin = time.monotonic()
        self._agent.update_policy(model, PolicyInfo(model=self._policy, step=version))
        groups = self._ask(range(first, first + self._prompts), version)
        asked, refilled = self._prompts, 0
        for _ in range(self._refills):
            alike = np.flatnonzero(zero_spread(groups)).tolist()
            if not alike:
                break
            others = self._ask(range(first + asked, first + asked + len(alike)), version)
            asked, refilled = asked + len(alike), refilled + len(alike)
            for number, other in zip(alike, others, strict=True):
                groups[number] = other
        return Collected(groups=tuple(groups), asked=asked, refilled=refilled, seconds=time.monotonic() - begin)

    def example(self, number: int) -> Example:
        """Returns the question that is drawn as number `number`."""
        epoch, place = divmod(number, len(self._examples))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._examples))
        return self._examples[order[place]]

    def _ask(self, numbers: range, version: int) -> list[Group]:
        # A question that comes again in another epoch is sampled anew.
        seed = int(np.random.default_rng([self._seed, version, numbers.start]).integers(2**31))
        examples = [self.example(number) for number in numbers]
        requests = [
            Request(example=example, sample=sample, seed=seed, temperature=self._temperature)
            for example in examples
            for sample in range(self._samples)
        ]
        episodes = {episode.request.id: episode for episode in self._agent.run(requests)}
        found = [self._judged(episodes[request.id]) for request in requests]
        return [
            Group(example, tuple(found[start : start + self._samples]))
            for example, start in zip(examples, range(0, len(found), self._samples), strict=True)
        ]

    def _judged(self, episode: Episode) -> Episode:
        return dataclasses.replace(episode, trajectory=self._judge(episode.trajectory, episode.request.example))


def zero_spread(groups: Sequence[Group]) -> Bool[np.ndarray, " G"]:
    """Which groups teach nothing about their task: all of their episodes earned the same for it."""
    trajectories = [[episode.trajectory for episode in group.episodes] for group in groups]
    scores = np.array([[trajectory.scores["task"] for trajectory in group] for group in trajectories])
    return losses.zero_spread(scores, np.array([[not is_masked(trajectory) for trajectory in group] for group in trajectories]))


def is_masked(trajectory: Trajectory) -> bool:
    """Whether an episode says nothing about the policy's choices: it was cut off, or a tool was out of order."""
    cut_off = trajectory.stopped in ("max_tokens", "context_full", "wall_clock", "cancelled", "error")
    return cut_off or any(
        step.observation.error is not None and step.observation.error.code in OUTAGES for step in trajectory.steps
    )
