import numpy as np
import pytest

from tools_host.backends import measures
from tools_host.benchmark import COLOURS, paint, polygon


def mask_of(kind: str, radius: float = 30, angle: float = 0) -> np.ndarray:
    return paint(np.zeros((120, 140, 3), np.uint8), polygon(kind, (70, 60), radius, angle), (255, 255, 255))


@pytest.mark.parametrize("name", COLOURS)
def test_colour_names(name: str) -> None:
    rng = np.random.default_rng(0)
    pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 6, (500, 3)), 0, 255).astype(np.uint8)
    found, share = measures.colours(pixels)[0]
    assert found == name and share > 0.9


def test_two_colours_and_their_shares() -> None:
    pixels = np.array([COLOURS["red"]] * 70 + [COLOURS["blue"]] * 30, np.uint8)
    assert measures.colours(pixels) == [("red", 0.7), ("blue", pytest.approx(0.3))]


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 135, 170])
def test_orientation_is_counter_clockwise_from_the_x_axis(angle: int) -> None:
    found = measures.form(mask_of("bar", 40, angle))
    assert found.orientation_deg is not None
    assert abs((found.orientation_deg - angle + 90) % 180 - 90) < 2
    assert found.elongation == pytest.approx(4, abs=0.4)


def test_a_rising_bar_is_at_45_degrees() -> None:
    mask = np.zeros((60, 60), bool)
    for x in range(10, 50):
        mask[58 - x : 62 - x, x] = True  # up to the right, as it is seen
    assert measures.form(mask).orientation_deg == pytest.approx(45, abs=2)


def test_area_and_centroid_of_a_rectangle() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:20, 30:50] = True
    found = measures.form(mask)
    assert found.area_px == 200
    assert found.centroid == pytest.approx((40, 15))
    assert found.orientation_deg == pytest.approx(0, abs=1)


@pytest.mark.parametrize("kind", ["circle", "triangle", "square", "star", "cross"])
@pytest.mark.parametrize("radius", [12, 20, 40])
@pytest.mark.parametrize("angle", [0, 17, 50])
def test_shapes(kind: str, radius: float, angle: float) -> None:
    assert measures.shape(mask_of(kind, radius, angle)) == kind


def test_rectangles_and_rings() -> None:
    assert measures.shape(mask_of("bar", 40, 30)) == "rectangle"
    assert measures.shape(mask_of("circle", 40) & ~mask_of("circle", 22)) == "ring"


def test_textures() -> None:
    rng = np.random.default_rng(0)
    everywhere = np.ones((40, 40), bool)
    plain = np.full((40, 40, 3), 90, np.uint8)
    stripes = np.where((np.arange(40) // 4 % 2)[None, :, None] > 0, 200, 60) * np.ones((40, 40, 3), np.uint8)
    noise = rng.integers(0, 256, (40, 40, 1)).repeat(3, 2).astype(np.uint8)
    kinds = [measures.texture(image.astype(np.uint8), everywhere)["kind"] for image in (plain, stripes, noise)]
    assert kinds == ["uniform", "striped", "noisy"]
