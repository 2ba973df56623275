"""Every way in which a call can be wrong has its code, and a hint that helps."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_host.arguments import MediaRef, RegionRef, check
from tools_host.config import ToolsConfig
from tools_host.protocol import Media, Region, ToolFailure
from tools_host.schema import TOOLS

IMAGE = Media(id=1, kind="image", uri="a", sha256="0", width=100, height=100)
VIDEO = Media(id=2, kind="video", uri="b", sha256="1", width=100, height=100, duration_s=8.0, fps=10.0)
MEDIA = [IMAGE, VIDEO]
REGIONS = [
    Region(id=1, media=1, bbox_2d=(10, 20, 30, 40)),
    Region(id=2, media=2, bbox_2d=(1, 2, 3, 4), time_s=3.5),
]
BOX = [0, 0, 10, 10]


@pytest.fixture(autouse=True)
def _registered(lab_config: ToolsConfig) -> None:
    lab_config.load()


def checked(name: str, **arguments: Any) -> dict[str, Any]:
    return dict(check(TOOLS[name], arguments, MEDIA, REGIONS).arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "code", "said"),
    [
        ("lab_crop", {"media": 1}, "missing_argument", "bbox_2d is missing"),
        ("lab_crop", {"bbox_2d": BOX}, "missing_argument", "a region may stand in"),
        ("lab_crop", {}, "missing_argument", "media is missing"),
        ("lab_crop", {"media": 1, "bbox_2d": BOX, "lable": "x"}, "unknown_argument", "no argument 'lable'"),
        ("lab_crop", {"media": 1, "box_2d": BOX}, "unknown_argument", "did you mean bbox_2d?"),
        ("lab_crop", {"region": 1, "bbox_2d": BOX}, "unknown_argument", "give either region or bbox_2d"),
        ("lab_crop", {"region": 1, "media": 1}, "unknown_argument", "give either region or media"),
        ("lab_crop", {"media": "1", "bbox_2d": BOX}, "bad_type", 'media is "1"'),
        ("lab_crop", {"media": True, "bbox_2d": BOX}, "bad_type", "media is true"),
        ("lab_crop", {"media": 10**400, "bbox_2d": BOX}, "bad_type", "media is 1000"),
        ("lab_crop", {"media": 1, "bbox_2d": [0, 0, 10**400, 10]}, "bad_type", "must be a number"),
        ("lab_crop", {"media": 2, "bbox_2d": BOX, "time_s": 10**400}, "bad_type", "a number of seconds"),
        ("lab_crop", {"media": None, "bbox_2d": BOX}, "bad_type", "media is null"),
        ("lab_crop", {"media": 1.5, "bbox_2d": BOX}, "bad_type", "must be a whole number"),
        ("lab_crop", {"media": 1, "bbox_2d": [BOX]}, "bad_type", "a list of lists"),
        ("lab_crop", {"media": 1, "bbox_2d": "0,0,10,10"}, "bad_type", "write [x1, y1, x2, y2]"),
        ("lab_crop", {"media": 1, "bbox_2d": ["0", "0", "10", "10"]}, "bad_type", "must be a number"),
        ("lab_crop", {"media": 1, "bbox_2d": [0, 0, math.nan, 10]}, "bad_type", "must be a number"),
        ("lab_crop", {"media": 1, "bbox_2d": [0, 0, 10]}, "bad_box", "3 numbers, not 4"),
        ("lab_crop", {"media": 1, "bbox_2d": [0, 0, 10, 1000.2]}, "bad_box", "outside 0 to 1000"),
        ("lab_crop", {"media": 1, "bbox_2d": [-0.2, 0, 10, 10]}, "bad_box", "outside 0 to 1000"),
        ("lab_crop", {"media": 1, "bbox_2d": [10, 0, 5, 10]}, "bad_box", "ends before it starts"),
        ("lab_crop", {"media": 1, "bbox_2d": [10, 0, 10, 10]}, "bad_box", "is empty"),
        ("lab_crop", {"media": 1, "bbox_2d": [10, 0, 10.4, 10]}, "bad_box", "is empty"),
        ("lab_crop", {"media": 1, "bbox_2d": BOX, "time_s": 1}, "bad_time", "leave time_s out"),
        ("lab_crop", {"media": 2, "bbox_2d": BOX, "time_s": -1}, "bad_time", "before the start"),
        ("lab_crop", {"media": 2, "bbox_2d": BOX, "time_s": 8.1}, "bad_time", "lasts from 0 to 8.0 s"),
        ("lab_crop", {"media": 2, "bbox_2d": BOX, "time_s": "1"}, "bad_type", "a number of seconds"),
        ("lab_crop", {"media": 3, "bbox_2d": BOX}, "no_such_media", "media 3 does not exist; there are 1 and 2"),
        ("lab_crop", {"media": 0, "bbox_2d": BOX}, "no_such_media", "media 0 does not exist"),
        ("lab_crop", {"region": 3}, "no_such_region", "region 3 does not exist; there are 1 and 2"),
        ("lab_crop", {"media": 1, "bbox_2d": BOX, "kind": "crap"}, "bad_type", "one of crop, overlay"),
        ("lab_crop", {"media": 1, "bbox_2d": BOX, "kind": ["crop"]}, "bad_type", "one of crop, overlay"),
        ("lab_film", {"media": 1}, "wrong_kind", "lab_film needs a video"),
        ("lab_film", {"media": 2, "region": 7}, "no_such_region", "region 7"),
        ("lab_all_types", {"media": 1, "point_2d": [1, 2, 3], "count": 1}, "bad_box", "3 numbers, not 2"),
        ("lab_all_types", {"media": 1, "point_2d": [1, 2], "count": "1"}, "bad_type", "a whole number"),
        ("lab_all_types", {"media": 1, "point_2d": [1, 2], "count": 1, "flag": 1}, "bad_type", "true or false"),
        ("lab_all_types", {"media": 1, "point_2d": [1, 2], "count": 1, "word": 1}, "bad_type", "must be a text"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        checked(name, **arguments)
    error = caught.value.error
    assert error.code == code
    assert said in f"{error.message}. {error.hint}"


def test_without_any_region_the_message_says_so() -> None:
    with pytest.raises(ToolFailure, match="region 1 does not exist; there is no region yet"):
        check(TOOLS["lab_crop"], {"region": 1}, MEDIA, ())


def test_numbers_in_range_are_rounded() -> None:
    assert checked("lab_crop", media=2.0, bbox_2d=[0.4, 0.6, 10.5, 999.9], time_s=1.23456) == {
        "media": MediaRef(2),
        "bbox_2d": (0, 1, 10, 1000),
        "time_s": 1.23,
    }
    assert checked("lab_all_types", media=1, point_2d=[1.6, 2], count=2.7, ratio=1)["count"] == 3


def test_a_region_is_resolved_to_media_box_and_time() -> None:
    call = check(TOOLS["lab_crop"], {"region": 2}, MEDIA, REGIONS)
    assert call.arguments == {"media": MediaRef(2), "bbox_2d": (1, 2, 3, 4), "time_s": 3.5} and call.medium == 2
    assert "time_s" not in checked("lab_crop", region=1)
    assert checked("lab_crop", region=2, time_s=5)["time_s"] == 5.0


def test_a_region_argument_of_the_tools_own_stays_a_region() -> None:
    assert checked("lab_film", media=2, region=2) == {"media": MediaRef(2), "region": RegionRef(2)}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text("a1", max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("a1", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["lab_crop", "lab_film", "lab_all_types"]),
    st.dictionaries(st.sampled_from(["media", "bbox_2d", "region", "time_s", "point_2d", "count", "kind"]), json_values),
)
def test_whatever_the_model_writes_is_answered(name: str, arguments: dict[str, Any]) -> None:
    try:
        call = check(TOOLS[name], arguments, MEDIA, REGIONS)
    except ToolFailure as failure:
        assert "\n" not in failure.error.message
    else:
        assert call.medium in (1, 2)
