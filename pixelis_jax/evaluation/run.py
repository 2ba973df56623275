"""Runs a policy over examples with and without tools, and sums up what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.evaluation.statistics import mean_interval
from pixelis_jax.rollout.agent import Agent, Request
from pixelis_jax.trajectory import Example, Trajectory
from pixelis_jax.trajectory.regions import racpr, rapr, valid_share
from pixelis_jax.verifiers import verify

Outcomes = Mapping[str, Trajectory]
"""Judged trajectories (`scores["task"]`) by example id."""


def run(
    agent: Agent,
    examples: Iterable[Example],
    *,
    use_tools: bool,
    constrain: bool = False,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> dict[str, Trajectory]:
    """Asks every example once, greedily.

    Args:
      agent: The policy and its tools.
      examples: What to ask.
      use_tools: False bans the token that opens a call and uses the no-tools prompt.
      constrain: Keeps calls to their grammar.
      on_episode: Called with each judged trajectory as it ends.

    Returns:
      Judged trajectories by example id, in the order of `examples`.
    """
    asked = list(examples)
    outcomes: dict[str, Trajectory] = {}
    for episode in agent.run(Request(example=example, use_tools=use_tools, constrain=constrain) for example in asked):
        trajectory = judge(episode.trajectory, episode.request.example)
        outcomes[trajectory.example] = trajectory
        if on_episode is not None:
            on_episode(trajectory)
    return {example.id: outcomes[example.id] for example in asked}


def judge(trajectory: Trajectory, example: Example) -> Trajectory:
    """The trajectory with the verifier's score as `scores["task"]`; no answer scores 0."""
    score = 0.0 if trajectory.answer is None else verify(example.verifier, trajectory.answer, example.truth)
    return dataclasses.replace(trajectory, scores={**trajectory.scores, "task": score})


def summarize(outcomes: Outcomes) -> dict[str, Any]:
    """Accuracy with its interval and the process metrics of `docs/algorithms.md`, section 6.

    Returns:
      `n`, `accuracy`, `interval` (95 %, BCa over questions), `rapr`, `racpr`, `valid_calls`, `mean_chain` (calls).
    """
    trajectories = list(outcomes.values())
    scores = [trajectory.scores["task"] for trajectory in trajectories]
    return {
        "n": len(scores),
        "accuracy": float(np.mean(scores)),
        "interval": list(mean_interval(scores)),
        "rapr": rapr(trajectories),
        "racpr": racpr(trajectories),
        "valid_calls": valid_share(trajectories),
        "mean_chain": float(np.mean([len(trajectory.steps) for trajectory in trajectories])),
    }


def tool_gain_and_harm(with_tools: Outcomes, without: Outcomes) -> tuple[float, float]:
    """Shares of questions right only with tools, and right only without (arXiv 2602.01334).

    Raises:
      ValueError: The two do not hold the same questions.
    """
    if with_tools.keys() != without.keys():
        raise ValueError("tool gain needs the same questions with and without tools")
    pairs = [(with_tools[key].scores["task"] >= 0.5, without[key].scores["task"] >= 0.5) for key in with_tools]
    return float(np.mean([a and not b for a, b in pairs])), float(np.mean([b and not a for a, b in pairs]))


def by_family(outcomes: Outcomes, examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """`summarize` for each family, in the order in which they first occur."""
    groups: dict[str, dict[str, Trajectory]] = {}
    for example in examples:
        groups.setdefault(example.family, {})[example.id] = outcomes[example.id]
    return {family: summarize(group) for family, group in groups.items()}
