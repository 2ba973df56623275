"""A policy that learns at test time without drifting: imitation, an anchor that follows, a guard (docs/ttrl.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax import losses
from pixelis_jax.data.examples import ROLE_WEIGHTS
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.encoding import Encoder
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.training import microbatches
from pixelis_jax.training.microbatches import MicroBatch, Sampled
from pixelis_jax.training.policy_update import scale_of
from pixelis_jax.training.state import PyTree
from pixelis_jax.training.updater import Updater, control_settings
from pixelis_jax.trajectory import DECISION_ROLES, Role

OBJECTIVES: Mapping[str, str] = {"imitation": "imitation", "grpo": "clipped", "entropy": "entropy"}
"""What an update minimises, and the objective of `policy_update` that does it."""

CONTROLS = ("pid", "fixed", "none")
"""How the weight of the divergence goes: held by the controller, as it is, or 0."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Taught:
    """A trajectory of an update.

    Attributes:
      example: its tokens (`data.examples.encode_record`).
      worth: imitation: weight of its mean over tokens; grpo: its advantage; entropy: its weight. 0: it only holds the policy.
      anchored: whether its divergence from the anchor counts.
      log_probs: the sampler's, ``[T]``; None where nothing needs them.
    """

    example: EncodedExample
    worth: float
    anchored: bool
    log_probs: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What came of an update.

    Attributes:
      accepted: False where the guard took it back.
      kl: divergence from the anchor on the probe set, after it.
      beta: weight of the divergence in it.
      metrics: of the step.
    """

    accepted: bool
    kl: float
    beta: float
    metrics: Mapping[str, float]


class Learner:
    """Parameters, their exponential mean, and the controller: what a checkpoint is of."""

    def __init__(self, config: ConfigDict, model: Qwen3VL, encoder: Encoder, banned_ids: Sequence[int], mesh: Mesh):
        """Copies a policy, which is also the first anchor.

        Args:
          config: ``total_steps``, ``objective`` (one of `OBJECTIVES`), ``control`` (one of `CONTROLS`), ``kl`` (as
            `losses.ControlSettings`, and ``beta``), ``guard`` (``on``, ``limit``), ``ema`` (``half_life`` in updates), and as
            `Updater`.
          model: the initial policy; left as it is.
          encoder: of the same model directory.
          banned_ids: tokens that take no probability.
          mesh: the devices.
        """
        self._config = config
        objective = OBJECTIVES[config.objective]
        self.updater = Updater(config, model, encoder, banned_ids, mesh, updates=config.total_steps, objective=objective)
        self.ema = self.updater.trained()
        self.control = losses.ControlState(beta=config.kl.beta if config.control != "none" else 0.0)
        self._settings = control_settings(config.kl)
        self._probe: list[MicroBatch] = []
        tau = 0.5 ** (1 / config.ema.half_life)
        self._follow = jax.jit(
            lambda mean, params: jax.tree.map(lambda old, new: tau * old + (1 - tau) * new, mean, params), donate_argnums=0
        )

    @property
    def step(self) -> int:
        """Updates that were accepted."""
        return int(self.updater.state.step)

    def policy(self) -> Qwen3VL:
        """A copy of the present policy."""
        return self.updater.policy()

    def probe(self, examples: Sequence[EncodedExample]) -> None:
        """Sets the trajectories on which the divergence is measured."""
        self._probe, _ = self.updater.pack([_sampled(example, None) for example in examples])

    def divergence(self) -> float:
        """Mean KL(policy || anchor) over the decision tokens of the probe set, in nats."""
        return self.updater.divergence(self.ema, self._probe, self.updater.see(self.ema, self._probe))

    def learn(self, lesson: Sequence[Taught]) -> Update:
        """Takes one step, and back if it went too far.

        Args:
          lesson: at least one trajectory.

        Raises:
          FloatingPointError: A loss or gradient is not finite.
        """
        state, beta = self.updater.state, self.control.beta
        # The step donates them.
        kept: PyTree = jax.tree.map(jnp.copy, (state.params, state.opt_state, state.step))
        micros, places = self.updater.pack([_sampled(taught.example, taught.log_probs) for taught in lesson])
        worth = [self._token_worth(taught) for taught in lesson]
        micros = microbatches.with_advantages(micros, places, worth, [True] * len(lesson), [taught.anchored for taught in lesson])
        scale = scale_of(micros, beta)
        if self._config.objective != "grpo":  # their averages are in what tokens are worth
            scale = dataclasses.replace(scale, token=jnp.ones((), jnp.float32))
        metrics = self.updater.step(self.ema, micros, self.updater.see(self.ema, micros), scale)
        kl = self.divergence()
        if not math.isfinite(kl):
            raise FloatingPointError(f"the divergence after update {self.step} is {kl}; it is not saved")
        accepted = not self._config.guard.on or kl <= self._config.guard.limit
        if accepted:
            self.ema = self._follow(self.ema, self.updater.state.params)
            if self._config.control == "pid":
                self.control = losses.update_control(self.control, self._settings, kl)
        else:
            params, opt_state, step = kept
            self.updater.state = dataclasses.replace(self.updater.state, params=params, opt_state=opt_state, step=step)
        return Update(accepted=accepted, kl=kl, beta=beta, metrics=metrics)

    def items(self) -> dict[str, Any]:
        """Returns the arrays that a checkpoint keeps."""
        items = self.updater.state.items()
        return {"params": items["params"], "opt_state": items["opt_state"], "rng": items["rng"], "ema": self.ema}

    def set_items(self, items: Mapping[str, Any], control: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        items = dict(items)
        self.ema = items.pop("ema")
        self.updater.state = self.updater.state.with_items(items)
        self.control = losses.ControlState.from_json(control)

    def _token_worth(self, taught: Taught) -> np.ndarray:
        example = taught.example
        sampled = example["weights"] > 0
        if self._config.objective == "grpo":
            return np.where(sampled, taught.worth, 0.0).astype(np.float32)
        if self._config.objective == "entropy":
            weights = (sampled & np.isin(example["roles"], DECISION_ROLES)).astype(np.float32)
        else:
            weights = role_weights(example["roles"]) * sampled
        return taught.worth * weights / max(float(weights.sum()), 1e-9)


def role_weights(roles: np.ndarray) -> np.ndarray:
    """Weights of imitation of tokens by their roles (docs/algorithms.md, section 1)."""
    table = np.zeros(max(Role) + 1, np.float32)
    for role, weight in ROLE_WEIGHTS.items():
        table[role] = weight
    return table[roles]


def _sampled(example: EncodedExample, log_probs: np.ndarray | None) -> Sampled:
    return Sampled(example=example, log_probs=np.zeros(len(example["ids"]), np.float32) if log_probs is None else log_probs)
