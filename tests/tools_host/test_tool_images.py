"""zoom, segment, ocr and properties through the environment, on pictures with known truth."""

from pathlib import Path

import numpy as np
import pytest
from scenes import GREEN, RED, card, photo, write_picture

from tools_host.benchmark import paint, polygon
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import decode_mask
from tools_host.pool import InlinePool
from tools_host.protocol import Observation, ToolCall

CONFIG = ToolsConfig()


@pytest.fixture(scope="module")
def pool():
    return InlinePool(CONFIG)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, np.ndarray]]:
    """A pixel is two units: a green bar at 45 degrees, a red star right of it, a card, and an empty corner."""
    image = photo(1, 500)
    image[350:, :200] = 120
    masks = {
        "bar": paint(image, polygon("bar", (120, 120), 40, 45), GREEN),
        "star": paint(image, polygon("star", (320, 120), 40, 10), RED),
    }
    card(image, "KX7P2", (260, 380))
    return write_picture(tmp_path_factory.mktemp("drawn") / "picture.png", image), masks


@pytest.fixture
def run(drawn, pool):
    environment = EpisodeEnvironment([drawn[0]], CONFIG)

    def call(name: str, **arguments) -> Observation:
        return environment.run(ToolCall(name=name, arguments=arguments), pool)

    call.environment = environment
    return call


def test_zoom_copies_original_pixels(run) -> None:
    seen = run("zoom", media=1, bbox_2d=[100, 200, 301, 400], label="bar")
    assert seen.ok and seen.media == (2,)
    crop, whole = run.environment.pixels(2), run.environment.pixels(1)
    assert np.array_equal(crop, whole[100:200, 50:151])
    assert seen.text.startswith("bar, 101 x 100 px")


def test_zoom_into_a_crop_goes_back_to_the_original(run) -> None:
    run("zoom", media=1, bbox_2d=[0, 0, 400, 400])
    run("zoom", media=2, bbox_2d=[500, 500, 1000, 1000])
    assert np.array_equal(run.environment.pixels(3), run.environment.pixels(1)[100:200, 100:200])


@pytest.mark.parametrize("where", [{"bbox_2d": [160, 160, 320, 320]}, {"point_2d": [240, 240]}])
def test_segment_by_box_and_by_point(run, drawn, where) -> None:
    seen = run("segment", media=1, **where)
    (region,) = seen.regions
    mask, truth = decode_mask(region.mask), drawn[1]["bar"]
    assert (mask & truth).sum() / (mask | truth).sum() >= 0.85
    assert len(seen.media) == 1 and run.environment.media[1].parent.kind == "overlay"


def test_an_empty_place_is_ok_with_no_regions(run) -> None:
    for name in ("segment", "ocr"):
        seen = run(name, media=1, bbox_2d=[50, 780, 250, 950])
        assert seen.ok and seen.regions == () and seen.media == ()


def test_ocr_of_a_card_and_of_everything(run) -> None:
    assert run("ocr", media=1, bbox_2d=[500, 740, 800, 880]).data["text"] == "KX7P2"
    everywhere = run("ocr", media=1)
    region = next(region for region in everywhere.regions if region.text == "KX7P2")
    assert 500 <= region.bbox_2d[0] < region.bbox_2d[2] <= 800


def test_properties_of_a_region(run) -> None:
    run("segment", media=1, bbox_2d=[160, 160, 320, 320])
    seen = run("properties", region=1)
    assert seen.text.startswith("green rectangle, orientation 4")
    assert seen.data["orientation_deg"] == pytest.approx(45, abs=5)
    assert seen.data["area_px"] == pytest.approx(40 * 40, rel=0.08)
    assert seen.data["centroid"] == pytest.approx([240, 240], abs=6)


def test_properties_of_a_box_equal_those_of_its_region(run) -> None:
    run("segment", media=1, bbox_2d=[540, 140, 740, 340])
    by_box, by_region = run("properties", media=1, bbox_2d=[540, 140, 740, 340]), run("properties", region=1)
    assert by_box.data["measured_on"] == "object" and by_box.data["shape"] == "star" and by_box.data["colour"] == "red"
    assert by_box.text == by_region.text


def test_properties_with_other(run) -> None:
    run("segment", media=1, bbox_2d=[160, 160, 320, 320])
    run("segment", media=1, bbox_2d=[540, 140, 740, 340])
    seen = run("properties", region=1, other=2)
    assert seen.data["relation"] == "left of"
    assert seen.data["distance_px"] == pytest.approx(200, abs=5)
    assert run("properties", region=2, other=1).data["size_ratio"] == pytest.approx(1 / seen.data["size_ratio"], rel=0.01)


def test_region_stands_in_for_a_box(run) -> None:
    run("ocr", media=1, bbox_2d=[500, 740, 800, 880])
    assert run("zoom", region=1).ok
    assert run("ocr", region=1).data["text"] == "KX7P2"


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("segment", {"media": 1}, "missing_argument"),
        ("segment", {"media": 1, "bbox_2d": [0, 0, 9, 9], "point_2d": [5, 5]}, "unknown_argument"),
        ("properties", {}, "missing_argument"),
        ("properties", {"media": 1}, "missing_argument"),
        ("track", {"media": 1, "bbox_2d": [0, 0, 9, 9], "time_s": 0}, "wrong_kind"),
        ("localize", {"media": 1, "event": "motion"}, "wrong_kind"),
        ("zoom", {"media": 1, "bbox_2d": [0, 0, 9, 9], "time_s": 1.0}, "bad_time"),
        ("zoom", {"media": 1}, "missing_argument"),
    ],
)
def test_wrong_use(run, name: str, arguments: dict, code: str) -> None:
    seen = run(name, **arguments)
    assert not seen.ok and seen.error.code == code and seen.error.hint


@pytest.mark.parametrize("name", ["segment", "ocr", "properties"])
def test_same_call_same_answer(drawn, name: str) -> None:
    call = ToolCall(name=name, arguments={"media": 1, "bbox_2d": [160, 160, 320, 320]})
    one, two = (EpisodeEnvironment([drawn[0]], CONFIG).run(call, InlinePool(CONFIG)) for _ in range(2))
    assert one == two


def test_one_pixel_boxes_and_tiny_pictures_do_not_break_a_tool(pool, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "dot.png", np.full((2, 3, 3), 90, np.uint8))
    for name in ("zoom", "segment", "ocr", "properties"):
        seen = EpisodeEnvironment([path], CONFIG).run(ToolCall(name=name, arguments={"media": 1, "bbox_2d": [0, 0, 1, 1]}), pool)
        assert seen.ok, (name, seen.text)
