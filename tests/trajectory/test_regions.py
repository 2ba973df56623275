import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.trajectory import (
    Place,
    Source,
    Step,
    Trajectory,
    box_iou,
    call_place,
    footprint,
    footprint_iou,
    has_valid_call,
    is_chained,
    is_repeat,
    mask_iou,
    operations,
    racpr,
    rapr,
    repeats,
    time_iou,
    valid_share,
)
from tools_host.protocol import Media, Observation, Parent, Region, ToolCall, ToolError

IMAGE = Media(id=1, kind="image", uri="a.png", sha256="", width=1000, height=500)
CROP = Media(
    id=2,
    kind="image",
    uri=None,
    sha256="",
    width=200,
    height=100,
    parent=Parent(media=1, step=0, bbox_2d=(100, 200, 300, 400), time_s=None, kind="crop"),
)
CLIP = Media(id=3, kind="video", uri="a.mp4", sha256="", width=100, height=100, duration_s=10.0, fps=10.0)
FRAME = Media(
    id=4,
    kind="image",
    uri=None,
    sha256="",
    width=50,
    height=100,
    parent=Parent(media=3, step=1, bbox_2d=(500, 0, 1000, 1000), time_s=4.0, kind="frame"),
)
MEDIA = (IMAGE, CROP, CLIP, FRAME)
REGIONS = {
    1: Region(id=1, media=2, bbox_2d=(0, 0, 500, 1000)),
    2: Region(id=2, media=3, bbox_2d=(0, 0, 100, 100), time_s=2.0),
}


def call(name="zoom", **arguments):
    return ToolCall(name=name, arguments=arguments)


def step(tool_call, ok=True, **observation):
    error = None if ok else ToolError(code="bad_box", message="no")
    return Step(raw="", thought="", call=tool_call, observation=Observation(ok=ok, text="", error=error, **observation))


def trajectory(*steps, answer="x", media=MEDIA):
    return Trajectory(
        id="t",
        example="e",
        question="?",
        media=media,
        steps=steps,
        final=None,
        answer=answer,
        stopped="answer",
        source=Source(dataset="d"),
    )


def test_overlaps_by_hand():
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((3, 3, 3, 3), (3, 3, 3, 3)) == 0
    assert time_iou((0, 2), (1, 4)) == pytest.approx(0.25)
    assert (time_iou((1, 1), (1, 1)), time_iou((1, 1), (2, 2))) == (1.0, 0.0)
    a, b = np.zeros((2, 2), bool), np.eye(2, dtype=bool)
    assert (mask_iou(a, a), mask_iou(b, b), mask_iou(b, np.ones((2, 2), bool))) == (0.0, 1.0, 0.5)


def test_places_are_in_pixels_of_the_root():
    assert call_place(call(media=1, bbox_2d=[100, 200, 300, 400]), MEDIA, {}) == Place(root=1, box_px=(100, 100, 300, 200))
    assert call_place(call(media=2, bbox_2d=[500, 0, 1000, 500]), MEDIA, {}) == Place(root=1, box_px=(200, 100, 300, 150))
    assert call_place(call("properties", region=1), MEDIA, REGIONS) == Place(root=1, box_px=(100, 100, 200, 200))
    assert call_place(call("ocr", media=4), MEDIA, {}) == Place(root=3, box_px=(50, 0, 100, 100), interval_s=(3.75, 4.25))
    assert call_place(call("ocr", region=2), MEDIA, REGIONS) == Place(root=3, box_px=(0, 0, 10, 10), interval_s=(1.75, 2.25))
    assert call_place(call("track", media=3, bbox_2d=[0, 0, 500, 500], time_s=2), MEDIA, {}) == Place(
        root=3, box_px=(0, 0, 50, 50), interval_s=(2.0, 10.0)
    )
    assert call_place(call("localize", media=3, event="motion"), MEDIA, {}) == Place(
        root=3, box_px=(0, 0, 100, 100), interval_s=(0.0, 10.0)
    )
    assert call_place(call("segment", media=1, point_2d=[500, 500]), MEDIA, {}) == Place(root=1, box_px=(475, 237, 525, 263))
    assert call_place(call("image_zoom_in_tool", img_idx=1, bbox_2d=[0, 0, 1000, 1000]), MEDIA, {}) == Place(
        root=1, box_px=(100, 100, 300, 200)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"media": 9},
        {"media": "1"},
        {"region": 9},
        {"bbox_2d": [1, 2]},
        {"bbox_2d": "x"},
        {"bbox_2d": None},
        {"media": None},
    ],
)
def test_arguments_that_name_no_place(arguments):
    assert call_place(call(**arguments), MEDIA, REGIONS) is None


BASE = call(media=1, bbox_2d=[100, 100, 300, 300])


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (call(media=1, bbox_2d=[100, 100, 300, 300]), True),
        (call(media=1, bbox_2d=[100, 100, 300, 270]), True),  # IoU 0.85
        (call(media=1, bbox_2d=[100, 100, 300, 240]), False),  # IoU 0.7 is not above 0.7
        (call(media=1, bbox_2d=[100, 100, 300, 300], label="another name"), True),
        (call("ocr", media=1, bbox_2d=[100, 100, 300, 300]), False),
        (call("image_zoom_in_tool", img_idx=0, bbox_2d=[100, 100, 300, 300], label="x"), True),
        (call(media=1), False),
    ],
)
def test_repeats_in_space(later, expected):
    assert is_repeat(later, [BASE, call("ocr", media=1)], MEDIA, {}) is expected


