"""Losses of the auxiliary grounding heads (algorithms.md, section 1).

Coordinates and times lie in [0, 1] relative to the medium. Every function handles one call; callers `vmap` over calls and
average the calls to which a head applies (`masked_mean`), then the heads that apply at all (`mean_over_heads`).
"""

from collections.abc import Mapping

import chex
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# Smallest area or length that is divided by: an empty box has no overlap, and not a NaN.
_TINY = 1e-9


def smooth_l1(errors: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Smooth L1 of Fast R-CNN (https://arxiv.org/abs/1504.08083): `e^2 / (2 beta)` below beta, `|e| - beta / 2` above.

    Args:
      errors: prediction minus target.
      beta: where the square meets the line, above 0.

    Returns:
      The loss of each element.
    """
    return optax.losses.huber_loss(errors, delta=beta) / beta


def generalized_iou(box_a: Float[Array, "4"], box_b: Float[Array, "4"]) -> Float[Array, ""]:
    """Generalised IoU (Rezatofighi et al., https://arxiv.org/abs/1902.09630): `IoU - (hull - union) / hull`.

    Args:
      box_a: x1, y1, x2, y2. A side that runs backwards has length 0.
      box_b: the other box.

    Returns:
      A number in [-1, 1]; 1 for equal boxes.
    """
    chex.assert_shape([box_a, box_b], (4,))
    size_a = jnp.maximum(box_a[2:] - box_a[:2], 0.0)
    size_b = jnp.maximum(box_b[2:] - box_b[:2], 0.0)
    overlap = jnp.minimum(box_a[2:], box_b[2:]) - jnp.maximum(box_a[:2], box_b[:2])
    intersection = jnp.prod(jnp.maximum(overlap, 0.0))
    union = jnp.prod(size_a) + jnp.prod(size_b) - intersection
    hull_size = jnp.maximum(box_a[2:], box_b[2:]) - jnp.minimum(box_a[:2], box_b[:2])
    hull = jnp.prod(jnp.maximum(hull_size, 0.0))
    return intersection / jnp.maximum(union, _TINY) - (hull - union) / jnp.maximum(hull, _TINY)


def temporal_iou(span_a: Float[Array, "2"], span_b: Float[Array, "2"]) -> Float[Array, ""]:
    """Overlap of two time spans over their union.

    Args:
      span_a: start, end. A span that runs backwards has length 0.
      span_b: the other span.

    Returns:
      A number in [0, 1].
    """
    chex.assert_shape([span_a, span_b], (2,))
    overlap = jnp.maximum(jnp.minimum(span_a[1], span_b[1]) - jnp.maximum(span_a[0], span_b[0]), 0.0)
    union = jnp.maximum(span_a[1] - span_a[0], 0.0) + jnp.maximum(span_b[1] - span_b[0], 0.0) - overlap
    return overlap / jnp.maximum(union, _TINY)


def box_loss(
    predicted: Float[Array, "4"], target: Float[Array, "4"], *, beta: float = 0.1, iou_weight: float = 0.5
) -> Float[Array, ""]:
    """Mean smooth L1 over the four coordinates + `iou_weight * (1 - GIoU)`.

    Args:
      predicted: x1, y1, x2, y2.
      target: the box of the demonstrated call.
      beta: of the smooth L1.
      iou_weight: weight of the overlap term.

    Returns:
      The loss of one box.
    """
    chex.assert_shape([predicted, target], (4,))
    return jnp.mean(smooth_l1(predicted - target, beta)) + iou_weight * (1.0 - generalized_iou(predicted, target))


def point_loss(predicted: Float[Array, "2"], target: Float[Array, "2"], *, beta: float = 0.1) -> Float[Array, ""]:
    """Mean smooth L1 over x and y.

    Args:
      predicted: x, y.
      target: the point of the demonstrated call.
      beta: of the smooth L1.

    Returns:
      The loss of one point.
    """
    chex.assert_shape([predicted, target], (2,))
    return jnp.mean(smooth_l1(predicted - target, beta))


def span_loss(
    predicted: Float[Array, "2"], target: Float[Array, "2"], *, beta: float = 0.1, iou_weight: float = 0.5
) -> Float[Array, ""]:
    """Mean smooth L1 over start and end + `iou_weight * (1 - temporal IoU)`.

    Args:
      predicted: start, end.
      target: the span of the demonstrated call.
      beta: of the smooth L1.
      iou_weight: weight of the overlap term.

    Returns:
      The loss of one span.
    """
    chex.assert_shape([predicted, target], (2,))
    return jnp.mean(smooth_l1(predicted - target, beta)) + iou_weight * (1.0 - temporal_iou(predicted, target))


def operation_loss(logits: Float[Array, " O"], target: Int[Array, ""]) -> Float[Array, ""]:
    """Cross-entropy over the operations.

    Args:
      logits: one score an operation.
      target: the operation of the demonstrated call.

    Returns:
      The loss of one call.
    """
    chex.assert_rank([logits, target], [1, 0])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)


def masked_mean(values: Float[Array, "*n"], valid: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Mean of the valid values; 0 where none is valid.

    Args:
      values: one loss a call; an invalid one may hold anything finite.
      valid: whether the head applies to the call.

    Returns:
      The mean.
    """
    chex.assert_equal_shape([values, valid])
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def mean_over_heads(losses: Mapping[str, Float[Array, "*n"]], valid: Mapping[str, Bool[Array, "*n"]]) -> Float[Array, ""]:
    """Mean, over the heads that apply to at least one call, of each head's mean loss.

    Args:
      losses: by head, one loss a call.
      valid: by head, the calls to which it applies.

    Returns:
      The auxiliary loss; 0 where no head applies.

    Raises:
      ValueError: the two name different heads.
    """
    if losses.keys() != valid.keys():
        raise ValueError(f"losses are of heads {sorted(losses)} but valid names {sorted(valid)}")
    means = jnp.stack([masked_mean(losses[name], valid[name]) for name in sorted(losses)])
    applies = jnp.stack([jnp.any(valid[name]) for name in sorted(losses)])
    return masked_mean(means, applies)
