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


def make_accumulate(graph: nnx.GraphDef[Qwen3VL], config: ConfigDict, banned: np.ndarray) -> Any:
    """Builds the gradient of one microbatch.

    `L = mean over learning tokens of the clipped objective + beta * mean over decision tokens of KL(policy || reference)`
    (docs/algorithms.md, section 2).

    Args:
      graph: structure of the policy.
      config: ``pixels``, ``clip`` (``low``, ``high``), ``loss`` (``chunk``, ``vocab_chunk``), ``temperature``.
      banned: tokens that take no probability, bool ``[V]``.

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
        index = jnp.minimum(chosen.positions + 1, micro.batch.ids.shape[1] - 1)
        targets, old, advantages, learns, decision = (
            jnp.take_along_axis(array, index, axis=1)
            for array in (micro.batch.ids, micro.old_log_probs, micro.advantages, micro.learns, micro.decision)
        )
        # Padded slots point past the end; clamped, they read some token.
        weights, decision = (array * (chosen.weights > 0) for array in (learns, decision))
        log_probs = token_log_probs(model, chosen.hidden, targets, banned, **chunks)
        objective, terms = losses.clipped_policy_gradient(
            log_probs, old, advantages, weights, clip_low=config.clip.low, clip_high=config.clip.high
        )
        divergence = token_kl(model, chosen.hidden, anchor_model, reference.hidden, banned, **chunks)
        count = weights.sum()
        total = objective * count * scale.token + scale.beta * jnp.sum(divergence * decision) * scale.decision
        metrics = {
            "policy_gradient": clu_metrics.Average(total=objective * count, count=count),
            "clipped": sft.average(terms.clipped, weights),
            "kl": sft.average(divergence, decision),
            "kl_sampler_k3": sft.average(losses.k3(terms.log_ratios), weights),
            "entropy": sft.average(-log_probs, decision),
        }
        return total, metrics

    def accumulate(
        state: TrainState, gradients: PyTree, anchor: PyTree, micro: MicroBatch, reference: Reference, scale: Scale
    ) -> tuple[PyTree, Metrics]:
        (_, metrics), added = jax.value_and_grad(loss, has_aux=True)(state.params, state.frozen, anchor, micro, reference, scale)
        return jax.tree.map(jnp.add, gradients, added), metrics

    return jax.jit(accumulate, donate_argnums=1)


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


def _unit_means(hidden: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """Mean hidden state of the tokens of each index, ``[R, S, D]``, of length 1."""
    members = (index[:, None, :] == jnp.arange(count)[None, :, None]).astype(jnp.float32)
    sums = jnp.einsum("rst,rtd->rsd", members, hidden.astype(jnp.float32))
    return sums / jnp.maximum(jnp.linalg.norm(sums, axis=-1, keepdims=True), 1e-6)
