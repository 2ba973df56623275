"""Scenes are deterministic, honest, and truthful about what is in their pixels."""

import collections
import hashlib
import importlib.metadata
import io
import pathlib

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import eval_scenes
from pixelis_jax.data.scenes import (
    FAMILIES,
    FPS,
    SPLITS,
    draw,
    fonts,
    generate,
    layout,
    palette,
    randomness,
    relative,
    split_digest,
)
from pixelis_jax.data.scenes.backgrounds import PHOTOGRAPHS, SHIFTED_PHOTOGRAPHS, SHIFTED_TEXTURES, TEXTURES
from tools_host.registry import UnknownNameError

IMAGES = [name for name, family in FAMILIES.items() if family.kind == "image"]
CLIPS = [name for name, family in FAMILIES.items() if family.kind == "video"]
STRINGS = ("read", "flash_read", "follow_read")


def sampled_frames(count):
    return {int(frame) for frame in np.rint(np.linspace(0, count - 1, 8))}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_arguments_decide_every_byte(family):
    one, two = generate(family, "test", 3), generate(family, "test", 3)
    assert one.pixels.tobytes() == two.pixels.tobytes()
    assert (one.question, one.answer, one.truth) == (two.question, two.answer, two.truth)
    assert one.encode() == two.encode()
    others = [generate(family, "test", 4), generate(family, "val", 3), generate(family, "test", 3, seed=1)]
    assert len({scene.pixels.tobytes() for scene in [one, *others]}) == 4


def test_the_file_name_is_the_hash_of_its_content(tmp_path):
    for family in ("shape", "blink"):
        path = generate(family, "val", 0).save(tmp_path)
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:20]
    assert not list(tmp_path.glob("*.partial"))


