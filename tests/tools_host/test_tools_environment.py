"""An episode from end to end: numbering, rounding, words, derived media, errors."""

import dataclasses
import hashlib
import json
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import decode_mask
from tools_host.media import MediaStore
from tools_host.observation_text import region_line, result_text
from tools_host.pool import InlinePool
from tools_host.protocol import (
    Environment,
    Observation,
    Region,
    Shown,
    Span,
    ToolCall,
    ToolError,
    ToolOutput,
    ToolRequest,
)


class Episode:
    """An environment with an inline pool behind it."""

    def __init__(self, paths: list[str], config: ToolsConfig) -> None:
        self.environment = EpisodeEnvironment(paths, config)
        self.pool = InlinePool(config)

    def __call__(self, name: str, **arguments: Any) -> Observation:
        return self.environment.run(ToolCall(name=name, arguments=arguments), self.pool)


@pytest.fixture
def episode(photo: str, clip: str, lab_config: ToolsConfig) -> Episode:
    return Episode([photo, clip], lab_config)


def test_it_implements_the_protocol(episode: Episode) -> None:
    environment: Environment = episode.environment
    assert [medium.id for medium in environment.media] == [1, 2]
    image, video = environment.media
    assert (image.kind, image.width, image.height, image.duration_s) == ("image", 200, 100, None)
    assert (video.kind, video.duration_s, video.fps) == ("video", 2.0, 10.0)


def test_a_crop_is_numbered_hashed_and_worded(episode: Episode) -> None:
    seen = episode("lab_crop", media=1, bbox_2d=[100, 200, 500, 600])
    assert seen.ok and seen.error is None
    assert seen.text == 'cropped\nmedia 3: crop of media 1\nregion 1 [100, 200, 500, 600]: "cut"'
    region = seen.regions[0]
    assert (region.id, region.media, region.bbox_2d, region.score) == (1, 1, (100, 200, 500, 600), 0.123)
    assert seen.data["at_s"] == 1.23 and seen.data["mean"] == round(seen.data["mean"], 3)
    assert region.mask is not None and decode_mask(region.mask).sum() == 80 * 40
    crop = episode.environment.media[2]
    pixels = episode.environment.pixels(3)
    assert np.array_equal(pixels, episode.environment.pixels(1)[20:60, 20:100])
    assert crop.uri is None and crop.sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert crop.parent is not None and (crop.parent.media, crop.parent.bbox_2d) == (1, (100, 200, 500, 600))


def test_steps_are_counted_over_failed_turns_too(episode: Episode) -> None:
    episode("lab_crop", media=9, bbox_2d=[0, 0, 1, 1])
    broken = episode.environment.observe(None, ToolError(code="bad_json", message="no closing brace", hint="close it"))
    assert broken.text == "error bad_json: no closing brace. close it" and not broken.ok
    seen = episode("lab_crop", media=1, bbox_2d=[0, 0, 500, 500])
    parent = episode.environment.media[seen.media[0] - 1].parent
    assert parent is not None and parent.step == 2


def test_a_region_leads_back_to_its_pixels(episode: Episode) -> None:
    episode("lab_crop", media=2, bbox_2d=[0, 0, 500, 500], time_s=0.72)
    again = episode("lab_crop", region=1, kind="overlay")
    assert again.text.splitlines()[1] == "media 4: overlay of media 2 at 0.72 s"
    assert again.regions[0].time_s == 0.72
    drawn = episode.environment.pixels(4)
    assert (drawn[0, 0] == (255, 0, 160)).all()
    assert drawn.shape == (24, 32, 3)


def test_a_crop_of_an_overlay_is_cut_from_the_original(episode: Episode) -> None:
    episode("lab_crop", media=1, bbox_2d=[0, 0, 1000, 1000], kind="overlay")
    episode("lab_crop", media=3, bbox_2d=[0, 0, 500, 1000])
    assert np.array_equal(episode.environment.pixels(4), episode.environment.pixels(1)[:, :100])


