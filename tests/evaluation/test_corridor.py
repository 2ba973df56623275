import pytest

from pixelis_jax.evaluation.corridor import in_corridor


def test_shares_by_hand() -> None:
    found = in_corridor([0.05, 0.10, 0.15, 0.20, 0.30])
    assert (found.updates, found.inside, found.below, found.above) == (5, 0.6, 0.2, 0.2)  # both edges are inside
    assert (found.median, found.greatest) == (0.15, 0.30)
    assert found.p95 == pytest.approx(0.28)  # four fifths of the way from 0.20 to 0.30
    assert in_corridor([0.05, 0.3], bottom=0.01, top=0.06).inside == 0.5


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_what_is_no_run(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one divergence"):
        in_corridor(values)