def test_a_clip_decodes_to_its_frames_at_its_times():
    scene = generate("where", "train", 1)
    with av.open(io.BytesIO(scene.encode())) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    np.testing.assert_allclose([time for time, _ in frames], np.arange(layout.FRAMES) / FPS, atol=1e-6)
    errors = [np.abs(pixels.astype(int) - scene.pixels[index]).mean() for index, (_, pixels) in enumerate(frames)]
    assert max(errors) < 6


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'shape'"):
        generate("shapes", "train", 0)
    with pytest.raises(ValueError, match="no split"):
        generate("shape", "training", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_wordings(family):
    entry = FAMILIES[family]
    wordings = [*entry.wordings, *entry.held_out]
    assert len(set(wordings)) == len(wordings) >= 12 and len(entry.held_out) >= 2
    assert all(len(wording.split()) <= 14 for wording in wordings)
    # What is held out is a new order of known words.
    known = set(" ".join(entry.wordings).lower().replace("?", "").replace(".", "").replace(",", "").replace(":", "").split())
    for wording in entry.held_out:
        words = wording.lower().replace("?", "").replace(".", "").replace(",", "").replace(":", "").split()
        assert len(set(words) - known) <= 3


def test_two_pairs_of_families_share_their_wording():
    assert FAMILIES["read"].wordings == FAMILIES["shape"].wordings
    assert FAMILIES["flash_read"].wordings == FAMILIES["flash_shape"].wordings


def test_train_never_uses_a_held_out_wording():
    held_out = {wording.format(colour=colour) for wording in FAMILIES["shape"].held_out for colour in palette.NAMES}
    assert not held_out & {generate("shape", "train", index).question for index in range(40)}
    assert held_out & {generate("shape", "test", index).question for index in range(40)}


@pytest.mark.parametrize("family", FAMILIES)
def test_at_least_three_distractors_of_the_asked_kind(family):
    for split in ("train", "shift"):
        scene = generate(family, split, 5)
        like = [
            other for other in scene.objects
            if other is not scene.asked and other.kind == scene.asked.kind
            and (other.text is None) == (scene.asked.text is None) and (other.shape is None) == (scene.asked.shape is
            None)
        ]  # fmt: skip
        assert len(like) >= 3


@pytest.mark.parametrize("family", STRINGS)
def test_no_distractor_carries_the_answer(family):
    for index in range(3):
        scene = generate(family, "train", index)
        assert scene.asked.text == scene.answer
        assert [thing.text for thing in scene.objects].count(scene.answer) == 1
        assert scene.answer not in scene.question


@given(st.text(alphabet=randomness.ALPHABET, min_size=4, max_size=4))
def test_a_string_belongs_to_one_split(string):
    assert randomness.split_of(string) in SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_strings_come_from_their_own_split(split):
    rng = np.random.default_rng(0)
    strings = randomness.random_strings(rng, split, 200)
    assert len(set(strings)) == 200
    assert {randomness.split_of(string) for string in strings} == {split}


def test_answers_are_close_to_equiprobable():
    """The draws behind the answers, with neither pixels nor files: no answer far more often than its share."""
    shapes = collections.Counter(generate("shape", "train", index).answer for index in range(240))
    assert set(shapes) == set(draw.SHAPES) and max(shapes.values()) < 1.6 * 240 / len(draw.SHAPES)
    angles = collections.Counter(generate("angle", "train", index).answer for index in range(240))
    assert len(angles) == 11 and max(angles.values()) < 1.8 * 240 / 11


def test_the_end_zone_does_not_depend_on_the_start():
    rng = np.random.default_rng(1)
    for end in range(9):
        paths, starts, ends = layout.crossing_paths(rng, end, 384, (58, 58), (26, 26), 50)
        assert ends[0] == end and len(set(ends)) == len(set(starts)) == 4
        x, y = paths[0, -1]
        assert (int(y * 3 / 384), int(x * 3 / 384)) == divmod(end, 3)


def test_paths_never_meet_and_are_never_too_fast():
    rng = np.random.default_rng(2)
    for _ in range(5):
        paths, _, _ = layout.crossing_paths(rng, int(rng.integers(9)), 384, (58, 58), (26, 26), 50)
        for one in range(4):
            for two in range(one):
                gap = np.abs(paths[one] - paths[two])
                assert ((gap[:, 0] >= 58) | (gap[:, 1] >= 58)).all()
        assert np.hypot(*np.moveaxis(np.diff(paths, axis=1), -1, 0)).max() < 12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_spread_keeps_its_distance(seed, count):
    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(60, 120, (count, 2))]
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(layout.spread(rng, sizes, 512, 14), sizes, strict=True)]
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        assert x1 >= 6 and y1 >= 6 and x2 <= 506 and y2 <= 506
        for a1, b1, a2, b2 in boxes[:index]:
            assert a1 >= x2 + 14 or x1 >= a2 + 14 or b1 >= y2 + 14 or y1 >= b2 + 14


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        layout.spread(np.random.default_rng(0), [(200, 200)] * 9, 512, 14)


@pytest.mark.parametrize("family", ["read", "shape", "angle"])
def test_cards_stand_where_their_boxes_say(family):
    scene = generate(family, "train", 7)
    for thing in scene.objects:
        if thing.kind != "card":
            continue
        x1, y1, x2, y2 = (int(side) for side in thing.box_px())
        corner = scene.pixels[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5].reshape(-1, 3)
        np.testing.assert_allclose(np.median(corner, axis=0), palette.COLOURS[thing.colour], atol=26)


def test_a_bar_has_the_angle_that_it_claims():
    scene = generate("angle", "val", 2)
    for bar in (thing for thing in scene.objects if thing.kind == "bar"):
        x1, y1, x2, y2 = (int(side) for side in bar.box_px())
        patch = cv2.cvtColor(scene.pixels[y1 - 3 : y2 + 3, x1 - 3 : x2 + 3], cv2.COLOR_RGB2GRAY).astype(float)
        away = np.abs(patch - np.median(patch[0]))
        ys, xs = np.nonzero(away > 0.5 * away.max())
        values, vectors = np.linalg.eigh(np.cov(np.stack([xs, -ys])))
        measured = np.degrees(np.arctan2(vectors[1, -1], vectors[0, -1])) % 180
        assert min(abs(measured - bar.angle), 180 - abs(measured - bar.angle)) < 5


