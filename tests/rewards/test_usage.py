"""The bonus for using tools, by hand."""

import pytest

from pixelis_jax.rewards import Weights, combine, usage


def test_a_tool_is_paid_while_few_use_one():
    assert usage(1, 0.1) == pytest.approx(0.2) and usage(0, 0.1) == 0.0
    assert usage(1, 0.3) == 0.0 and usage(1, 0.9) == 0.0


def test_many_calls_are_fined():
    assert usage(3, 0.1) == pytest.approx(0.2 - 0.2) and usage(3, 0.9, most_calls=2) == pytest.approx(-0.1)


def test_it_counts_where_it_has_a_weight():
    parts = combine(1.0, 0.5, 0.5, 0.5, Weights(curiosity=0, coherence=0, penalty=0, usage=0.5), usage=0.2)
    assert parts.weighted_usage == pytest.approx(0.1) and parts.total == 1.0 + parts.weighted_usage
    assert combine(1.0, 0.5, 0.5, 0.5, Weights(), usage=0.2).weighted_usage == 0.0
