"""Which examples share a row, and what a packed row holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax.data import packing, pipeline, records

PATCH = 4


def _plan(lengths, frames=None, tokens=10, most_frames=9):
    frames = np.zeros(len(lengths), int) if frames is None else np.array(frames)
    return packing.plan_rows(np.stack([lengths, frames], axis=1), (tokens, most_frames))


def test_the_longest_go_first_and_each_into_the_first_row_with_room():
    # By length: 8 opens a row; 5 opens another; 4 goes behind the 5; 2 behind the 8; 1 behind the 5 and 4.
    assert _plan([2, 8, 4, 1, 5]) == [[1, 0], [4, 2, 3]]


def test_frames_fill_a_row_too():
    assert _plan([3, 3, 3], frames=[2, 2, 1], most_frames=3) == [[0, 2], [1]]


def test_a_row_has_room_for_so_many_weighted_tokens():
    sizes = np.array([[3, 0, 2], [3, 0, 2], [3, 0, 1]])
    assert packing.plan_rows(sizes, (10, 9, 3)) == [[0, 2], [1]]
    with pytest.raises(records.RecordError, match="0 frames and 2 weighted tokens does not fit into a row of 10 tokens and 9"):
        packing.plan_rows(sizes, (10, 9, 1))


def test_an_example_larger_than_a_row_is_refused():
    with pytest.raises(records.RecordError, match="11 tokens and 0 frames does not fit into a row of 10 tokens and 9 frames"):
        _plan([3, 11])
    with pytest.raises(records.RecordError, match="3 tokens and 10 frames"):
        _plan([3], frames=[10])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), min_size=1, max_size=40))
def test_each_example_once_within_the_room_and_no_two_rows_could_be_one(sizes):
    lengths, frames = map(np.array, zip(*sizes, strict=True))
    rows = packing.plan_rows(np.stack([lengths, frames], axis=1), (20, 4))
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    totals = np.array([[lengths[row].sum(), frames[row].sum()] for row in rows])
    assert (totals <= [20, 4]).all()
    for first in range(len(rows)):
        for second in range(first + 1, len(rows)):
            assert ((totals[first] + totals[second]) > [20, 4]).any()


def example(rng: np.random.Generator, tokens: int, grids: tuple[tuple[int, int], ...], calls: int, side: int) -> dict:
    """An encoded example of random content; its thumbnails are `side` patches wide and high."""
    grid = np.array(grids, np.int32).reshape(-1, 2)
    visual = int(grid.prod(axis=1).sum()) // 4
    thumbs = np.zeros((len(grid), 2, side * PATCH, side * PATCH, 3), np.uint8)
    for frame, (h, w) in zip(thumbs, grid, strict=True):
        frame[:, : h * PATCH, : w * PATCH] = rng.integers(1, 256, (2, h * PATCH, w * PATCH, 3))
    index = np.full(tokens, -1, np.int32)
    index[1 : 1 + visual] = np.arange(visual)
    weights = rng.integers(0, 3, tokens).astype(np.float32)
    weights[0] = 0
    return {
        "ids": rng.integers(1, 60, tokens).astype(np.int32),
        "roles": rng.integers(0, 7, tokens).astype(np.int8),
        "weights": weights,
        "positions": np.repeat(np.arange(tokens, dtype=np.int32)[:, None], 3, axis=1),
        "visual_index": index,
        "thumbs": thumbs,
        "grid": grid,
        "op_position": rng.integers(0, tokens, calls).astype(np.int32),
        "op_id": rng.integers(0, 6, calls).astype(np.int32),
        "box": rng.random((calls, 4)).astype(np.float32),
        "box_valid": rng.random(calls) < 0.5,
        "point": rng.random((calls, 2)).astype(np.float32),
        "point_valid": rng.random(calls) < 0.5,
        "span": rng.random((calls, 2)).astype(np.float32),
        "span_valid": rng.random(calls) < 0.5,
    }


def test_a_packed_row_holds_what_its_examples_hold():
    rng = np.random.default_rng(0)
    # Two frames of 2 and 4 visual tokens, no frame, one frame of 1 visual token; thumbnails of different sizes.
    first, second = example(rng, 12, ((4, 2), (4, 4)), 2, side=4), example(rng, 5, (), 0, side=4)
    third = example(rng, 6, ((2, 2),), 1, side=2)
    rows = [[first, second, third], [second]]
    for joined, _ in map(packing.join_examples, rows):
        records.check_example(joined)
    bucket = packing.packed_bucket(rows)
    weighted = sum(np.count_nonzero(one["weights"]) for one in (first, second, third))
    assert bucket == pipeline.Bucket(rows=2, tokens=23, frames=3, patches=16, calls=3, weighted=weighted)
    batch = packing.make_packed_batch(rows, bucket, PATCH)

    assert batch.valid.dtype == np.int32
    assert batch.valid.tolist() == [[1] * 12 + [2] * 5 + [3] * 6, [1] * 5 + [0] * 18]
    np.testing.assert_array_equal(batch.positions[0, 17:, 0], np.arange(6))
    # Frames are padded to 4 visual tokens: those of the third example are the third frame.
    assert batch.visual_index[0, 1:7].tolist() == [0, 1, 4, 5, 6, 7] and batch.visual_index[0, 18] == 8
    assert batch.op_position[0].tolist() == [*first["op_position"], third["op_position"][0] + 17]
    np.testing.assert_array_equal(batch.box[0], np.concatenate([first["box"], third["box"]]))
    alone = pipeline.make_batch([third], packing.packed_bucket([[third]]), PATCH)
    np.testing.assert_array_equal(batch.patches[0, 2, :4], alone.patches[0, 0])
    # No token is predicted from another example: the first of each weighs nothing.
    assert not batch.weights[0, [0, 12, 17]].any()
