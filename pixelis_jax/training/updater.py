"""A policy under training, and steps of the optimiser on packed episodes: what CC-RFT and Pixel TTRL share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax import losses
from pixelis_jax.encoding import Encoder
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.training import loop, microbatches, policy_update, sft
from pixelis_jax.training.microbatches import MicroBatch, Place, Sampled
from pixelis_jax.training.optimizer import create_optimizer, learning_rate
from pixelis_jax.training.policy_update import Reference, Scale
from pixelis_jax.training.state import PyTree, create_state, join_parameters, split_parameters


def control_settings(kl: ConfigDict) -> losses.ControlSettings:
    """How `config.kl` holds the divergence; its ``beta`` is where that begins.

    Raises:
      ValueError: It cannot be held so.
    """
    return losses.ControlSettings(**{name: value for name, value in kl.items() if name != "beta"})


class Updater:
    """Parameters, optimiser, and the compiled parts of an update.

    Attributes:
      state: the present `TrainState`; its heads are empty.
      schedule: the learning rate of each step.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Qwen3VL,
        encoder: Encoder,
        banned_ids: Sequence[int],
        mesh: Mesh,
        *,
        updates: int,
        objective: str = "clipped",
    ):
        """Copies a policy.

        Args:
          config: ``seed``, ``trainable``, ``optimizer``, ``microbatch`` (``rows``, ``tokens``, ``frames``, ``weighted``), and as
            `policy_update.make_accumulate`.
          model: the initial policy; left as it is.
          encoder: of the same model directory.
          banned_ids: tokens that take no probability.
          mesh: the devices.
          updates: planned steps of the optimiser.
          objective: one of `policy_update.OBJECTIVES`.
        """
        self._encoder, self._mesh = encoder, mesh
        self._graph, params = nnx.split(model)
        trained, frozen = split_parameters(nnx.to_pure_dict(params), sft.TRAINABLE[config.trainable])
        places = sft.state_shardings(params, nnx.State({}), mesh, config.trainable)
        optimizer = create_optimizer(config.optimizer, updates)
        self.schedule = learning_rate(config.optimizer, updates)
        self.state = create_state(trained, {}, optimizer, jax.random.key(config.seed), places, frozen)
        banned = np.isin(np.arange(model.config.text.vocab_size), banned_ids)
        self._reference = policy_update.make_reference(self._graph, config)
        self._accumulate = policy_update.make_accumulate(self._graph, config, banned, objective)
        self._divergence = policy_update.make_divergence(self._graph, config, banned)
        self._apply = policy_update.make_apply(optimizer, self.state)
        self._patch_size = model.config.vision.patch_size
        self._shape = microbatches.Shape(
            rows=config.microbatch.rows,
            tokens=config.microbatch.tokens,
            frames=config.microbatch.frames,
            patches=encoder.prompt.patch_bucket,
            weighted=config.microbatch.weighted,
        )

    def trained(self) -> PyTree:
        """A copy of the parameters that are trained: the next update donates them. The others never change."""
        return jax.tree.map(jnp.copy, self.state.params)

    def policy(self) -> Qwen3VL:
        """A copy of the present policy."""
        return nnx.merge(self._graph, nnx.State(join_parameters(self.trained(), self.state.frozen)))

    def pack(self, episodes: Sequence[Sampled]) -> tuple[list[MicroBatch], list[Place]]:
        """`microbatches.pack`, with the batches on the devices; what is filled in later is still on the host."""
        micros, places = microbatches.pack(episodes, self._shape, self._patch_size)
        return [dataclasses.replace(micro, batch=loop.place_batch(micro.batch, self._mesh)) for micro in micros], places

    def see(self, params: PyTree, micros: Sequence[MicroBatch]) -> list[Reference]:
        """What the policy with these parameters in place of the trained ones makes of microbatches."""
        return [self._reference(params, self.state.frozen, self._placed(micro)) for micro in micros]

    def divergence(self, anchor: PyTree, micros: Sequence[MicroBatch], references: Sequence[Reference]) -> float:
        """Mean KL(policy || anchor) over the decision tokens of microbatches, exact, in nats.

        Args:
          anchor: the other version of what is trained.
          micros: as `pack` made them.
          references: what the anchor makes of them (`see`).
        """
        sums = []
        for micro, own, theirs in zip(micros, self.see(self.state.params, micros), references, strict=True):
            placed = self._placed(micro)
            sums.append(self._divergence(self.state.params, anchor, self.state.frozen, placed, own, theirs))
        total, count = np.sum(jax.device_get(sums), axis=0)
        return max(float(total), 0.0) / max(float(count), 1.0)

    def step(
        self, anchor: PyTree, micros: Sequence[MicroBatch], references: Sequence[Reference], scale: Scale
    ) -> dict[str, float]:
        """One step of the optimiser.

        Args:
          anchor: the version of what is trained that the divergence is from.
          micros: of the minibatch, with what their tokens are worth.
          references: what the anchor makes of them (`see`).
          scale: of the sums.

        Returns:
          Metrics of the policy before the step.

        Raises:
          FloatingPointError: A loss or gradient is not finite.
        """
        gradients = jax.tree.map(jnp.zeros_like, self.state.params)
        sums: list[Any] = []
        for micro, reference in zip(micros, references, strict=True):
            gradients, metrics = self._accumulate(self.state, gradients, anchor, self._placed(micro), reference, scale)
            sums.append(metrics)
        self.state, norm = self._apply(self.state, gradients)
        fetched, norm = jax.device_get((sums, norm))
        found = {
            name: float(sum(m[name].total for m in fetched)) / max(float(sum(m[name].count for m in fetched)), 1e-9)
            for name in fetched[0]
        }
        if not np.isfinite([*found.values(), norm]).all():
            raise FloatingPointError(
                f"update {int(self.state.step)} is not finite ({found}, gradient norm {norm}); it is not saved"
            )
        return found | {"gradient_norm": float(norm)}

    def _placed(self, micro: MicroBatch) -> MicroBatch:
        fields = {name: getattr(micro, name) for name in microbatches.TOKEN_FIELDS}
        return dataclasses.replace(micro, **loop.place_batch(fields, self._mesh))
