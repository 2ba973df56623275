"""What a policy could still learn: the vote and the best of several samples (algorithms.md, section 5)."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.evaluation.run import judge
from pixelis_jax.evaluation.statistics import mean_interval
from pixelis_jax.rollout.agent import Agent, Request
from pixelis_jax.trajectory import Example, Trajectory
from pixelis_jax.verifiers.text import normalise

Samples = Mapping[str, Sequence[Trajectory]]
"""Judged trajectories of each example, in the order of their sample numbers."""


def sample(
    agent: Agent,
    examples: Iterable[Example],
    *,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> dict[str, list[Trajectory]]:
    """Asks every example several times, with tools.

    Args:
      agent: The policy and its tools.
      examples: What to ask.
      count: Samples of each.
      seed: Of the sampling.
      temperature: Of the sampling.
      on_episode: Called with each judged trajectory as it ends.
    """
    asked = list(examples)
    found: dict[str, dict[int, Trajectory]] = {example.id: {} for example in asked}
    requests = (
        Request(example=example, sample=number, seed=seed, temperature=temperature)
        for example in asked
        for number in range(count)
    )
    for episode in agent.run(requests):
        trajectory = judge(episode.trajectory, episode.request.example)
        found[trajectory.example][trajectory.sample or 0] = trajectory
        if on_episode is not None:
            on_episode(trajectory)
    return {key: [samples[number] for number in sorted(samples)] for key, samples in found.items()}


def vote(trajectories: Sequence[Trajectory]) -> Trajectory | None:
    """The first trajectory with the most frequent answer; of equally frequent ones the first that came up. No answer has no
    vote; None if there is no answer at all."""
    answered = [trajectory for trajectory in trajectories if trajectory.answer is not None]
    if not answered:
        return None
    counts = collections.Counter(normalise(str(trajectory.answer)) for trajectory in answered)
    winner = counts.most_common(1)[0][0]
    return next(trajectory for trajectory in answered if normalise(str(trajectory.answer)) == winner)


def summarize_samples(samples: Samples) -> dict[str, Any]:
    """Accuracy of one sample, of the vote, and of the best, each with its 95 % interval (BCa over questions).

    Returns:
      `n` questions, `samples` of each, and for `single`, `majority` and `best` accuracy and interval.
    """
    groups = list(samples.values())
    winners = [vote(group) for group in groups]
    scores = {
        "single": [float(np.mean([trajectory.scores["task"] for trajectory in group])) for group in groups],
        "majority": [0.0 if winner is None else winner.scores["task"] for winner in winners],
        "best": [max(trajectory.scores["task"] for trajectory in group) for group in groups],
    }
    summary: dict[str, Any] = {"n": len(groups), "samples": len(groups[0])}
    for name, values in scores.items():
        summary[name] = {"accuracy": float(np.mean(values)), "interval": list(mean_interval(values))}
    return summary