@pytest.mark.parametrize("family", ["blink", "flash_read", "flash_shape"])
def test_events_fall_between_the_frames_that_the_policy_sees(family):
    for index in range(4):
        scene = generate(family, "train", index)
        if family == "blink":
            shown = [thing.lit for thing in scene.objects]
            assert float(scene.answer) == np.flatnonzero(scene.asked.lit)[0] / FPS == scene.truth["value"]
        else:
            shown = [~np.isnan(scene.asked.boxes[:, 0])]
        for lit in shown:
            frames = set(np.flatnonzero(lit).tolist())
            assert 4 <= len(frames) <= 6 and not frames & sampled_frames(layout.FRAMES)


def test_a_flash_changes_pixels_only_while_it_lasts():
    scene = generate("flash_shape", "train", 2)
    shown = ~np.isnan(scene.asked.boxes[:, 0])
    first = int(np.argmax(shown))
    x1, y1, x2, y2 = (int(side) for side in scene.asked.box_px(first))
    window = scene.pixels[:, y1:y2, x1:x2].astype(int)
    changed = np.abs(window - window[0]).mean((1, 2, 3)) > 5
    np.testing.assert_array_equal(changed, shown)
    assert scene.asked.box_px(0) is None


def test_cuts_are_where_the_truth_says():
    scene = generate("cut", "train", 4)
    steps = np.abs(np.diff(scene.pixels.astype(np.int16), axis=0)).mean((1, 2, 3))
    cuts = np.sort(np.argsort(steps)[-4:]) + 1
    starts = [int(np.flatnonzero(~np.isnan(shot.boxes[:, 0]))[0]) for shot in scene.objects[1:]]
    assert cuts.tolist() == starts
    assert scene.truth["value"] in [start / FPS for start in starts]


def test_the_cards_of_follow_read_look_alike_until_the_end():
    scene = generate("follow_read", "train", 3)
    frame = scene.asked.text_frames[0]
    for at, alike in ((0, True), (frame - 1, True), (frame, False)):
        crops = []
        for thing in scene.objects:
            x1, y1, x2, y2 = (int(side) for side in thing.box_px(at))
            crops.append(scene.pixels[at, y1 + 8 : y2 - 8, x1 + 8 : x2 - 8].astype(int))
        differences = [np.abs(crop - crops[0]).max() for crop in crops[1:]]
        assert bool(max(differences) == 0) is alike


def test_shift_has_other_fonts_and_backgrounds():
    assert not set(fonts.COMMON) & set(fonts.SHIFTED) and len(fonts.COMMON) >= 10
    assert not set(PHOTOGRAPHS + TEXTURES) & set(SHIFTED_PHOTOGRAPHS + SHIFTED_TEXTURES)


@pytest.mark.parametrize("name", fonts.COMMON + fonts.SHIFTED)
def test_every_font_is_there_and_sized_by_its_capitals(name):
    left, top, right, bottom = fonts.load(name, fonts.size_for_capitals(name, 20)).getbbox("H")
    assert 18 <= bottom - top <= 22


def test_relative_boxes():
    assert relative((0, 0, 512, 256), 512, 512) == (0, 0, 1000, 500)
    assert relative((-9, 51.2, 600, 512), 512, 512) == (0, 100, 1000, 1000)


def test_the_digest_follows_the_seed():
    digest = split_digest("shift", 1, families=("read", "blink"))
    assert digest == split_digest("shift", 1, families=("read", "blink"))
    assert digest != split_digest("shift", 1, seed=1, families=("read", "blink"))


# What pixels depend on, in the versions of requirements.txt.
DRAWN_WITH = ("numpy", "pillow", "opencv-contrib-python-headless", "scikit-image", "matplotlib", "av")
SHIFT = "1c7b11cbf7fef7e8d6b74857348690e6156506097437543ae5b671160acb1aa3"


def test_shift_is_frozen():
    """The split that studies are made on: a change of the generator must not go unseen."""
    lock = pathlib.Path(__file__).parents[2] / "requirements.txt"
    pinned = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    others = [name for name in DRAWN_WITH if importlib.metadata.version(name) != pinned[name]]
    if others:
        pytest.skip(f"drawn with other versions of {', '.join(others)}")
    assert split_digest("shift", 2, families=eval_scenes.FAMILIES) == SHIFT
