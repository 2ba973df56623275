"""Captions say what was drawn, where it was drawn, in every mirror image."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.captions import COPIES, CROPS, DESCRIBE, INKS, MIRRORS, look_samples, round_box
from pixelis_jax.data.examples import CONTENT_WEIGHT, encode_turn
from pixelis_jax.data.look import encoder_of, look_examples
from pixelis_jax.data.scenes import Scene, close_up, cut, generate, reframe, relative, squeezed
from pixelis_jax.data.scenes.draw import SHAPES
from pixelis_jax.data.scenes.randomness import split_of
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.policy import heads

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
    stills = [sample for sample in samples(scene) if sample.kind == "frame"]
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


@pytest.mark.parametrize("family", ["read", "angle", "where"])
def test_the_boxes_of_a_sample_are_those_that_its_turn_rounds(family: str) -> None:
    described = [sample for sample in samples(generate(family, "train", 2)) if sample.boxes]
    assert len(described) >= len(MIRRORS)
    for sample in described:
        written = [[int(side) for side in box.split(", ")] for box in re.findall(r"\[([\d, ]+)\]", sample.turn)]
        assert written == [round_box(box, STEP) for box in sample.boxes]


def test_half_of_the_copied_answers_are_asked_by_number() -> None:
    copies = [sample for sample in samples(generate("read", "train", 2)) if sample.kind == "copy"]
    numbered = [sample for sample in copies if "span" in sample.question]
    assert len(copies) == COPIES == 2 * len(numbered)
    for sample in numbered:
        ordinal, number, answer = re.fullmatch(r"The (\w+) is span (\d)\.<answer>(.+)</answer>", sample.turn).groups()
        assert f" {ordinal} " in sample.question and cut.ORDINALS[int(number) - 1] == ordinal
        assert re.search(rf"span {number}: {re.escape(answer)}-", sample.question)


def test_a_squeezed_scene_keeps_its_relative_boxes() -> None:
    scene = generate("flash_shape", "train", 3)
    thin = squeezed(scene, 0.7, 1.0)
    assert thin.pixels.shape == (60, 384, 268, 3) and thin.answer == scene.answer
    for before, after in zip(scene.objects, thin.objects, strict=True):
        np.testing.assert_allclose(after.boxes, before.boxes * [268 / 384, 1, 268 / 384, 1], rtol=1e-6)
        assert after.written is None or abs(after.written[2] - before.written[2] * 268 / 384) <= 0.5
    rng = np.random.default_rng(0)
    assert reframe(scene, 0.0, rng) is scene
    assert reframe(generate("angle", "train", 0), 1.0, rng).pixels.shape == (512, 512, 3)
    sizes = {reframe(scene, 1.0, rng).pixels.shape[1:3] for _ in range(8)}
    assert all(384 in size and min(size) % 2 == 0 and 230 <= min(size) <= 365 for size in sizes) and len(sizes) > 4


def test_a_close_up_shows_what_is_asked_and_forgets_what_it_cuts_off() -> None:
    scene = generate("shape", "train", 1)
    x1, y1, x2, y2 = scene.asked.boxes[0].astype(int)
    near = close_up(scene, np.array([0.1, 0.2, 0.0, 0.5]))
    left, top = round(x1 - 0.1 * (x2 - x1)), max(0, round(y1 - 0.2 * (y2 - y1)))
    assert near.asked.box_px() == (x1 - left, y1 - top, x2 - left, y2 - top) and near.width == x2 - left
    np.testing.assert_array_equal(near.pixels[0, 0], scene.pixels[top, left])
    others = [thing.box_px() for thing in near.objects if thing is not near.asked]
    assert others.count(None) == len(others) and near.asked.shape == scene.asked.shape
    assert {reframe(scene, 1.0, np.random.default_rng(seed)).width < 400 for seed in range(6)} == {True, False}


def test_the_box_head_is_asked_at_names_and_brackets() -> None:
    text = TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["red card; green card at the top [20, 40, 60, 80] text"])))
    encoder = encoder_of(text)
    turn = "red card [20, 40, 60, 80] text; green card at the top [100, 120, 140, 160]"
    thumbnail = encoder.image(np.zeros((64, 64, 3), np.uint8))
    boxes = ((21, 41, 62, 79), (99, 121, 139, 160))
    example = encode_turn(thumbnail, DESCRIBE, turn, encoder, boxes=boxes, inks=(((30, 50, 40, 60), "text"),))
    asked = [text.decode([example["ids"][place]]) for place in example["op_position"][example["box_valid"]]]
    assert "".join(asked) == "red card [ green card at the top ["
    first = asked.index(" [") + 1
    rows = [boxes[0]] * first + [boxes[1]] * (len(asked) - first) + [(30, 50, 40, 60)]
    np.testing.assert_allclose(example["box"], np.asarray(rows) / 1000)
    assert example["op_id"].tolist() == [-1] * len(asked) + [-2 - INKS.index("text")]
    assert example["box_valid"].tolist() == [True] * len(asked) + [False]
    heavy = [text.decode([token]) for token in example["ids"][example["weights"] > 1]]
    assert heavy == [" text"] and set(example["weights"]) == {0.0, 1.0, CONTENT_WEIGHT}
    with pytest.raises(ValueError, match="2 brackets for 1 boxes"):
        encode_turn(thumbnail, DESCRIBE, turn, encoder, boxes=boxes[:1])


def test_only_the_asked_kinds_are_encoded() -> None:
    encoder = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["red card"]))))
    counts = {
        kinds: len(list(look_examples({"where": 1}, encoder, kinds=kinds, workers=0)))
        for kinds in (("clip",), ("frame",), ("crop",))
    }
    assert counts == {("clip",): 4, ("frame",): 4, ("crop",): 0}
    shares = [
        len(list(look_examples({"where": 3}, encoder, kinds=("asked",), asked_share=share, workers=0))) for share in (0.0, 1.0)
    ]
    assert shares == [0, 3]


def test_a_copy_sample_says_its_answer_among_others() -> None:
    copies = [sample for sample in samples(generate("read", "val", 4)) if sample.kind == "copy"]
    assert len(copies) == COPIES
    for sample in (sample for sample in copies if "span" not in sample.question):
        said, asked = re.fullmatch(r"(.+)\. What is (\w+)\?", sample.question).groups()
        values = dict(part.split(" ", 1) for part in said.split("; "))
        assert sample.turn == f"<answer>{values[asked].strip(chr(34))}</answer>" and len(values) >= 2
        # Strings of another split must not be learnt by heart here.
        assert all(split_of(value.strip(chr(34))) == "val" for value in values.values() if value.startswith(chr(34)))


@pytest.mark.parametrize(("family", "kinds"), [("read", {"text", "mark"}), ("angle", {"bar"})])
def test_inks_are_where_something_differs_from_the_card(family: str, kinds: set[str]) -> None:
    scene = generate(family, "train", 6)
    for sample in samples(scene):
        if sample.kind != "image":
            continue
        assert {word for _, word in sample.inks} <= kinds and len(sample.inks) == len(sample.boxes)
        for (x1, y1, x2, y2), _ in sample.inks:
            inside = [box for box in sample.boxes if box[0] <= x1 and x2 <= box[2] and box[1] <= y1 and y2 <= box[3]]
            assert len(inside) == 1
            height, width = sample.pixels.shape[:2]
            cut = sample.pixels[y1 * height // 1000 : y2 * height // 1000 + 1, x1 * width // 1000 : x2 * width // 1000 + 1]
            ground = dominant(sample.pixels, list(inside[0]))
            assert np.abs(cut.reshape(-1, 3) - ground).max() > 60


def test_a_crop_names_the_shape_that_it_shows() -> None:
    crops = [sample for sample in samples(generate("shape", "train", 6)) if sample.kind == "crop"]
    assert len(crops) == CROPS * len(generate("shape", "train", 6).objects)
    assert all([word for _, word in crop.inks] == [crop.turn] for crop in crops)
    assert {crop.turn for crop in crops} - {"text"} <= set(SHAPES)


def test_the_patch_head_has_a_class_for_every_ink_and_for_none() -> None:
    assert 1 + len(INKS) == heads.INKS
