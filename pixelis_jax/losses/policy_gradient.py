"""The clipped policy gradient and the advantages that it weighs tokens by (algorithms.md, section 2)."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pixelis_jax.losses.averages import weighted_mean


class PolicyGradientTerms(NamedTuple):
    """What a run logs about an update, and the tokens behind it.

    Attributes:
      log_ratios: `log pi - log pi_old` of each token; 0 where it has no weight.
      clipped: whether the clip took a token's gradient away.
      clip_share: weighted share of clipped tokens.
      old_kl: weighted mean of `k3`, an estimate of KL(pi_old || pi).
    """

    log_ratios: Float[Array, "*n"]
    clipped: Bool[Array, "*n"]
    clip_share: Float[Array, ""]
    old_kl: Float[Array, ""]


def clipped_policy_gradient(
    log_probs: Float[Array, "*n"],
    old_log_probs: Float[Array, "*n"],
    advantages: Float[Array, "*n"],
    weights: Float[Array, "*n"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> tuple[Float[Array, ""], PolicyGradientTerms]:
    """Computes `mean_t -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)` with `r_t = pi(y_t) / pi_old(y_t)`.

    The loss of PPO (Schulman et al., https://arxiv.org/abs/1707.06347), averaged over all tokens of the batch and with the
    upper limit further out, which leaves room for unlikely tokens to grow (DAPO, https://arxiv.org/abs/2503.14476).

    Args:
      log_probs: log-probability of each token under the policy.
      old_log_probs: the same under the policy that sampled it.
      advantages: of each token; no gradient flows into them.
      weights: of each token, not negative; 0 for what the policy did not choose: context, padding, forced tokens.
      clip_low: how far the ratio may fall below 1 where the advantage is negative.
      clip_high: how far it may rise above 1 where the advantage is positive.

    Returns:
      The loss, 0 where no token has a weight, and what to log.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, weights])
    used = weights > 0
    # Chosen before the exponential: whatever stands at an unused token must not become infinity times zero.
    log_ratios = jnp.where(used, log_probs - old_log_probs, 0.0)
    ratios = jnp.exp(log_ratios)
    advantages = jnp.where(used, advantages, 0.0)
    losses = -jnp.minimum(ratios * advantages, jnp.clip(ratios, 1.0 - clip_low, 1.0 + clip_high) * advantages)
    clipped = ((advantages > 0) & (ratios > 1.0 + clip_high)) | ((advantages < 0) & (ratios < 1.0 - clip_low))
    terms = PolicyGradientTerms(
        log_ratios=log_ratios,
        clipped=clipped,
        clip_share=weighted_mean(clipped.astype(jnp.float32), weights),
        old_kl=weighted_mean(k3(log_ratios), weights),
    )
    return weighted_mean(losses, weights), terms


def k3(log_ratios: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Estimates KL(p || q) from one sample x of p: `q/p - 1 - log(q/p)` (http://joschu.net/blog/kl-approx.html).

    Unbiased and never negative, to be logged; the loss takes the exact divergence (`token_kl`).

    Args:
      log_ratios: `log q(x) - log p(x)`.

    Returns:
      The estimates.
    """
    return jnp.expm1(log_ratios) - log_ratios


def group_advantages(
    rewards: Float[np.ndarray, "G n"], valid: Bool[np.ndarray, "G n"], *, least_std: float = 0.25
) -> Float[np.ndarray, "G n"]:
    """Advantages within groups of trajectories of one prompt: `(R - mean) / max(std, least_std)`. Numpy, on the host.

    After GRPO (https://arxiv.org/abs/2402.03300), which divides by the standard deviation alone: in a group that is all right or
    all wrong, that would blow small shaping rewards up to unit advantages.

    Args:
      rewards: of each trajectory; those that are not valid may hold anything.
      valid: whether a trajectory counts. One that does not is left out of mean and standard deviation as well.
      least_std: least divisor, above 0.

    Returns:
      The advantages, float64; 0 where not valid. The standard deviation is the population's.
    """
    chex.assert_rank([rewards, valid], 2)
    chex.assert_equal_shape([rewards, valid])
    rewards = np.where(valid, np.asarray(rewards, np.float64), 0.0)
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred = np.where(valid, rewards - rewards.sum(axis=1, keepdims=True) / count, 0.0)
    std = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / count)
    return centred / np.maximum(std, least_std)


def turn_advantages(
    returns: Sequence[Float[np.ndarray, " turns"]], valid: Bool[np.ndarray, " n"], *, least_std: float = 0.25
) -> list[Float[np.ndarray, " turns"]]:
    """Advantages turn by turn within one group: `(G_t - mean G_t) / max(std, least_std)`. Numpy, on the host.

    The baseline of turn t is the mean over the group's valid trajectories of what each earned from turn t on, or, where it has
    fewer turns, from its last; `std` is that of whole trajectories, as in `group_advantages`.

    Args:
      returns: reward earned from each turn on, of each trajectory.
      valid: whether a trajectory counts.
      least_std: least divisor, above 0.

    Returns:
      The advantages of each trajectory's turns; 0 where it is not valid.
    """
    if len(returns) != len(valid):
        raise ValueError(f"{len(returns)} trajectories, but {len(valid)} say whether they count")
    counted = [own for own, counts in zip(returns, valid, strict=True) if counts]
    if not counted:
        return [np.zeros(len(own)) for own in returns]
    divisor = max(float(np.std([own[0] for own in counted])), least_std)

    def baseline(turn: int) -> float:
        return float(np.mean([own[min(turn, len(own) - 1)] for own in counted]))

    baselines = np.array([baseline(turn) for turn in range(max(map(len, returns)))])
    return [(own - baselines[: len(own)]) / divisor * bool(counts) for own, counts in zip(returns, valid, strict=True)]


def zero_spread(task_rewards: Float[np.ndarray, "G n"], valid: Bool[np.ndarray, "G n"]) -> Bool[np.ndarray, " G"]:
    """Whether a group's valid trajectories all earned the same for the task, so that it teaches nothing about it. Numpy.

    Args:
      task_rewards: without shaping, which nearly always differs.
      valid: whether a trajectory counts.

    Returns:
      One bool a group; True for a group with fewer than two valid trajectories.
    """
    chex.assert_rank([task_rewards, valid], 2)
    chex.assert_equal_shape([task_rewards, valid])
    highest = np.where(valid, task_rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, task_rewards, np.inf).min(axis=1)
    return highest <= lowest
