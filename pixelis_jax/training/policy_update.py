"""The update of reinforcement learning: gradients of one microbatch after another, then one step of the optimiser.

A minibatch is as many microbatches as it takes. Each has the same static shape, so one program is compiled, and memory does not
grow with the minibatch; sums are divided by the tokens of all of them, so how it is cut changes nothing but rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import nnx, struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from pixelis_jax import losses
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.training import sft
from pixelis_jax.training.log_probs import token_kl, token_log_probs
from pixelis_jax.training.microbatches import MicroBatch, Place, observations_and_steps
from pixelis_jax.training.state import PyTree, TrainState, join_parameters

Metrics = Mapping[str, clu_metrics.Average]


@struct.dataclass
class Reference:
    """What the frozen policy makes of a microbatch.

    Attributes:
      hidden: its final hidden states where tokens learn, ``[R, C, D]``.
      seen: its mean hidden state over each observation, of length 1, float32 ``[R, S, D]``; zeros where there is none.
      step: the same over each step.
    """

    hidden: Float[Array, "R C D"]
    seen: Float[Array, "R S D"]
    step: Float[Array, "R S D"]


@struct.dataclass
class Scale:
    """What the sums over a microbatch are multiplied by.

    Attributes:
      token: 1 / learning tokens of the minibatch.
      decision: 1 / those that decide something.
      beta: weight of the divergence.
    """

    token: jax.Array
    decision: jax.Array
    beta: jax.Array


def scale_of(micros: Sequence[MicroBatch], beta: float) -> Scale:
    """The scale of a minibatch, from its microbatches on the host."""
    tokens, decisions = (
        sum(float(np.sum(values)) for values in arrays)
        for arrays in ([micro.learns for micro in micros], [micro.decision for micro in micros])
    )
    parts = (1 / max(tokens, 1.0), 1 / max(decisions, 1.0), beta)
    return Scale(*(jnp.asarray(part, jnp.float32) for part in parts))


def make_reference(graph: nnx.GraphDef[Qwen3VL], config: ConfigDict) -> Callable[[PyTree, PyTree, MicroBatch], Reference]:
    """Builds the pass of the frozen policy.

    Args:
      graph: structure of the policy.
      config: ``pixels`` (``mean``, ``std``).

    Returns:
      (its parameters that the policy trains, those that are frozen, microbatch) -> what it makes of it; jitted.
    """

    def reference(trained: PyTree, frozen: PyTree, micro: MicroBatch) -> Reference:
        model = nnx.merge(graph, nnx.State(join_parameters(trained, frozen)))
        hidden, _ = sft.encode(model, micro.batch, config.pixels)
        chosen = _select(hidden, micro)
        return Reference(
            hidden=chosen.hidden,
            seen=_unit_means(hidden, micro.seen, micro.steps),
            step=_unit_means(hidden, micro.step, micro.steps),
        )

    return jax.jit(reference)


def features_of(
    places: Sequence[Place], references: Sequence[Reference], roles: Sequence[Int[np.ndarray, " T"]]
) -> list[tuple[Float[np.ndarray, "K1 D"], Float[np.ndarray, "K D"]]]:
    """Takes what the reference made of each episode out of its microbatches.

    Args:
      places: of the episodes (`microbatches.pack`).
      references: of each microbatch.
      roles: of the tokens of each episode.

    Returns:
      What was seen in the prompt and in each observation, and the same of each step, float32 on the host.
    """
    fetched = [jax.device_get((reference.seen, reference.step)) for reference in references]
    found = []
    for place, episode in zip(places, roles, strict=True):
        _, step = observations_and_steps(episode)
        count = int(step.max(initial=-1)) + 1
        seen, steps = (array[place.row] for array in fetched[place.micro])
        found.append((seen[place.seen : place.seen + count + 1], steps[place.step : place.step + count]))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """What an objective is computed from, ``[R, C]`` each: tokens that could learn.

    Attributes:
      log_probs: under the policy.
      old: the sampler's.
      worth: advantages, or weights of imitation.
      learns: 1 on those that learn.
      certainty: () -> the policy's divergence from the uniform distribution over the tokens that are not banned.
    """

    log_probs: jax.Array
    old: jax.Array
    worth: jax.Array
    learns: jax.Array
    certainty: Callable[[], jax.Array]


def clipped(tokens: Tokens, config: ConfigDict) -> tuple[jax.Array, dict[str, Any]]:
    """The clipped policy gradient (docs/algorithms.md, section 2)."""
    objective, terms = losses.clipped_policy_gradient(
        tokens.log_probs, tokens.old, tokens.worth, tokens.learns, clip_low=config.clip.low, clip_high=config.clip.high
    )
    count = tokens.learns.sum()
    metrics = {
        "policy_gradient": clu_metrics.Average(total=objective * count, count=count),
        "clipped": sft.average(terms.clipped, tokens.learns),
        "kl_sampler_k3": sft.average(losses.k3(terms.log_ratios), tokens.learns),
    }
    return objective * count, metrics


def imitation(tokens: Tokens, config: ConfigDict) -> tuple[jax.Array, dict[str, Any]]:
    """Negative log-probabilities, each times what its token is worth; averages are in that (section 3, step 7)."""
    del config  # nothing to set
    weights = tokens.learns * tokens.worth
    return jnp.sum(-tokens.log_probs * weights), {"imitation": sft.average(-tokens.log_probs, weights)}


def entropy(tokens: Tokens, config: ConfigDict) -> tuple[jax.Array, dict[str, Any]]:
    """The entropy of decisions, up to a constant: adaptation by certainty alone (Tent, https://arxiv.org/abs/2006.10726)."""
    del config  # nothing to set
    certainty, weights = tokens.certainty(), tokens.learns * tokens.worth
    return jnp.sum(-certainty * weights), {"certainty": sft.average(certainty, weights)}


OBJECTIVES: Mapping[str, Callable[[Tokens, ConfigDict], tuple[jax.Array, dict[str, Any]]]] = {
    "clipped": clipped,
    "imitation": imitation,
    "entropy": entropy,
}
"""(tokens, config) -> (sum over the tokens that is minimised, metrics)."""


def make_accumulate(graph: nnx.GraphDef[Qwen3VL], config: ConfigDict, banned: np.ndarray, objective: str = "clipped") -> Any:
    """Builds the gradient of one microbatch.

    `L = scale.token * objective + beta * mean over decision tokens of KL(policy || reference)` (docs/algorithms.md, sections 2
    and 3).

    Args:
      graph: structure of the policy.
      config: ``pixels``, ``loss`` (``chunk``, ``vocab_chunk``), ``temperature``, and what the objective needs.
      banned: tokens that take no probability, bool ``[V]``.
      objective: one of `OBJECTIVES`.

    Returns:
      (state, gradients so far, the reference's version of what is trained, microbatch, what the reference made of it, scale) ->
      (gradients, metrics); jitted, and the gradients that go in are donated.
    """
    chunks = {"chunk": config.loss.chunk, "vocab_chunk": config.loss.vocab_chunk, "temperature": config.temperature}

    def loss(
        trained: PyTree, frozen: PyTree, anchor: PyTree, micro: MicroBatch, reference: Reference, scale: Scale
    ) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graph, nnx.State(join_parameters(trained, frozen)))
        anchor_model = nnx.merge(graph, nnx.State(join_parameters(anchor, frozen)))
        hidden, _ = sft.encode(model, micro.batch, config.pixels)
        chosen = _select(hidden, micro)
        decision = _of_targets(micro, micro.decision)
        tokens = Tokens(
            log_probs=token_log_probs(model, chosen.hidden, _of_targets(micro, micro.batch.ids), banned, **chunks),
            old=_of_targets(micro, micro.old_log_probs),
            worth=_of_targets(micro, micro.advantages),
            learns=_of_targets(micro, micro.learns),
            # All logits of a hidden state of zeros are equal.
            certainty=lambda: token_kl(model, chosen.hidden, anchor_model, jnp.zeros_like(reference.hidden), banned, **chunks),
        )
        value, metrics = OBJECTIVES[objective](tokens, config)
        divergence = token_kl(model, chosen.hidden, anchor_model, reference.hidden, banned, **chunks)
        total = value * scale.token + scale.beta * jnp.sum(divergence * decision) * scale.decision
        metrics |= {"kl": sft.average(divergence, decision), "entropy": sft.average(-tokens.log_probs, decision)}
        return total, metrics

    def accumulate(
        state: TrainState, gradients: PyTree, anchor: PyTree, micro: MicroBatch, reference: Reference, scale: Scale
    ) -> tuple[PyTree, Metrics]:
        (_, metrics), added = jax.value_and_grad(loss, has_aux=True)(state.params, state.frozen, anchor, micro, reference, scale)
        return jax.tree.map(jnp.add, gradients, added), metrics

    return jax.jit(accumulate, donate_argnums=1)


