import numpy as np
import pytest
from scenes import GREEN, RED, photo

from tools_host.backends.grabcut import GrabCutSegmenter
from tools_host.benchmark import paint, polygon


def iou(one: np.ndarray, two: np.ndarray) -> float:
    return (one & two).sum() / (one | two).sum()


def box_of(mask: np.ndarray, margin: float) -> tuple[float, float, float, float]:
    ys, xs = np.nonzero(mask)
    x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return x1 - margin * (x2 - x1), y1 - margin * (y2 - y1), x2 + margin * (x2 - x1), y2 + margin * (y2 - y1)


@pytest.mark.parametrize("kind", ["circle", "bar", "star", "cross", "triangle", "square"])
@pytest.mark.parametrize("radius", [12, 30, 90])
def test_masks_of_painted_shapes(kind: str, radius: int) -> None:
    image = photo(1)
    truth = paint(image, polygon(kind, (160, 160), radius, 33), RED)
    found = GrabCutSegmenter().segment(image, box_of(truth, 0.2))
    assert found is not None
    mask, score = found
    assert mask.shape == image.shape[:2] and mask.dtype == bool
    assert iou(mask, truth) >= 0.85
    assert 0.4 <= score <= 1


def test_a_box_that_cuts_the_object_still_gives_all_of_it() -> None:
    image = photo(1)
    truth = paint(image, polygon("circle", (160, 160), 30, 0), RED)
    found = GrabCutSegmenter().segment(image, (138, 125, 200, 185))
    assert found is not None and iou(found[0], truth) >= 0.85


def test_a_twin_beside_the_box_is_not_taken_for_background() -> None:
    image = photo(1)
    truth = paint(image, polygon("circle", (140, 160), 20, 0), GREEN)
    paint(image, polygon("circle", (190, 160), 20, 0), GREEN)
    found = GrabCutSegmenter().segment(image, box_of(truth, 0.15))
    assert found is not None and iou(found[0], truth) >= 0.85


@pytest.mark.parametrize("seed", [1, 6, 9])
def test_noise_on_a_plain_ground_is_nothing(seed: int) -> None:
    image = np.clip(np.random.default_rng(seed).normal(120, 6, (200, 200, 3)), 0, 255).astype(np.uint8)
    assert GrabCutSegmenter().segment(image, (60, 60, 120, 130)) is None


def test_a_box_at_the_rim_and_of_the_whole_picture() -> None:
    image = np.full((80, 120, 3), 200, np.uint8)
    truth = paint(image, polygon("square", (60, 40), 25, 45), RED)
    for box in ((0, 0, 120, 80), (20, 0, 100, 80)):
        found = GrabCutSegmenter().segment(image, box)
        assert found is not None and iou(found[0], truth) >= 0.85


def test_same_call_same_answer() -> None:
    image = photo(1)
    truth = paint(image, polygon("star", (160, 160), 30, 10), RED)
    one, two = (GrabCutSegmenter().segment(image, box_of(truth, 0.2)) for _ in range(2))
    assert one is not None and two is not None
    assert np.array_equal(one[0], two[0]) and one[1] == two[1]


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1)])
def test_the_thinnest_picture_is_no_trouble(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = GrabCutSegmenter().segment(pixels, (0.3 * shape[1], 0.3 * shape[0], 0.6 * shape[1] + 1, 0.6 * shape[0] + 1))
    assert found is None or found[0].shape == shape
