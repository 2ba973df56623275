import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.voting import risk_at, risk_coverage


def test_the_curve_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 2 / 4])


def test_equals_share_their_errors() -> None:
    # Two of three equals fit in: two thirds of their one error.
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, False, True, True])
    assert risk_at(confidence, correct, 0.75) == pytest.approx((2 / 3) / 3)
    assert risk_at(confidence, correct, 1.0) == 0.25


@pytest.mark.parametrize(("coverage", "answered"), [(0.07, 7), (0.071, 8), (1e-6, 1), (1.0, 100)])
def test_how_many_a_coverage_answers(coverage: float, answered: int) -> None:
    confidence = np.arange(100.0)[::-1]
    assert risk_at(confidence, np.zeros(100, bool), coverage) == 1.0
    first_right = np.arange(100) >= 1  # the most confident alone is wrong
    assert risk_at(confidence, first_right, coverage) == pytest.approx(1 / answered)


@pytest.mark.parametrize("coverage", [0.0, 1.5, float("nan")])
def test_no_such_coverage(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        risk_at(np.ones(2), np.ones(2, bool), coverage)
    with pytest.raises(ValueError, match="at least one"):
        risk_at(np.ones(0), np.ones(0, bool), 0.5)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=12), st.randoms())
def test_the_curve_depends_on_no_order_and_ends_at_the_error(pairs: list, random) -> None:
    curve = risk_coverage(*map(np.array, zip(*pairs, strict=True)))
    assert curve[1][-1] == pytest.approx(np.mean([not right for _, right in pairs]))
    random.shuffle(pairs)
    np.testing.assert_allclose(risk_coverage(*map(np.array, zip(*pairs, strict=True))), curve)
