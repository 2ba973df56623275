"""Boxes between 0..1000, pixels and roots; masks as text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_host.geometry import check_mask, decode_mask, encode_mask, from_root, to_pixels, to_relative, to_root
from tools_host.protocol import Box, Media, Parent

sides = st.integers(1, 5000)


@st.composite
def boxes(draw: st.DrawFn, limit: int = 1000) -> Box:
    x1, y1 = draw(st.integers(0, limit - 1)), draw(st.integers(0, limit - 1))
    return x1, y1, draw(st.integers(x1 + 1, limit)), draw(st.integers(y1 + 1, limit))


@pytest.mark.parametrize(
    ("box", "size", "pixels"),
    [
        ((0, 0, 1000, 1000), (640, 480), (0, 0, 640, 480)),
        ((100, 200, 300, 400), (640, 480), (64, 96, 192, 192)),
        ((1, 1, 2, 2), (640, 480), (0, 0, 2, 1)),
        ((999, 999, 1000, 1000), (10, 10), (9, 9, 10, 10)),
        ((290, 0, 300, 1000), (100, 1), (29, 0, 30, 1)),  # 0.29 * 100 is 28.999... in floating point
    ],
)
def test_pixels_by_hand(box: Box, size: tuple[int, int], pixels: Box) -> None:
    assert to_pixels(box, *size) == pixels


def covers(outer: tuple[int, ...], inner: tuple[int, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


@given(boxes(), sides, sides)
def test_pixels_are_inside_and_never_empty(box: Box, width: int, height: int) -> None:
    x1, y1, x2, y2 = to_pixels(box, width, height)
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


@given(st.data(), sides, sides)
def test_a_relative_box_holds_its_pixels(data: st.DataObject, width: int, height: int) -> None:
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    pixels = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    box = to_relative(pixels, width, height)
    assert 0 <= box[0] < box[2] <= 1000 and 0 <= box[1] < box[3] <= 1000
    back = to_pixels(box, width, height)
    assert covers(back, pixels)
    # A relative unit is at most this many pixels, and no edge moves by more than one.
    assert all(abs(a - b) <= -(-max(width, height) // 1000) for a, b in zip(back, pixels, strict=True))
    if width <= 1000 and height <= 1000 and pixels[2] - x1 >= 2 and pixels[3] - y1 >= 2:
        assert back == pixels


@given(boxes(), st.integers(1000, 5000), st.integers(1000, 5000))
def test_a_box_on_a_large_medium_survives_the_way_to_pixels_and_back(box: Box, width: int, height: int) -> None:
    assert to_relative(to_pixels(box, width, height), width, height) == box


def test_boxes_over_the_edge_are_clamped() -> None:
    assert to_relative((-5, -5, 3000, 20.5), 100, 100) == (0, 0, 1000, 210)
    assert to_relative((100, 100, 100, 100), 100, 100) == (990, 990, 1000, 1000)


@st.composite
def chains(draw: st.DrawFn) -> list[Media]:
    width, height = draw(st.integers(8, 3000)), draw(st.integers(8, 3000))
    media = [Media(id=1, kind="image", uri="a", sha256="0", width=width, height=height)]
    for index in range(draw(st.integers(1, 3))):
        box = draw(st.none() | boxes())
        x1, y1, x2, y2 = to_pixels(box or (0, 0, 1000, 1000), width, height)
        width, height = x2 - x1, y2 - y1
        parent = Parent(media=index + 1, step=index, bbox_2d=box, time_s=None, kind="crop" if box else "overlay")
        media.append(Media(id=index + 2, kind="image", uri=None, sha256="0", width=width, height=height, parent=parent))
    return media


@given(chains(), boxes())
def test_a_region_mapped_to_the_root_and_back_covers_itself(media: list[Media], box: Box) -> None:
    last = media[-1]
    root, root_px = to_root(media, last.id, box)
    assert root == 1 and 0 <= root_px[0] < root_px[2] <= media[0].width and 0 <= root_px[1] < root_px[3] <= media[0].height
    back = from_root(media, last.id, root_px)
    assert back is not None
    assert covers(to_pixels(back, last.width, last.height), to_pixels(box, last.width, last.height))


def test_a_chain_by_hand() -> None:
    root = Media(id=1, kind="image", uri="a", sha256="0", width=400, height=200)
    crop = Parent(media=1, step=0, bbox_2d=(500, 0, 1000, 1000), time_s=None, kind="crop")
    half = Media(id=2, kind="image", uri=None, sha256="0", width=200, height=200, parent=crop)
    media = [root, half]
    assert to_root(media, 2, (0, 500, 500, 1000)) == (1, (200, 100, 300, 200))
    assert from_root(media, 2, (200, 100, 300, 200)) == (0, 500, 500, 1000)
    assert from_root(media, 2, (0, 0, 150, 200)) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_masks_survive_json(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    rle = json.loads(json.dumps(encode_mask(mask)))
    assert rle["size"] == [height, width]
    assert np.array_equal(decode_mask(rle), mask)


COUNTS = encode_mask(np.eye(40, 30, dtype=bool))["counts"]


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [40, 30], "counts": COUNTS[:-1]}, "no run-length encoding|do not fill"),
        ({"size": [40, 30], "counts": COUNTS + "0"}, "no run-length encoding|do not fill"),
        ({"size": [30, 40], "counts": encode_mask(np.zeros((30, 41), bool))["counts"]}, "do not fill"),
        ({"size": [40, 30], "counts": "1o0"}, "do not fill"),
        ({"size": [40, 30], "counts": "ooooooooooooo1"}, "no run-length encoding"),
        ({"size": [40, 30], "counts": "\u00e9"}, "no run-length encoding"),
        ({"size": [40, 30], "counts": ""}, "no run-length encoding"),
        ({"size": [40, 30], "counts": 7}, "no run-length encoding"),
        ({"size": [10**6, 10**6], "counts": COUNTS}, "larger than any medium"),
        ({"size": [-40, -30], "counts": COUNTS}, "two positive integers"),
        ({"size": [40, True], "counts": COUNTS}, "two positive integers"),
        ({"size": 1200, "counts": COUNTS}, "two positive integers"),
        ({"size": [40, 30]}, "a size and counts"),
        (7, "a size and counts"),
    ],
)
def test_what_encodes_no_mask_is_refused_before_it_is_decoded(rle: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_mask(rle)


def test_a_mask_of_another_shape_is_refused() -> None:
    rle = {"size": [40, 30], "counts": COUNTS}
    check_mask(rle, (40, 30))
    with pytest.raises(ValueError, match="30 x 40 pixels, its medium of 40 x 30"):
        check_mask(rle, (30, 40))


@given(st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopq", max_size=12))
def test_no_text_reads_beyond_the_mask(counts: str) -> None:
    try:
        mask = decode_mask({"size": [7, 5], "counts": counts})
    except ValueError:
        return
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