def test_repeats_through_a_crop_and_against_any_earlier_call():
    whole_crop = call("ocr", media=2)
    same_place = call("ocr", media=1, bbox_2d=[100, 200, 300, 400])
    assert is_repeat(whole_crop, [same_place, BASE, call("ocr", media=3)], MEDIA, {})


def test_repeats_in_time_and_in_other_arguments():
    localize = call("localize", media=3, event="motion", start_s=0.0, end_s=5.0)
    assert is_repeat(call("localize", media=3, event="motion", start_s=0.0, end_s=4.0), [localize], MEDIA, {})
    assert not is_repeat(call("localize", media=3, event="motion", start_s=0.0, end_s=3.0), [localize], MEDIA, {})
    assert not is_repeat(call("localize", media=3, event="text", start_s=0.0, end_s=5.0), [localize], MEDIA, {})
    assert is_repeat(call(media=3, time_s=2.05), [call(media=3, time_s=2.0)], MEDIA, {})
    assert not is_repeat(call(media=3, time_s=2.4), [call(media=3, time_s=2.0)], MEDIA, {})
    assert not is_repeat(call("properties", region=1, other=2), [call("properties", region=1)], MEDIA, REGIONS)
    assert is_repeat(call("properties", region=1, other=2), [call("properties", region=1, other=2)], MEDIA, REGIONS)


def test_a_loop_a_b_a_b_repeats_twice():
    a, b = BASE, call("ocr", media=1)
    assert repeats(trajectory(*map(step, (a, b, a, b)))) == (False, False, True, True)


def test_rapr_and_racpr_by_hand():
    found = Region(id=1, media=1, bbox_2d=(0, 0, 100, 100))
    chained = trajectory(
        step(call("segment", media=1, bbox_2d=[0, 0, 200, 200]), regions=(found,)), step(call("properties", region=1))
    )
    by_medium = trajectory(step(call(media=1, bbox_2d=[100, 200, 300, 400]), media=(2,)), step(call("ocr", media=2)))
    side_by_side = trajectory(step(call(media=1, bbox_2d=[0, 0, 100, 100])), step(call("ocr", media=1)))
    one_tool = trajectory(
        step(call(media=1, bbox_2d=[100, 200, 300, 400]), media=(2,)), step(call(media=2, bbox_2d=[0, 0, 100, 100]))
    )
    failed = trajectory(step(call(), ok=False))
    looped = trajectory(*chained.steps, chained.steps[1])
    silent = trajectory(*chained.steps, answer=None)
    backwards = trajectory(
        step(call("properties", region=1)), step(call("segment", media=1, bbox_2d=[0, 0, 200, 200]), regions=(found,))
    )
    assert [is_chained(item) for item in (chained, by_medium, side_by_side, one_tool, failed, looped, backwards)] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert has_valid_call(chained) and not has_valid_call(failed)
    everything = [chained, side_by_side, failed, trajectory(), silent]
    assert rapr(everything) == 0.5 and racpr(everything) == 0.25
    assert math.isnan(rapr([silent])) and math.isnan(racpr([]))
    assert valid_share([chained, failed]) == pytest.approx(2 / 3) and valid_share([trajectory()]) == 1.0


def test_footprints_by_hand():
    left = trajectory(step(call(media=1, bbox_2d=[0, 0, 500, 1000])))
    all_of_it = trajectory(step(call(media=1)))
    assert footprint(left) == (Place(root=1, box_px=(0, 0, 500, 500)),)
    assert footprint_iou(footprint(left), footprint(all_of_it)) == pytest.approx(0.5)
    assert footprint_iou((), ()) == 1.0 and footprint_iou((), footprint(left)) == 0.0
    twice = footprint(trajectory(step(call(media=1, bbox_2d=[0, 0, 500, 1000])), step(call(media=2))))
    assert footprint_iou(twice, footprint(left)) == pytest.approx(1.0)  # the crop lies inside: a union, not a sum
    early = Place(root=3, box_px=(0, 0, 10, 10), interval_s=(0.0, 2.0))
    late = Place(root=3, box_px=(0, 0, 10, 10), interval_s=(1.0, 3.0))
    assert footprint_iou([early], [late]) == pytest.approx(1 / 3)
    assert footprint_iou([early], [Place(root=1, box_px=(0, 0, 10, 10))]) == 0.0


def test_a_footprint_is_where_the_tool_ended_not_where_it_was_asked():
    region = Region(id=1, media=1, bbox_2d=(0, 0, 100, 200))
    assert footprint(trajectory(step(call("segment", media=1), regions=(region,)))) == (Place(root=1, box_px=(0, 0, 100, 100)),)
    assert footprint(trajectory(step(call("segment", media=1), ok=False))) == ()


spots = st.lists(st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 8)] * 2), min_size=1, max_size=4)


@given(spots, spots)
def test_footprint_iou_equals_counting_cells(a, b):
    def raster(boxes):
        grid = np.zeros((16, 16), bool)
        for x, y, w, h in boxes:
            grid[y : y + h, x : x + w] = True
        return grid

    def places(boxes):
        return [Place(root=1, box_px=(x, y, x + w, y + h)) for x, y, w, h in boxes]

    assert footprint_iou(places(a), places(b)) == pytest.approx(mask_iou(raster(a), raster(b)))


def test_operations_are_the_tools_of_valid_calls():
    steps = [step(call("image_zoom_in_tool", img_idx=0)), step(call("ocr", media=1), ok=False), step(None, ok=False)]
    assert operations(trajectory(*steps, step(call("ocr", media=1)), step(call("ocr", media=1)))) == ("zoom", "ocr", "ocr")
    assert operations(trajectory()) == ()
