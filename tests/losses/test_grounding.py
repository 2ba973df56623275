"""Losses of the auxiliary heads against numbers worked out by hand, and their properties."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pixelis_jax import losses


def _maybe_jit(function, jit):
    return jax.jit(function) if jit else function


@pytest.mark.parametrize("jit", [False, True])
def test_smooth_l1(jit: bool) -> None:
    function = _maybe_jit(functools.partial(losses.smooth_l1, beta=0.1), jit)
    # 0.05^2 / 0.2 = 0.0125; 0.3 - 0.05 = 0.25; the two meet at 0.05.
    np.testing.assert_allclose(function(jnp.array([0.05, -0.3, 0.1, 0.0])), [0.0125, 0.25, 0.05, 0.0], rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_generalized_iou(jit: bool) -> None:
    function = _maybe_jit(losses.generalized_iou, jit)
    unit = jnp.array([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(function(unit, unit), 1.0, rtol=1e-6)
    # Halves of [0, 2] x [0, 1]: no overlap, the hull is full: 0.
    np.testing.assert_allclose(function(unit, jnp.array([1.0, 0.0, 2.0, 1.0])), 0.0, atol=1e-6)
    # One apart: hull 3, union 2: -1/3.
    np.testing.assert_allclose(function(unit, jnp.array([2.0, 0.0, 3.0, 1.0])), -1 / 3, rtol=1e-6)
    # Shifted by half a side: IoU 1/3, hull = union.
    np.testing.assert_allclose(function(unit, jnp.array([0.5, 0.0, 1.5, 1.0])), 1 / 3, rtol=1e-6)
    # Diagonal quarter: intersection 1/4, union 7/4, hull 9/4: 1/7 - 2/9.
    np.testing.assert_allclose(function(unit, jnp.array([0.5, 0.5, 1.5, 1.5])), 1 / 7 - 2 / 9, rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_temporal_iou(jit: bool) -> None:
    function = _maybe_jit(losses.temporal_iou, jit)
    np.testing.assert_allclose(function(jnp.array([0.0, 0.5]), jnp.array([0.25, 1.0])), 0.25, rtol=1e-6)
    np.testing.assert_allclose(function(jnp.array([0.0, 0.2]), jnp.array([0.3, 0.6])), 0.0)
    np.testing.assert_allclose(function(jnp.array([0.6, 0.3]), jnp.array([0.3, 0.6])), 0.0)  # runs backwards


@pytest.mark.parametrize("jit", [False, True])
def test_losses_of_one_call(jit: bool) -> None:
    target = jnp.array([0.0, 0.0, 1.0, 1.0])
    shifted = jnp.array([0.5, 0.0, 1.5, 1.0])
    # Two coordinates of four are off by 0.5: (0.45 + 0.45) / 4; GIoU 1/3.
    expected = 0.225 + 0.5 * (1 - 1 / 3)
    np.testing.assert_allclose(_maybe_jit(losses.box_loss, jit)(shifted, target), expected, rtol=1e-5)
    np.testing.assert_allclose(_maybe_jit(losses.box_loss, jit)(target, target), 0.0, atol=1e-6)
    point = _maybe_jit(losses.point_loss, jit)(jnp.array([0.3, 0.05]), jnp.array([0.0, 0.0]))
    np.testing.assert_allclose(point, (0.25 + 0.0125) / 2, rtol=1e-5)
    span = _maybe_jit(losses.span_loss, jit)(jnp.array([0.0, 0.5]), jnp.array([0.25, 1.0]))
    np.testing.assert_allclose(span, (0.2 + 0.45) / 2 + 0.5 * 0.75, rtol=1e-5)
    operation = _maybe_jit(losses.operation_loss, jit)(jnp.log(jnp.array([1.0, 2.0, 5.0])), jnp.array(1))
    np.testing.assert_allclose(operation, np.log(4.0), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_mean_over_the_heads_that_apply(jit: bool) -> None:
    numbers = {"box": [1.0, 3.0, 99.0], "span": [5.0, 7.0, 9.0], "point": [6.0, 8.0, 8.0]}
    values = {name: jnp.array(values) for name, values in numbers.items()}
    valid = {
        "box": jnp.array([True, True, False]),
        "span": jnp.array([False, False, False]),
        "point": jnp.array([True, False, False]),
    }
    function = _maybe_jit(losses.mean_over_heads, jit)
    np.testing.assert_allclose(function(values, valid), (2.0 + 6.0) / 2)
    nothing = {name: jnp.zeros(3, bool) for name in values}
    np.testing.assert_allclose(function(values, nothing), 0.0)


def test_heads_must_agree() -> None:
    with pytest.raises(ValueError, match="valid names"):
        losses.mean_over_heads({"box": jnp.ones(1)}, {"span": jnp.ones(1, bool)})


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(AssertionError):
        losses.box_loss(jnp.zeros(2), jnp.zeros(2))


def test_gradients() -> None:
    predicted, target = jnp.array([0.21, 0.33, 0.62, 0.74]), jnp.array([0.1, 0.2, 0.5, 0.7])
    check = functools.partial(check_grads, order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    check(jax.jit(lambda p: losses.box_loss(p, target)), (predicted,))
    check(jax.jit(lambda p: losses.span_loss(p, target[1:3])), (predicted[1:3],))


def test_empty_and_backward_boxes_have_finite_gradients() -> None:
    target = jnp.array([0.2, 0.2, 0.4, 0.4])
    for box in ([0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.4, 0.4]):
        value, gradient = _BOX_GRADIENT(jnp.array(box), target)
        chex.assert_tree_all_finite((value, gradient))


_COORDINATE = st.floats(0, 1, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(_COORDINATE, min_size=8, max_size=8))
def test_generalized_iou_is_symmetric_and_bounded(numbers: list[float]) -> None:
    a, b = (np.float32([*np.minimum(n[:2], n[2:]), *np.maximum(n[:2], n[2:])]) for n in np.split(np.array(numbers), 2))
    value = float(_GIOU(a, b))
    assert -1.0 - 1e-5 <= value <= 1.0 + 1e-5
    assert value == pytest.approx(float(_GIOU(b, a)), abs=1e-6)


_GIOU = jax.jit(losses.generalized_iou)
_BOX_GRADIENT = jax.jit(jax.value_and_grad(losses.box_loss))
