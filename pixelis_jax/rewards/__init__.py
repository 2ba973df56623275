"""Rewards: pure functions on trajectories and on what a frozen policy made of them, in numpy on the host."""

from pixelis_jax.rewards.coherence import background_cosine, coherence_reward, pair_rewards
from pixelis_jax.rewards.combine import Parts, Weights, combine
from pixelis_jax.rewards.curiosity import counted_calls, curiosity_rewards
from pixelis_jax.rewards.curriculum import Curriculum
from pixelis_jax.rewards.efficiency import efficiency_penalty, step_penalties
from pixelis_jax.rewards.statistics import RunningMean
from pixelis_jax.rewards.step_credit import step_rewards, turn_returns
from pixelis_jax.rewards.usage import usage

__all__ = [
    "Curriculum",
    "Parts",
    "RunningMean",
    "Weights",
    "background_cosine",
    "coherence_reward",
    "combine",
    "counted_calls",
    "curiosity_rewards",
    "efficiency_penalty",
    "pair_rewards",
    "step_penalties",
    "step_rewards",
    "turn_returns",
    "usage",
]
