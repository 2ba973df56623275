import cv2
import numpy as np
import pytest
from scenes import RED, YELLOW, photo

from tools_host.backend import BACKENDS
from tools_host.backends import load_csrt, load_kcf, load_template
from tools_host.backends.base import Tracker
from tools_host.benchmark import paint, polygon


def frames(paths: list[np.ndarray], colours: list[tuple[int, int, int]]) -> list[tuple[float, np.ndarray]]:
    """Discs of radius 14 on a photograph, the first path on top."""
    scene, made = photo(3), []
    for index in range(len(paths[0])):
        frame = scene.copy()
        for path, colour in reversed(list(zip(paths, colours, strict=True))):
            paint(frame, polygon("circle", tuple(path[index]), 14, 0), colour)
        made.append((index / 10, frame))
    return made


def line(start: tuple[float, float], end: tuple[float, float], count: int = 40) -> np.ndarray:
    return np.linspace(start, end, count)


def centre(box: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


@pytest.mark.parametrize("load", [load_template, load_csrt, load_kcf])
def test_follows_a_disc(load) -> None:
    tracker: Tracker = load()
    path = line((60, 60), (150, 200), 30)
    seen = tracker.follow(iter(frames([path], [RED])), (43, 43, 77, 77))
    assert len(seen) == 30
    assert np.hypot(*(centre(seen[-1].box_px) - path[-1])) < 10


def test_an_identical_disc_that_crosses_does_not_steal_the_track() -> None:
    ours, twin = line((40, 60), (280, 250)), line((40, 250), (280, 60))
    seen = load_template().follow(iter(frames([ours, twin], [YELLOW, YELLOW])), (24, 44, 56, 76))
    assert np.hypot(*(centre(seen[-1].box_px) - ours[-1])) < 8


def test_a_thing_that_passes_behind_another_is_found_again() -> None:
    behind, cover = line((30, 160), (290, 160)), line((160, 160), (160, 160))
    shown = frames([cover, behind], [RED, YELLOW])
    seen = load_template().follow(iter(shown), (14, 144, 46, 176))
    assert len(seen) == 40
    assert np.hypot(*(centre(seen[-1].box_px) - behind[-1])) < 8


def test_a_thing_that_is_taken_away_ends_the_path() -> None:
    shown = frames([line((100, 100), (140, 100), 20)], [RED])
    shown += [(2.0 + index / 10, photo(3)) for index in range(20)]
    seen = load_template().follow(iter(shown), (84, 84, 116, 116))
    assert 1.8 <= seen[-1].time_s <= 2.1


def test_the_contributed_trackers_of_opencv_are_there() -> None:
    assert cv2.TrackerCSRT_create() is not None and cv2.TrackerKCF_create() is not None
    assert [entry.name for entry in BACKENDS.values() if entry.tool == "track"] == ["template", "kcf", "csrt"]
