"""Chunks of a rollout, laid end to end, are the whole trajectory that training encodes."""

import dataclasses
import json

import numpy as np
import pytest

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.look import encoder_of
from pixelis_jax.encoding import Chunk, Encoder, PromptConfig, TextTokenizer, Thumbnail
from pixelis_jax.policy import processing
from pixelis_jax.policy.processing import ProcessingConfig
from pixelis_jax.trajectory import Final, Role, Source, Step, Trajectory
from pixelis_jax.trajectory.rendering import render_observation, render_prompt, render_trajectory, render_turn
from tools_host.protocol import Media, Observation, Parent, ToolCall

SCHEMAS = [{"name": "zoom"}, {"name": "ocr"}]
RAW = 'Look. <tool_call>\n{"name": "zoom", "arguments": {"media": 1, "bbox_2d": [0, 0, 500, 500]}}\n</tool_call>'
ENCODER = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus([RAW]))))
BUCKET = ENCODER.prompt.patch_bucket


def grey(count: int, height: int, width: int, first: int) -> np.ndarray:
    """Frames that tell which they are: the frames of pair k are all `first + k`."""
    values = first + np.arange(count) // 2
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def thumbnails() -> dict[int, Thumbnail]:
    """An image, a clip of three pairs, a crop and a frame, all of different shapes."""
    return {
        1: ENCODER.image(grey(1, 48, 64, 10)[0]),
        2: ENCODER.video(grey(6, 32, 64, 20), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        3: ENCODER.image(grey(1, 64, 32, 30)[0]),
        4: ENCODER.image(grey(1, 64, 64, 40)[0]),
    }


@pytest.fixture(scope="module")
def trajectory(thumbnails: dict[int, Thumbnail]) -> Trajectory:
    def derived(number: int, root: int, kind: str) -> Media:
        parent = Parent(media=root, step=number - 3, bbox_2d=(0, 0, 500, 500), time_s=None, kind=kind)
        return Media(id=number, kind="image", uri=None, sha256="", width=64, height=64, parent=parent)

    media = (
        Media(id=1, kind="image", uri="a.png", sha256="", width=64, height=48),
        Media(id=2, kind="video", uri="b.mp4", sha256="", width=64, height=32, duration_s=3.0, fps=2.0),
        derived(3, 1, "crop"),
        derived(4, 2, "frame"),
    )
    steps = [
        Step(
            raw=RAW, thought="Look.", call=ToolCall(name="zoom", arguments={"media": 1}),
            observation=Observation(ok=True, text=f"media {number}: {kind} of media {root}", media=(number,)),
        )
        for number, root, kind in ((3, 1, "crop"), (4, 2, "frame"))
    ]  # fmt: skip
    return Trajectory(
        id="t",
        example="e",
        question="What is in <media 2>?",
        media=tuple(dataclasses.replace(medium, shown=thumbnails[medium.id].shown) for medium in media),
        steps=tuple(steps),
        final=Final(raw="It is red. <answer>red</answer>", thought="It is red."),
        answer="red",
        stopped="answer",
        source=Source(dataset="d"),
    )


def chunks(trajectory: Trajectory, thumbnails: dict[int, Thumbnail], encoder: Encoder) -> list[Chunk]:
    """Encodes as the rollout does: each piece alone, from the position where the one before ended."""
    style, media = encoder.prompt.style, trajectory.media
    pieces = [render_prompt(trajectory.question, media[:2], tools=encoder.prompt.tools, schemas=SCHEMAS, style=style)]
    for turn, step in enumerate(trajectory.steps):
        pieces += [render_turn(step.raw, turn), render_observation(step.observation, media, style=style)]
    pieces.append(render_turn(trajectory.final.raw, len(trajectory.steps)))
    made: list[Chunk] = []
    for piece in pieces:
        made.append(encoder.encode(piece, thumbnails, start=made[-1].next_position if made else 0))
    return made


@pytest.fixture(params=["compact", "qwen3_vl"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return dataclasses.replace(ENCODER, prompt=dataclasses.replace(ENCODER.prompt, style=request.param))


@pytest.fixture
def whole(encoder: Encoder, trajectory: Trajectory, thumbnails: dict[int, Thumbnail]) -> Chunk:
    prompt = encoder.prompt
    return encoder.encode(render_trajectory(trajectory, tools=prompt.tools, schemas=SCHEMAS, style=prompt.style), thumbnails)


def test_chunks_laid_end_to_end_are_the_whole(encoder, trajectory, thumbnails, whole):
    made = chunks(trajectory, thumbnails, encoder)
    for field in ("ids", "roles", "turns", "positions", "patches", "grid"):
        np.testing.assert_array_equal(np.concatenate([getattr(chunk, field) for chunk in made]), getattr(whole, field))
    assert made[-1].next_position == whole.next_position
    index, spans, tokens, frames = [], [], 0, 0
    for chunk in made:
        index.append(np.where(chunk.visual_index >= 0, chunk.visual_index + frames * BUCKET // 4, -1))
        spans.append(chunk.media_spans + [tokens, tokens, 0, 0])
        tokens, frames = tokens + len(chunk.ids), frames + len(chunk.grid)
    np.testing.assert_array_equal(np.concatenate(index), whole.visual_index)
    np.testing.assert_array_equal(np.concatenate(spans), whole.media_spans)


def test_a_turn_goes_on_one_position_a_token(encoder, trajectory, thumbnails):
    """As the engine counts while it samples, before anything is encoded."""
    prompt, turn, *_ = chunks(trajectory, thumbnails, encoder)
    expected = prompt.next_position + np.arange(len(turn.ids))
    np.testing.assert_array_equal(turn.positions, np.repeat(expected[:, None], 3, axis=1))
    assert turn.next_position == prompt.next_position + len(turn.ids)


def test_each_placeholder_finds_the_pixels_of_its_medium(whole):
    assert [(media, frame) for _, _, media, frame in whole.media_spans] == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (4, 0)]
    for row, (start, end, media, frame) in enumerate(whole.media_spans):
        count = whole.grid[row].prod()
        value = (10 * media + frame) / 255
        np.testing.assert_allclose(whole.patches[row, :count], (value - 0.5) / 0.5, atol=1e-6)
        assert not whole.patches[row, count:].any()
        np.testing.assert_array_equal(whole.visual_index[start:end], row * BUCKET // 4 + np.arange(count // 4))
    text = np.ones(len(whole.ids), bool)
    for start, end, *_ in whole.media_spans:
        text[start:end] = False
    assert (whole.visual_index[text] == -1).all()


def test_grids_keep_the_shape_of_each_medium(whole):
    assert whole.grid.tolist() == [[6, 8], [4, 8], [4, 8], [4, 8], [8, 4], [8, 8]]


def test_turns_and_roles_are_those_of_the_policy(whole, encoder):
    text = {turn: encoder.tokenizer.decode(whole.ids[whole.turns == turn]) for turn in (0, 1, 2)}
    assert text == {0: RAW + "<|im_end|>", 1: RAW + "<|im_end|>", 2: "It is red. <answer>red</answer><|im_end|>"}
    assert set(whole.roles[whole.turns == -1]) <= {Role.PROMPT, Role.OBSERVATION}


def test_text_without_media_has_no_frames():
    chunk = ENCODER.encode(render_prompt("What?", [], tools="none", style="compact"), {})
    assert chunk.patches.shape == (0, BUCKET, 384) and chunk.grid.shape == (0, 2) and chunk.media_spans.shape == (0, 4)
    assert (chunk.visual_index == -1).all() and chunk.next_position == len(chunk.ids)


def test_a_frame_that_does_not_fit_the_bucket_is_refused(trajectory, thumbnails):
    small = dataclasses.replace(ENCODER, prompt=dataclasses.replace(ENCODER.prompt, patch_bucket=16))
    with pytest.raises(ValueError, match="6 x 8 patches does not fit into a bucket of 16"):
        small.encode(render_prompt("What?", trajectory.media[:1], tools="none", style="compact"), thumbnails)


def test_files_of_a_model_directory_round_trip(tmp_path):
    for name, text in ENCODER.files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(ENCODER.model.to_json()))
    again = Encoder.load(tmp_path)
    assert (again.model, again.processing, again.prompt) == (ENCODER.model, ENCODER.processing, ENCODER.prompt)
    assert again.tokenizer.token_bytes == ENCODER.tokenizer.token_bytes


def test_patches_that_the_model_does_not_take_are_refused(tmp_path):
    for name, text in (ENCODER.files() | {"preprocessor_config.json": "{}"}).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(ENCODER.model.to_json()))
    with pytest.raises(ValueError, match=r"are \(16, 2, 2\) in preprocessor_config.json, \(8, 2, 2\) in config.json"):
        Encoder.load(tmp_path)


def test_a_released_checkpoint_gets_the_default_prompt(tmp_path):
    prompt = PromptConfig.load(tmp_path)
    assert prompt == PromptConfig() and (prompt.tools, prompt.style) == ("schemas", "qwen3_vl")


def test_frames_of_a_released_checkpoint_always_fit_into_the_bucket(tmp_path):
    files = ENCODER.files() | {"pixelis.json": '{"patch_bucket": 256}'}
    published = ProcessingConfig(patch_size=ENCODER.processing.patch_size, min_pixels=1024)
    files["preprocessor_config.json"] = json.dumps(published.to_json())
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(ENCODER.model.to_json()))
    encoder = Encoder.load(tmp_path)
    _, height, width = encoder.image(np.zeros((700, 900, 3), np.uint8)).shown.grid
    assert 128 < height * width <= 256
    _, height, width = encoder.video(np.zeros((2, 700, 900, 3), np.uint8), [0.0, 1.0]).shown.grid
    assert 128 < height * width <= 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tool": "names"}', "'tool'"),
        ('{"tools": "all"}', "tools is 'all', expected one of"),
        ('{"style": "chatml"}', "style is 'chatml', expected one of"),
        ('{"video_frames": 0}', "video_frames is 0, expected a positive integer"),
        ('{"patch_bucket": "64"}', "patch_bucket is '64', expected a positive integer"),
        ("[1, 2]", "pixelis.json"),
        ("{", "pixelis.json"),
    ],
)
def test_a_malformed_prompt_file_is_named(tmp_path, text, message):
    (tmp_path / "pixelis.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        PromptConfig.load(tmp_path)
    assert "pixelis.json" in str(caught.value)


def test_thumbnails_are_what_the_published_processing_makes():
    rgb = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    thumbnail = ENCODER.image(rgb)
    patches, grid = processing.process_image(rgb, ENCODER.processing)
    assert thumbnail.shown.grid == grid
    np.testing.assert_array_equal(processing.to_patches(thumbnail.frames, ENCODER.processing)[0], patches)


def test_a_blind_policy_is_shown_nothing_but_sizes() -> None:
    blind = dataclasses.replace(ENCODER, prompt=dataclasses.replace(ENCODER.prompt, blind=True))
    rng = np.random.default_rng(0)
    for make in (lambda encoder, pixels: encoder.image(pixels[0]), lambda encoder, pixels: encoder.video(pixels, [0.0, 1.0])):
        one, two = (make(blind, rng.integers(0, 255, (2, 48, 64, 3), np.uint8)) for _ in range(2))
        seen = make(ENCODER, rng.integers(0, 255, (2, 48, 64, 3), np.uint8))
        np.testing.assert_array_equal(one.frames, two.frames)
        assert one.shown == seen.shown and one.frames.std() == 0 < seen.frames.std()
    with pytest.raises(ValueError, match="blind is 'yes'"):
        PromptConfig(blind="yes")  # type: ignore[arg-type]
