"""Chains with their boxes elsewhere."""

import numpy as np

from pixelis_jax.evaluation import honesty


def test_random_boxes_keep_their_size_and_stay_inside() -> None:
    place = honesty._place("random box", np.random.default_rng(0))
    boxes = np.array([place((100, 120, 200, 180), 500, 400) for _ in range(200)])
    assert boxes.min() >= 0 and boxes.max() <= 1000
    inner = boxes[(boxes > 0).all(1) & (boxes < 1000).all(1)]
    # 100 of 500 and 60 of 400 pixels, padded by 6 % at each end, rounded to 20.
    assert set(np.unique(inner[:, 2] - inner[:, 0])) <= {220, 240} and set(np.unique(inner[:, 3] - inner[:, 1])) <= {160, 180}
    assert len(np.unique(boxes[:, 0])) > 20
    assert honesty._place("whole medium", np.random.default_rng(0))((1, 2, 3, 4), 10, 10) == (0, 0, 1000, 1000)


def test_the_oracle_reads_what_a_random_box_misses() -> None:
    oracle, wrong = (honesty._score("read", chain, 0, 3, split="val", seed=0) for chain in ("oracle", "random box"))
    assert sum(oracle) >= 2 and sum(wrong) < sum(oracle)
