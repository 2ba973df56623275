"""A controller that holds the KL divergence in a corridor by the weight beta of its penalty (algorithms.md, section 4).

A PID controller in velocity form on log beta: each update multiplies beta by
`exp(kp (e_t - e_{t-1}) + ki e_t + kd (e_t - 2 e_{t-1} + e_{t-2}))`, where `e = log(max(KL, 1e-3) / set_point)`. Ratios, because
the divergence and the weight that it takes both range over decades (an adaptive weight on the same idea: PPO,
https://arxiv.org/abs/1707.06347, section 4). Plain numbers on the host.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

LEAST_KL = 1e-3
"""Divergences below count as this one, so that the error of a policy that has not moved yet is finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """How a divergence is held.

    The gains are those that did well over all plants of the simulation in `experiments/kl_plant.py`: drifts and pulls of several
    strengths, with and without a lag between beta and its effect.

    Attributes:
      set_point: the divergence to hold, in nats a token.
      top: above it beta does not fall, however fast the divergence does.
      kp: gain of the change of the error.
      ki: gain of the error.
      kd: gain of the change of the change.
      least: lowest beta.
      most: highest beta. What would drive beta beyond a limit is dropped, not kept for later.
      warm_up: updates at the beginning in which beta stays; they are measured all the same.
      smoothing: measurements whose mean is controlled.
    """

    set_point: float = 0.13
    top: float = 0.20
    kp: float = 1.5
    ki: float = 0.1
    kd: float = 0.3
    least: float = 1e-4
    most: float = 10.0
    warm_up: int = 0
    smoothing: int = 2

    def __post_init__(self) -> None:
        if not LEAST_KL < self.set_point < self.top:
            raise ValueError(f"set_point must lie between {LEAST_KL} and top = {self.top}, not at {self.set_point}")
        if not 0 < self.least < self.most:
            raise ValueError(f"beta needs limits 0 < least < most, not {self.least} and {self.most}")
        if min(self.kp, self.ki, self.kd) < 0:
            raise ValueError(f"gains must not be negative: kp {self.kp}, ki {self.ki}, kd {self.kd}")
        if self.warm_up < 0 or self.smoothing < 1:
            raise ValueError(f"warm_up must be at least 0 and smoothing at least 1, not {self.warm_up} and {self.smoothing}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlState:
    """What the controller remembers; plain numbers, so that a checkpoint holds it as JSON.

    Attributes:
      beta: weight of the penalty in the next update.
      updates: measurements so far.
      measured: the last ones, oldest first, at most as many as are averaged.
      errors: the last two, older first; empty before the first measurement.
    """

    beta: float
    updates: int = 0
    measured: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def kl(self) -> float:
        """The smoothed divergence; NaN before the first measurement."""
        return sum(self.measured) / len(self.measured) if self.measured else math.nan

    def to_json(self) -> dict[str, Any]:
        """The state as a dict that JSON gives back to the bit."""
        return {
            "beta": self.beta,
            "updates": self.updates,
            "measured": list(self.measured),
            "errors": list(self.errors),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ControlState":
        """The state that `to_json` described."""
        return cls(
            beta=float(data["beta"]),
            updates=int(data["updates"]),
            measured=tuple(map(float, data["measured"])),
            errors=tuple(map(float, data["errors"])),
        )


def update_control(state: ControlState, settings: ControlSettings, measured_kl: float) -> ControlState:
    """Takes a measurement and sets beta.

    Args:
      state: before; of a new run, `ControlState(beta=...)`.
      settings: of the run.
      measured_kl: divergence after an update of the policy.

    Returns:
      The state after it.

    Raises:
      ValueError: the measurement is no divergence.
    """
    if not 0 <= measured_kl < math.inf:
        raise ValueError(f"a measured KL must be finite and not negative, not {measured_kl}")
    measured = (*state.measured, float(measured_kl))[-settings.smoothing :]
    kl = sum(measured) / len(measured)
    error = math.log(max(kl, LEAST_KL) / settings.set_point)
    # Before the first measurement the error is taken to have stood where it is: a start is no change.
    before, last = state.errors or (error, error)
    beta = state.beta
    if state.updates >= settings.warm_up:
        step = settings.kp * (error - last) + settings.ki * error + settings.kd * (error - 2 * last + before)
        if kl > settings.top:
            step = max(step, 0.0)
        beta = min(max(beta * math.exp(step), settings.least), settings.most)
    return ControlState(beta=beta, updates=state.updates + 1, measured=measured, errors=(last, error))