def test_spans_are_rounded_and_worded(episode: Episode) -> None:
    seen = episode("lab_film", media=2, start_s=0.25)
    assert seen.text == "span 1: 0.3-1.9 s" and seen.spans == (Span(start_s=0.3, end_s=1.9, score=1.0),)


def test_errors_become_observations(episode: Episode) -> None:
    unknown = episode("lab_corp", media=1)
    assert unknown.error is not None and unknown.error.code == "unknown_tool" and "lab_crop" in unknown.error.hint
    assert episode("lab_fault", how="refuse").text == "error missing_argument: give more. say what"
    bug = episode("lab_fault", how="raise")
    assert bug.error is not None and bug.error.code == "worker_lost" and "RuntimeError: a bug" in bug.error.message
    assert episode.environment.regions == [] and len(episode.environment.media) == 2


def test_a_file_that_vanished_is_unreadable(tmp_path: Any, lab_config: ToolsConfig) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    episode = Episode([str(tmp_path / "a.png")], lab_config)
    (tmp_path / "a.png").unlink()
    seen = episode("lab_crop", media=1, bbox_2d=[0, 0, 500, 500])
    assert seen.error is not None and seen.error.code == "unreadable"


def test_what_was_shown_is_recorded(episode: Episode) -> None:
    shown = Shown(grid=(1, 4, 8))
    episode.environment.set_shown(1, shown)
    assert episode.environment.media[0].shown == shown and episode.environment.media[1].shown is None


def test_frames_for_the_model_are_spread_evenly(episode: Episode) -> None:
    times, frames = episode.environment.frames_shown(2, 5)
    np.testing.assert_allclose(times, [0.0, 0.5, 1.0, 1.4, 1.9], atol=1e-6)
    assert frames.shape == (5, 48, 64, 3)
    assert episode.environment.frames_shown(2, 100)[1].shape[0] == 20
    assert episode.environment.frames_shown(1, 4)[0] == (0.0,)


def request_of(episode: Episode, **arguments: Any) -> ToolRequest:
    request = episode.environment.prepare(ToolCall(name="lab_crop", arguments=arguments))
    assert isinstance(request, ToolRequest)
    return request


def test_equal_calls_of_two_episodes_share_a_key(photo: str, clip: str, lab_config: ToolsConfig) -> None:
    one, two = Episode([photo], lab_config), Episode([clip, photo], lab_config)
    assert request_of(one, media=1, bbox_2d=[0, 0, 9, 9]).key == request_of(two, media=2, bbox_2d=[0, 0, 9.2, 9]).key
    two("lab_fault", how="refuse")
    one("lab_crop", media=1, bbox_2d=[0, 0, 500, 500])
    two("lab_crop", media=2, bbox_2d=[0, 0, 500, 500])
    crops = [request_of(one, media=2, bbox_2d=[0, 0, 9, 9]), request_of(two, media=3, bbox_2d=[0, 0, 9, 9])]
    assert crops[0].key == crops[1].key
    keys = {request_of(one, media=1, bbox_2d=[0, 0, 9, 9]).key, crops[0].key}
    keys |= {request_of(one, media=1, bbox_2d=[0, 0, 9, 10]).key, request_of(two, media=1, bbox_2d=[0, 0, 9, 9]).key}
    assert len(keys) == 4
    assert pickle.loads(pickle.dumps(crops[0])) == crops[0]


def test_random_numbers_follow_from_the_call(episode: Episode) -> None:
    texts = [episode("lab_all_types", media=1, point_2d=[1, 2], count=count).text for count in (1, 1, 2)]
    assert texts[0] == texts[1] and texts[0].split()[-1] != texts[2].split()[-1]


# --- words ---


