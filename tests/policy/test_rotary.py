"""Positions by hand, as properties, and their errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax import policy
from pixelis_jax.policy import rotary

CONFIG = policy.tiny(vocab_size=100, image_token_id=90, video_token_id=91)
I, V = 90, 91  # noqa: E741


def test_positions_by_hand():
    # Two text tokens, an image of 2 x 3 merged tokens, two text tokens: 3 is the longer side.
    ids = [1, 2, I, I, I, I, I, I, 3, 4]
    positions, following = rotary.mrope_positions(np.asarray(ids), [(1, 4, 6)], CONFIG)
    expected = [[0, 0, 0], [1, 1, 1]]
    expected += [[2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]]
    expected += [[5, 5, 5], [6, 6, 6]]
    assert positions.tolist() == expected
    assert following == 7


def test_each_frame_of_a_video_is_a_grid_of_its_own():
    ids = np.asarray([V, V, 1, V, V])
    positions, following = rotary.mrope_positions(ids, [(2, 2, 4)], CONFIG)
    assert positions.tolist() == [[0, 0, 0], [0, 0, 1], [2, 2, 2], [3, 3, 3], [3, 3, 4]]
    assert following == 5


def test_media_without_text_between_them_are_told_apart():
    positions, _ = rotary.mrope_positions(np.asarray([I, I, I]), [(1, 2, 4), (1, 2, 2)], CONFIG)
    assert positions.tolist() == [[0, 0, 0], [0, 0, 1], [2, 2, 2]]


@st.composite
def sequences(draw):
    parts = draw(st.lists(st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))), max_size=6))
    ids, grids = [], []
    for part in parts:
        if isinstance(part, int):
            ids += [1] * part
        else:
            h, w = part
            ids += [I] * (h * w)
            grids.append((1, 2 * h, 2 * w))
    return ids, grids


@given(sequences(), sequences())
@settings(max_examples=60, deadline=None)
def test_a_chunk_continues_where_the_whole_would(first, second):
    ids, grids = np.asarray(first[0] + second[0], int), first[1] + second[1]
    whole, following = rotary.mrope_positions(ids, grids, CONFIG)
    head, middle = rotary.mrope_positions(np.asarray(first[0], int), first[1], CONFIG)
    tail, end = rotary.mrope_positions(np.asarray(second[0], int), second[1], CONFIG, start=middle)
    np.testing.assert_array_equal(whole, np.concatenate([head, tail]))
    assert end == following == (whole.max() + 1 if len(whole) else 0)


def test_visual_index_by_hand():
    ids = np.asarray([1, I, 2, V, V, 3, V, V])
    index = rotary.visual_index(ids, [(1, 2, 2), (2, 2, 4)], CONFIG, bucket=16, first_frame=1)
    assert index.tolist() == [-1, 4, -1, 8, 9, -1, 12, 13]


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([1, I, I], [(1, 2, 2)], "1 visual placeholders without a medium"),
        ([1, I], [(1, 2, 4)], "no run of 2"),
        ([I, 1, I], [(1, 2, 4)], "no run of 2"),
        ([1, 2], [(1, 2, 2)], "no run of 1"),
    ],
)
def test_media_and_placeholders_must_match(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        rotary.mrope_positions(np.asarray(ids), grids, CONFIG)
    with pytest.raises(ValueError, match=message):
        rotary.visual_index(np.asarray(ids), grids, CONFIG, bucket=16)


def test_a_frame_must_fit_into_its_bucket():
    with pytest.raises(ValueError, match="does not fit into a bucket of 4"):
        rotary.visual_index(np.asarray([I, I]), [(1, 2, 4)], CONFIG, bucket=4)


def test_interleaving_of_the_published_sections():
    # Every axis at its own position: the angle of each frequency tells which axis turned it.
    text = policy.qwen3_vl_2b().text
    angles = rotary.text_angles(np.asarray([[[1, 10, 100]]]), text)[0, 0]
    axis = np.round(np.log10(np.asarray(angles) / rotary.inverse_frequencies(128, 5e6))).astype(int)
    assert np.flatnonzero(axis == 1).tolist() == list(range(1, 60, 3))
    assert np.flatnonzero(axis == 2).tolist() == list(range(2, 60, 3))
    assert (axis == 0).sum() == 24
