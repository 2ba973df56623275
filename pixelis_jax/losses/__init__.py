"""Losses: pure functions on arrays."""

from pixelis_jax.losses.chunked import BANNED_LOGIT, Selected, select_weighted, token_log_probs
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

__all__ = [
    "BANNED_LOGIT",
    "Selected",
    "box_loss",
    "generalized_iou",
    "imitation_loss",
    "masked_mean",
    "mean_over_heads",
    "operation_loss",
    "point_loss",
    "select_weighted",
    "smooth_l1",
    "span_loss",
    "temporal_iou",
    "token_log_probs",
    "token_weights",
]
