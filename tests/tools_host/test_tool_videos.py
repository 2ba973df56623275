"""track and localize through the environment, on encoded clips with known truth."""

import pytest
from lab_media import write_clip
from scenes import events, moving_disc

from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.media import MediaStore
from tools_host.pool import InlinePool
from tools_host.protocol import MediaSpec, Observation, ToolCall
from tools_host.tools.track import _backwards

CONFIG = ToolsConfig()
START = [125, 750, 250, 875]
"""Box of the red disc of `moving_disc` at the start."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("clips")
    environment = EpisodeEnvironment([moving_disc(folder / "a.mp4"), events(folder / "b.mp4")], CONFIG)
    pool = InlinePool(CONFIG)

    def call(name: str, **arguments) -> Observation:
        return environment.run(ToolCall(name=name, arguments=arguments), pool)

    call.environment = environment
    return call


def test_track_says_where_the_disc_ends(run) -> None:
    seen = run("track", media=1, bbox_2d=START, time_s=0)
    assert seen.text.startswith("starts bottom left, ends top right after 5.9 s, moves up right")
    assert seen.data["end_px"] == pytest.approx([260, 60], abs=5)
    assert seen.data["length_px"] == pytest.approx(283, abs=20)
    assert 2 <= len(seen.regions) <= 8 and seen.regions[-1].time_s == 5.9
    assert [run.environment.media[i - 1].parent.kind for i in seen.media] == ["frame"]


def test_track_until(run) -> None:
    seen = run("track", media=1, bbox_2d=START, time_s=0, until_s=0.8)
    assert seen.data["direction"] == "none" and seen.data["end"] == "bottom left" and seen.data["end_s"] == 0.8


def test_zoom_and_ocr_of_a_frame(run) -> None:
    assert run("ocr", media=2, time_s=1.5).data["text"] == "HB3Q"
    seen = run("zoom", media=2, bbox_2d=[300, 100, 800, 300], time_s=1.52)
    assert seen.data["time_s"] == 1.5


@pytest.mark.parametrize(
    ("media", "arguments", "truth"),
    [
        (1, {"event": "motion"}, [(1.0, 4.0)]),
        (1, {"event": "motion", "bbox_2d": [600, 600, 1000, 1000]}, []),
        (1, {"event": "scene_change"}, []),
        (2, {"event": "scene_change"}, [(2.9, 3.0)]),
        (2, {"event": "text"}, [(1.0, 1.9)]),
        (2, {"event": "text", "text": "hb3q"}, [(1.0, 1.9)]),
        (2, {"event": "text", "text": "ZZZZ"}, []),
        (2, {"event": "appearance", "end_s": 2.8}, [(1.0, 1.9)]),
        (2, {"event": "appearance", "bbox_2d": [0, 600, 1000, 1000], "end_s": 2.8}, []),
    ],
)
def test_localize(run, media: int, arguments: dict, truth: list[tuple[float, float]]) -> None:
    seen = run("localize", media=media, **arguments)
    assert seen.ok and len(seen.spans) == len(truth), seen.text
    for span, (start_s, end_s) in zip(seen.spans, truth, strict=True):
        assert span.start_s == pytest.approx(start_s, abs=0.2) and span.end_s == pytest.approx(end_s, abs=0.2)
    assert len(seen.media) == min(4, len(truth))


def test_a_text_region_can_be_read_again(run) -> None:
    (region,) = run("localize", media=2, event="text").regions
    assert region.text == "HB3Q"
    assert run("ocr", region=region.id).data["text"] == "HB3Q"
    assert len(run("localize", media=2, event="appearance", region=region.id, end_s=2.8).spans) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("track", {"media": 1, "bbox_2d": START, "time_s": 9}, "bad_time"),
        ("track", {"media": 1, "bbox_2d": START, "time_s": 3, "until_s": 2}, "bad_time"),
        ("track", {"media": 1, "bbox_2d": START}, "missing_argument"),
        ("localize", {"media": 1, "event": "sunrise"}, "bad_type"),
        ("localize", {"media": 1, "event": "motion", "text": "A"}, "unknown_argument"),
        ("localize", {"media": 1, "event": "motion", "start_s": 3, "end_s": 2}, "bad_time"),
    ],
)
def test_wrong_use(run, name: str, arguments: dict, code: str) -> None:
    seen = run(name, **arguments)
    assert not seen.ok and seen.error.code == code and seen.error.hint


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start_s": 9.9}, "the last frame at 5.9 is not after start_s"),
        ({"end_s": 0}, "end_s 0.0 is not after the first frame at 0.0"),
    ],
)
def test_localize_speaks_of_the_times_that_were_given(run, times: dict, message: str) -> None:
    last = run.environment.media[0].duration_s
    times = {name: min(value, last) for name, value in times.items()}
    seen = run("localize", media=1, event="motion", **times)
    assert seen.error.code == "bad_time" and message in seen.error.message


def test_nothing_happens_in_a_single_frame(tmp_path) -> None:
    environment = EpisodeEnvironment([write_clip(tmp_path / "a.mp4", frames=1)], CONFIG)
    seen = environment.run(ToolCall(name="localize", arguments={"media": 1, "event": "motion"}), InlinePool(CONFIG))
    assert seen.error.code == "wrong_kind" and "a single frame" in seen.error.message


@pytest.mark.parametrize(("name", "rest"), [("track", {"bbox_2d": START, "time_s": 0}), ("localize", {"event": "text"})])
def test_same_call_same_answer(run, name: str, rest: dict) -> None:
    path = run.environment.media[0].uri
    call = ToolCall(name=name, arguments={"media": 1, **rest})
    one, two = (EpisodeEnvironment([path], CONFIG).run(call, InlinePool(CONFIG)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("backend", ["kcf", "csrt"])
def test_another_tracker_by_config(run, backend: str) -> None:
    config = ToolsConfig(backends={"track": backend})
    environment = EpisodeEnvironment([run.environment.media[0].uri], config)
    call = ToolCall(name="track", arguments={"media": 1, "bbox_2d": START, "time_s": 0, "until_s": 0.8})
    assert environment.run(call, InlinePool(config)).data["end"] == "bottom left"
    assert config.tool_versions()["track"]["backend"] == backend


CHECKING = ToolsConfig(tools=(*CONFIG.tools, "track_back"))


def test_a_path_is_followed_back_to_where_it_began(run) -> None:
    there = run("track", media=1, bbox_2d=START, time_s=0)
    environment, pool = EpisodeEnvironment([run.environment.media[0].uri], CHECKING), InlinePool(CHECKING)
    arguments = {"media": 1, "bbox_2d": list(there.regions[-1].bbox_2d), "time_s": 5.9, "until_s": 0}
    back = environment.run(ToolCall(name="track_back", arguments=arguments), pool)
    times = [region.time_s for region in back.regions]
    assert times == sorted(times, reverse=True) and (times[0], times[-1]) == (5.9, 0.0)
    assert back.regions[-1].bbox_2d == pytest.approx(there.regions[0].bbox_2d, abs=15)
    half = environment.run(ToolCall(name="track_back", arguments={**arguments, "until_s": 3}), pool)
    assert half.regions[-1].time_s == 3.0 and half.regions[-1].bbox_2d != back.regions[-1].bbox_2d
    late = environment.run(ToolCall(name="track_back", arguments={**arguments, "until_s": 5.9}), pool)
    assert late.error.code == "bad_time" and "not before" in late.error.message


def test_frames_come_backwards_each_once(run) -> None:
    media = run.environment.media[0]
    view = MediaStore().open(MediaSpec(path=media.uri, sha256=media.sha256, kind="video"))
    forward = list(view.frames(0.5, 4.5))
    backward = list(_backwards(view, 0.5, 4.5))
    assert len(forward) > 32  # more than are held at once
    assert [time_s for time_s, _ in backward] == [time_s for time_s, _ in forward][::-1]
    assert all((a == b).all() for (_, a), (_, b) in zip(backward, forward[::-1], strict=True))


def test_a_check_shares_the_back_end_of_its_tool_and_no_agent_is_offered_it(run) -> None:
    assert run("track_back", media=1, bbox_2d=START, time_s=3, until_s=0).error.code == "unknown_tool"
    config = ToolsConfig(tools=CHECKING.tools, backends={"track": "kcf"})
    assert config.tool_versions()["track_back"]["backend"] == "kcf"
    options = ToolsConfig(tools=CHECKING.tools, backend_options={"track": {"max_difference": 20.0}})
    versions = options.tool_versions()
    assert versions["track_back"]["version"] == versions["track"]["version"] != CHECKING.tool_versions()["track"]["version"]
