import numpy as np
import pytest
from scenes import RED, YELLOW, card, photo

from tools_host.backends import changes
from tools_host.benchmark import paint, polygon


def clip(frames: list[np.ndarray], fps: float = 10) -> changes.Clip:
    height, width = frames[0].shape[:2]
    return changes.Clip.of(((i / fps, frame) for i, frame in enumerate(frames)), (0, 0, width, height))


def noisy(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(frame + rng.normal(0, 4, frame.shape), 0, 255).astype(np.uint8)


def with_card(present: range, count: int = 40) -> list[np.ndarray]:
    """A card while `present`, and a disc that moves below it all the time."""
    rng, frames = np.random.default_rng(0), []
    for index in range(count):
        frame = photo(3).copy()
        if index in present:
            card(frame, "AB", (120, 40))
        paint(frame, polygon("circle", (40 + 5 * index, 240), 16, 0), YELLOW)
        frames.append(noisy(frame, rng))
    return frames


@pytest.mark.parametrize("present", [range(8, 20), range(15, 40)])
def test_appearance_among_moving_things(present: range) -> None:
    (event,) = changes.appearances(clip(with_card(present)))
    assert event.start_s == pytest.approx(present[0] / 10, abs=0.11)
    assert event.end_s == pytest.approx(present[-1] / 10, abs=0.11)
    assert event.box_px is not None and event.box_px[1] == pytest.approx(40, abs=6)


def test_what_was_there_before_and_goes_does_not_appear() -> None:
    assert changes.appearances(clip(with_card(range(0, 20)))) == []


def test_a_still_noisy_clip_has_no_events() -> None:
    rng = np.random.default_rng(1)
    still = clip([noisy(photo(3), rng) for _ in range(20)])
    assert [find(still) for find in (changes.cuts, changes.motions, changes.appearances, changes.presences)] == [[]] * 4


def test_motion_with_a_pause() -> None:
    xs = [40.0] * 8 + list(np.linspace(40, 120, 10)) + [120.0] * 10 + list(np.linspace(120, 250, 10)) + [250.0] * 5
    frames = []
    for x in xs:
        frame = photo(3).copy()
        paint(frame, polygon("circle", (x, 160), 14, 0), RED)
        frames.append(frame)
    first, second = changes.motions(clip(frames))
    assert (first.start_s, first.end_s) == (pytest.approx(0.8, abs=0.2), pytest.approx(1.7, abs=0.2))
    assert (second.start_s, second.end_s) == (pytest.approx(2.8, abs=0.2), pytest.approx(3.7, abs=0.2))


def test_two_cuts() -> None:
    frames = [photo(1)] * 10 + [photo(2)] * 12 + [photo(4)] * 10
    assert [event.end_s for event in changes.cuts(clip(frames))] == pytest.approx([1.0, 2.2])


def test_something_that_passes_is_present() -> None:
    frames = []
    for index in range(40):
        frame = photo(3).copy()
        if 10 <= index < 25:
            paint(frame, polygon("circle", (20 + 18 * (index - 10), 160), 16, 0), RED)
        frames.append(frame)
    (event,) = changes.presences(clip(frames))
    assert (event.start_s, event.end_s) == (pytest.approx(1.0, abs=0.11), pytest.approx(2.4, abs=0.11))


def test_runs() -> None:
    active = np.array([0, 1, 1, 0, 1, 0, 0, 0, 1], bool)
    assert list(changes.runs(active, gap=1)) == [(1, 4), (8, 8)]
    assert list(changes.runs(np.zeros(3, bool), gap=1)) == []
