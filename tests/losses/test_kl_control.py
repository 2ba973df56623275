"""The KL controller: every term by hand, and its limits. On a simulated policy that drifts: `test_kl_plant.py`."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.losses import ControlSettings, ControlState, update_control


def _betas(settings: ControlSettings, kls: list[float], beta: float = 1.0) -> list[float]:
    state, betas = ControlState(beta=beta), []
    for kl in kls:
        state = update_control(state, settings, kl)
        betas.append(state.beta)
    return betas


def _settings(**changes: float) -> ControlSettings:
    """No gains and no smoothing unless told; the set-point is 0.1."""
    return ControlSettings(**{"set_point": 0.1, "top": 1e9, "kp": 0.0, "ki": 0.0, "kd": 0.0, "smoothing": 1} | changes)


def test_every_term_by_hand() -> None:
    kls = [0.1, 0.2, 0.2, 0.05]  # errors 0, log 2, log 2, -log 2
    assert _betas(_settings(ki=1.0), kls) == pytest.approx([1, 2, 4, 2])
    assert _betas(_settings(kp=1.0), kls) == pytest.approx([1, 2, 2, 0.5])
    # Second differences: 0, log 2, -log 2, -2 log 2.
    assert _betas(_settings(kd=1.0), kls) == pytest.approx([1, 2, 1, 0.25])
    # Together their exponents add up: 0, then 0.5 + 0.1 + 0.2, then 0.1 - 0.2, then -1 - 0.1 - 0.4, times log 2.
    exponents = itertools.accumulate([0.0, 0.8, -0.1, -1.5])
    assert _betas(_settings(kp=0.5, ki=0.1, kd=0.2), kls) == pytest.approx([2**exponent for exponent in exponents])


def test_a_start_is_no_change() -> None:
    assert _betas(_settings(kp=3.0, kd=3.0), [0.4]) == [1.0]


def test_tiny_divergences_count_as_the_least() -> None:
    assert _betas(_settings(ki=1.0), [0.0]) == pytest.approx([0.01])
    assert _betas(_settings(ki=1.0), [1e-3]) == pytest.approx([0.01])


def test_measurements_are_smoothed() -> None:
    settings = _settings(ki=1.0, smoothing=2)
    # Means: 0.1, 0.2, 0.2, 0.1.
    assert _betas(settings, [0.1, 0.3, 0.1, 0.1]) == pytest.approx([1, 2, 4, 4])
    state = update_control(update_control(ControlState(beta=1.0), settings, 0.1), settings, 0.3)
    assert state.kl == pytest.approx(0.2)
    assert math.isnan(ControlState(beta=1.0).kl)


def test_a_clamp_winds_nothing_up() -> None:
    settings = _settings(ki=1.0, most=3.0, least=0.5)
    # Outward increments at the limit are dropped: the first one back counts in full.
    assert _betas(settings, [0.2] * 50 + [0.05]) == pytest.approx([2] + [3] * 49 + [1.5])
    assert _betas(settings, [0.05] * 50 + [0.2]) == pytest.approx([0.5] * 50 + [1])
    assert _betas(settings, [0.2] * 3)[-1] == 3.0


def test_in_warm_up_beta_stays_and_nothing_is_wound_up() -> None:
    settings = _settings(kp=1.0, ki=1.0, kd=1.0, warm_up=3)
    # Then the error has not changed, and only the integral moves beta.
    assert _betas(settings, [0.2] * 5) == pytest.approx([1, 1, 1, 2, 4])
    # Errors of the warm-up count as earlier ones: 0, 0, 0, then log 2 in all three terms.
    assert _betas(settings, [0.1] * 3 + [0.2]) == pytest.approx([1, 1, 1, 8])


def test_above_the_top_beta_does_not_fall() -> None:
    # Errors log 8, log 4, log 2: the divergence falls fast, which alone halves beta each time.
    assert _betas(_settings(kp=1.0), [0.8, 0.4, 0.2]) == pytest.approx([1, 0.5, 0.25])
    assert _betas(_settings(kp=1.0, top=0.3), [0.8, 0.4, 0.2]) == pytest.approx([1, 1, 0.5])


@pytest.mark.parametrize("kl", [math.nan, math.inf, -0.1])
def test_what_is_no_divergence_is_refused(kl: float) -> None:
    with pytest.raises(ValueError, match="measured KL"):
        update_control(ControlState(beta=1.0), ControlSettings(), kl)


@pytest.mark.parametrize(
    "change",
    [{"set_point": 0.3}, {"set_point": 1e-4}, {"least": 0.0}, {"least": 20.0}, {"ki": -1.0}, {"warm_up": -1}, {"smoothing": 0}],
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ControlSettings(**change)


@given(st.lists(st.floats(0, 5), max_size=6), st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_a_state_goes_through_json_and_goes_on_as_before(before: list[float], after: list[float]) -> None:
    settings, state = ControlSettings(warm_up=2, smoothing=3), ControlState(beta=0.3)
    for kl in before:
        state = update_control(state, settings, kl)
    restored = ControlState.from_json(json.loads(json.dumps(state.to_json())))
    assert restored == state
    for kl in after:
        state, restored = update_control(state, settings, kl), update_control(restored, settings, kl)
    assert restored == state and settings.least <= state.beta <= settings.most