def test_boxes_may_be_left_out_of_the_text(photo: str, lab_config: ToolsConfig) -> None:
    episode = Episode([photo], dataclasses.replace(lab_config, boxes_in_text=False))
    seen = episode("lab_crop", media=1, bbox_2d=[0, 0, 500, 500])
    assert seen.text.splitlines()[2] == 'region 1: "cut"' and seen.regions[0].bbox_2d == (0, 0, 500, 500)


def test_region_lines() -> None:
    region = Region(id=2, media=1, bbox_2d=(120, 340, 260, 400), time_s=3.5)
    assert region_line(region, boxes=True) == "region 2 [120, 340, 260, 400] at 3.5 s"
    assert region_line(dataclasses.replace(region, text="HK3V9"), boxes=False) == 'region 2 at 3.5 s: "HK3V9"'


def test_nothing_found_is_said() -> None:
    assert result_text("", (), (), (), ToolsConfig()) == "nothing found"


@pytest.mark.parametrize(("max_lines", "max_chars"), [(5, 2000), (100, 120), (2, 60)])
def test_long_results_say_what_was_left_out(max_lines: int, max_chars: int) -> None:
    regions = [Region(id=i, media=1, bbox_2d=(0, 0, 1, 1), text=f"line {i}") for i in range(1, 31)]
    text = result_text("30 lines", regions, (), (), ToolsConfig(max_lines=max_lines, max_chars=max_chars))
    lines = text.splitlines()
    assert len(lines) <= max_lines and len(text) <= max_chars
    assert lines[0] == "30 lines" and lines[-1] == f"({31 - len(lines) + 1} more lines left out)"


def test_one_line_that_is_too_long_is_cut() -> None:
    text = result_text("x" * 500, (), (), (), ToolsConfig(max_chars=100))
    assert len(text) <= 100 and "xxx..." in text


def test_line_breaks_inside_a_text_do_not_make_lines() -> None:
    region = Region(id=1, media=1, bbox_2d=(0, 0, 1, 1), text="a\nb")
    assert result_text("", [region], (), (), ToolsConfig()) == 'region 1 [0, 0, 1, 1]: "a b"'


# --- the dialect of released checkpoints ---


def test_the_published_zoom_call_is_mapped(photo: str, clip: str) -> None:
    config = ToolsConfig(tools=("zoom",), dialect="qwen3_vl")
    environment = EpisodeEnvironment([clip, photo], config)
    names = [schema["function"]["name"] for schema in config.schemas()]
    assert names == ["zoom", "image_zoom_in_tool"] and json.dumps(config.schemas())

    def prepared(**arguments: Any) -> ToolRequest | ToolError:
        return environment.prepare(ToolCall(name="image_zoom_in_tool", arguments=arguments))

    request = prepared(bbox_2d=[0, 0, 500, 500], label="sign", img_idx=0)
    native = ToolCall(name="zoom", arguments={"media": 2, "bbox_2d": [0, 0, 500, 500], "label": "sign"})
    assert request == environment.prepare(native)
    outside = prepared(bbox_2d=[0, 0, 500, 500], label="sign", img_idx=1)
    assert isinstance(outside, ToolError) and outside.code == "no_such_media" and "from 0 to 0" in outside.message
    missing = prepared(bbox_2d=[0, 0, 500, 500], img_idx=0)
    assert isinstance(missing, ToolError) and missing.code == "missing_argument"


def test_without_the_dialect_the_published_call_is_unknown(photo: str) -> None:
    environment = EpisodeEnvironment([photo], ToolsConfig(tools=("zoom",)), store=MediaStore())
    answer = environment.prepare(ToolCall(name="image_zoom_in_tool", arguments={}))
    assert isinstance(answer, ToolError) and answer.code == "unknown_tool"


def test_a_result_without_a_medium_is_a_bug_that_is_told(episode: Episode) -> None:
    from tools_host.protocol import Found

    output = ToolOutput(regions=(Found(box_px=(0, 0, 1, 1)),))
    with pytest.raises(ValueError, match="names no medium"):
        episode.environment.observe(ToolCall(name="lab_fault", arguments={"how": "pid"}), output)