def make_divergence(graph: nnx.GraphDef[Qwen3VL], config: ConfigDict, banned: np.ndarray) -> Any:
    """Builds the measurement of how far one version of the policy is from another.

    Args:
      graph: structure of the policy.
      config: ``loss`` (``chunk``, ``vocab_chunk``), ``temperature``.
      banned: tokens that take no probability, bool ``[V]``.

    Returns:
      (what the policy trains, the other's version of it, what is frozen, microbatch, what each made of it) -> sum and number of
      the divergences at decision tokens; jitted.
    """
    chunks = {"chunk": config.loss.chunk, "vocab_chunk": config.loss.vocab_chunk, "temperature": config.temperature}

    def divergence(
        trained: PyTree, anchor: PyTree, frozen: PyTree, micro: MicroBatch, ours: Reference, theirs: Reference
    ) -> tuple[jax.Array, jax.Array]:
        model, other = (nnx.merge(graph, nnx.State(join_parameters(part, frozen))) for part in (trained, anchor))
        decision = _of_targets(micro, micro.decision)
        kl = token_kl(model, ours.hidden, other, theirs.hidden, banned, **chunks)
        return jnp.sum(kl * decision), jnp.sum(decision)

    return jax.jit(divergence)


def make_apply(
    optimizer: optax.GradientTransformation, state: TrainState
) -> Callable[[TrainState, PyTree], tuple[TrainState, jax.Array]]:
    """Builds the step of the optimiser: (state, gradients) -> (state, norm of the gradients); jitted, the state is donated.

    Args:
      optimizer: over ``{"params": ..., "heads": ...}``; the heads are empty.
      state: placed; its updates stay where it lies.
    """

    def apply(state: TrainState, gradients: PyTree) -> tuple[TrainState, jax.Array]:
        both = {"params": gradients, "heads": state.heads}
        updates, opt_state = optimizer.update(both, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        state = dataclasses.replace(state, step=state.step + 1, params=trainable["params"], opt_state=opt_state)
        return state, optax.global_norm(gradients)

    placed = jax.tree.map(lambda array: array.sharding, state)
    return jax.jit(apply, donate_argnums=0, out_shardings=(placed, None))


def _select(hidden: jax.Array, micro: MicroBatch) -> losses.Selected:
    """Hidden states in front of the tokens that learn."""
    select = functools.partial(losses.select_weighted, capacity=micro.batch.weighted)
    return jax.vmap(select)(hidden[:, :-1], micro.batch.weights[:, 1:])


def _of_targets(micro: MicroBatch, values: jax.Array) -> jax.Array:
    """Values ``[R, T]`` at the tokens that `_select` has the hidden states in front of; 0 where padded."""
    return _select(jnp.roll(values, -1, axis=1)[..., None], micro).hidden[..., 0]


def _unit_means(hidden: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """Mean hidden state of the tokens of each index, ``[R, S, D]``, of length 1."""
    members = (index[:, None, :] == jnp.arange(count)[None, :, None]).astype(jnp.float32)
    sums = jnp.einsum("rst,rtd->rsd", members, hidden.astype(jnp.float32))
    return sums / jnp.maximum(jnp.linalg.norm(sums, axis=-1, keepdims=True), 1e-6)
