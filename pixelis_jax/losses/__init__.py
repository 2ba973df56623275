"""Losses: pure functions on arrays."""

from pixelis_jax.losses.averages import weighted_mean
from pixelis_jax.losses.chunked import Selected, select_weighted, token_log_probs
from pixelis_jax.losses.divergence import token_kl
from pixelis_jax.losses.dynamics import (
    DynamicsParams,
    disagreement,
    dynamics_loss,
    init_dynamics,
    predict_features,
    prediction_error,
)
from pixelis_jax.losses.grounding import (
    box_loss,
    generalized_iou,
    masked_mean,
    mean_over_heads,
    operation_loss,
    point_loss,
    smooth_l1,
    span_loss,
    temporal_iou,
)
from pixelis_jax.losses.imitation import imitation_loss, token_weights
from pixelis_jax.losses.kl_control import ControlSettings, ControlState, update_control
from pixelis_jax.losses.policy_gradient import (
    PolicyGradientTerms,
    clipped_policy_gradient,
    group_advantages,
    k3,
    turn_advantages,
    zero_spread,
)
from pixelis_jax.losses.vocabulary import BANNED_LOGIT

__all__ = [
    "BANNED_LOGIT",
    "ControlSettings",
    "ControlState",
    "DynamicsParams",
    "PolicyGradientTerms",
    "Selected",
    "box_loss",
    "clipped_policy_gradient",
    "disagreement",
    "dynamics_loss",
    "generalized_iou",
    "group_advantages",
    "imitation_loss",
    "init_dynamics",
    "k3",
    "masked_mean",
    "mean_over_heads",
    "operation_loss",
    "point_loss",
    "predict_features",
    "prediction_error",
    "select_weighted",
    "smooth_l1",
    "span_loss",
    "temporal_iou",
    "token_kl",
    "token_log_probs",
    "token_weights",
    "turn_advantages",
    "update_control",
    "weighted_mean",
    "zero_spread",
]
