"""Captions say what was drawn, where it was drawn, in every mirror image."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pixelis_jax.data.captions import DESCRIBE, MIRRORS, look_samples, round_box
from pixelis_jax.data.scenes import Scene, generate, relative

BOX = re.compile(r"(\w+) card \[(\d+), (\d+), (\d+), (\d+)\] (text|mark)")
STEP = 20


def samples(scene: Scene) -> list:
    return list(look_samples(scene, np.random.default_rng(0), video_frames=8, step=STEP))


def dominant(pixels: np.ndarray, box: list[int]) -> np.ndarray:
    """Median colour of the middle of a box given in 0..1000."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = (box[i] / 1000 * (width, height, width, height)[i] for i in range(4))
    inset_x, inset_y = 0.1 * (x2 - x1), 0.1 * (y2 - y1)
    patch = pixels[int(y1 + inset_y) : int(y2 - inset_y), int(x1 + inset_x) : int(x2 - inset_x)]
    return np.median(patch.reshape(-1, 3), axis=0)


@pytest.mark.parametrize("mirror", range(len(MIRRORS)))
def test_a_caption_points_at_cards_of_the_colour_it_names(mirror: int) -> None:
    scene = generate("read", "train", 5)
    sample = samples(scene)[mirror]
    found = BOX.findall(sample.turn)
    assert sample.question == DESCRIBE and len(found) == len(scene.objects)
    colours = {thing.colour: dominant(scene.pixels, list(relative(thing.box_px(0), 512, 512))) for thing in scene.objects}
    for name, *box, _ in found:
        seen = dominant(sample.pixels, [int(side) for side in box])
        np.testing.assert_allclose(seen, colours[name], atol=12)


def test_mirrored_samples_differ_only_by_the_mirror() -> None:
    plain, across, down, both = (sample.pixels for sample in samples(generate("angle", "train", 1))[:4])
    np.testing.assert_array_equal(across, plain[:, ::-1])
    np.testing.assert_array_equal(down, plain[::-1])
    np.testing.assert_array_equal(both, plain[::-1, ::-1])


def test_things_without_a_colour_are_named_by_their_zone() -> None:
    scene = generate("where", "train", 3)
    whole = [sample for sample in samples(scene) if sample.times_s is not None and sample.question == DESCRIBE]
    assert len(whole) == len(MIRRORS)
    for sample in whole:
        for zone, x1, y1, x2, y2 in re.findall(r"ball at the ([a-z ]+) \[(\d+), (\d+), (\d+), (\d+)\]", sample.turn):
            x, y = (int(x1) + int(x2)) / 2000, (int(y1) + int(y2)) / 2000
            # Boxes are rounded, so a centre on the border of two zones may be given to either.
            if min(abs(x - 1 / 3), abs(x - 2 / 3), abs(y - 1 / 3), abs(y - 2 / 3)) > 0.02:
                assert ("left" in zone, "right" in zone) == (x < 1 / 3, x > 2 / 3)
                assert ("top" in zone, "bottom" in zone) == (y < 1 / 3, y > 2 / 3)


def test_a_frame_sample_shows_what_is_not_there_at_first() -> None:
    scene = generate("flash_read", "train", 2)
    stills = [sample for sample in samples(scene) if sample.times_s is None and sample.question == DESCRIBE]
    assert scene.asked.box_px(0) is None
    assert all(scene.asked.name in sample.turn for sample in stills) and len(stills) == len(MIRRORS)


def test_no_caption_gives_away_a_string() -> None:
    for family in ("read", "flash_read", "follow_read"):
        scene = generate(family, "train", 4)
        for sample in samples(scene):
            if sample.question == DESCRIBE:
                assert not any(thing.text and thing.text in sample.turn for thing in scene.objects)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1000, 1000), [0, 0, 1000, 1000]),
        ((9, 11, 12, 29), [0, 20, 20, 40]),
        ((995, 0, 1000, 5), [980, 0, 1000, 20]),
    ],
)
def test_rounded_boxes_are_multiples_of_the_step_and_never_empty(box: tuple[int, int, int, int], expected: list[int]) -> None:
    assert round_box(box, STEP) == expected
