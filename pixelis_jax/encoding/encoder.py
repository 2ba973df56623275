"""Turns an episode's segments and pixels into the arrays that the policy takes, whole or chunk by chunk.

The rollout encodes a prompt and then each observation as a `Chunk` of its own; supervised data encodes a whole trajectory at
once. Both go through `Encoder.encode`, so that both have the same ids and positions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from etils import epath

from pixelis_jax.encoding.tokenizer import TextTokenizer
from pixelis_jax.policy import Qwen3VLConfig, mrope_positions, processing, visual_index
from pixelis_jax.trajectory import Role, tokenize
from pixelis_jax.trajectory.rendering import Segment, Style, ToolsMode, VisionSegment
from tools_host.protocol import Shown, rounded

PROMPT_FILE = "pixelis.json"

_GREY = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How episodes are put to a policy; kept in `pixelis.json` beside its weights. The defaults suit released checkpoints.

    Attributes:
      tools: `schemas` prints the tools' JSON schemas, `names` their bare names, `none` nothing.
      style: Chat template: `qwen3_vl`, or `compact` for few tokens.
      boxes_in_text: Whether observations print the boxes of regions.
      video_frames: Frames of a video that the model sees, sampled uniformly; two make a pair.
      patch_bucket: Patches that a frame is padded to, on the device.
      coordinate_step: Supervised traces round boxes to multiples of this.
      context: Most tokens of an episode, prompt and observations included.
      blind: Shows plain grey in place of every medium: what a policy answers that only hears the question.
    """

    tools: ToolsMode = "schemas"
    style: Style = "qwen3_vl"
    boxes_in_text: bool = True
    video_frames: int = 16
    patch_bucket: int = 4096
    coordinate_step: int = 1
    context: int = 16_384
    blind: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("tools", get_args(ToolsMode)), ("style", get_args(Style))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name in ("video_frames", "patch_bucket", "coordinate_step", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if not isinstance(self.blind, bool):
            raise ValueError(f"blind is {self.blind!r}, expected true or false")

    @classmethod
    def load(cls, directory: epath.PathLike) -> PromptConfig:
        """Reads `pixelis.json`; a directory without one is a released checkpoint and gets the defaults.

        Raises:
          ValueError: The file holds an unknown field, a value out of range, or no JSON object.
        """
        path = epath.Path(directory) / PROMPT_FILE
        if not path.exists():
            return cls()
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The text of `pixelis.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnail:
    """What the model sees of a medium: resized frames, uint8 `[2 t, H, W, 3]`, and their patch grid and times."""

    frames: np.ndarray
    shown: Shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Tokens that stand one behind the other, with the frames they show.

    Attributes:
      ids: Token ids, int32 `[T]`.
      roles: Values of `Role`, int8 `[T]`.
      turns: Turn of the policy that a token belongs to, -1 elsewhere, int16 `[T]`.
      positions: Time, height, width, int32 `[T, 3]`.
      next_position: Position of the token that follows.
      visual_index: Index into the chunk's visual tokens, -1 for text, int32 `[T]`; frame f starts at `f * patch_bucket / 4`.
      patches: Normalised patches, float32 `[F, S, P]`.
      grid: Patches of each frame (h, w), int32 `[F, 2]`.
      media_spans: Start, end, media id and frame pair of each run of visual tokens, int32 `[M, 4]`.
    """

    ids: np.ndarray
    roles: np.ndarray
    turns: np.ndarray
    positions: np.ndarray
    next_position: int
    visual_index: np.ndarray
    patches: np.ndarray
    grid: np.ndarray
    media_spans: np.ndarray

    @classmethod
    def of_text(cls, ids: np.ndarray, model: Qwen3VLConfig, *, patch_bucket: int) -> Chunk:
        """Returns text alone, int32 `[T]`, as a prompt: no token belongs to a turn, and all positions start at 0."""
        count = len(ids)
        positions, following = mrope_positions(ids, [], model)
        return cls(
            ids=ids,
            roles=np.full(count, Role.PROMPT, np.int8),
            turns=np.full(count, -1, np.int16),
            positions=positions,
            next_position=following,
            visual_index=np.full(count, -1, np.int32),
            patches=np.zeros((0, patch_bucket, model.vision.patch_dim), np.float32),
            grid=np.zeros((0, 2), np.int32),
            media_spans=np.zeros((0, 4), np.int32),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Everything that lies between an episode and the policy's arrays."""

    model: Qwen3VLConfig
    tokenizer: TextTokenizer
    processing: processing.ProcessingConfig
    prompt: PromptConfig

    @classmethod
    def load(cls, directory: epath.PathLike) -> Encoder:
        """Reads a model directory: config.json, tokenizer.json, preprocessor_config.json, pixelis.json.

        Raises:
          ValueError: A file is missing or malformed, or the images are not cut into the patches that the model takes.
        """
        directory = epath.Path(directory)
        prompt = PromptConfig.load(directory)
        model = Qwen3VLConfig.from_json(directory / "config.json")
        images = processing.ProcessingConfig.from_json(directory)
        cut = images.patch_size, images.temporal_patch_size, images.merge_size
        taken = model.vision.patch_size, model.vision.temporal_patch_size, model.vision.spatial_merge_size
        if cut != taken:
            names = "patch_size, temporal_patch_size and merge_size"
            raise ValueError(f"{directory}: {names} are {cut} in preprocessor_config.json, {taken} in config.json")
        return cls(
            model=model,
            tokenizer=TextTokenizer.load(directory),
            processing=_limited(images, prompt.patch_bucket),
            prompt=prompt,
        )

    def files(self) -> dict[str, str]:
        """Name and text of the files that stand beside the weights, config.json excepted."""
        return {
            "tokenizer.json": self.tokenizer.to_json(),
            "preprocessor_config.json": json.dumps(self.processing.to_json(), indent=2) + "\n",
            PROMPT_FILE: self.prompt.to_json(),
        }

    def image(self, rgb: np.ndarray) -> Thumbnail:
        """What the model sees of an image, uint8 `[H, W, 3]`."""
        frames = self._seen(processing.resize_image(rgb, self.processing))
        return Thumbnail(frames=frames, shown=Shown(grid=self._grid(frames)))

    def video(self, frames: np.ndarray, times_s: Sequence[float]) -> Thumbnail:
        """What the model sees of sampled frames, uint8 `[N, H, W, 3]`, at `times_s` seconds."""
        resized, times = processing.resize_video(frames, times_s, self.processing)
        return Thumbnail(frames=self._seen(resized), shown=Shown(grid=self._grid(resized), times_s=rounded(times, 2)))

    def _seen(self, frames: np.ndarray) -> np.ndarray:
        return np.full_like(frames, _GREY) if self.prompt.blind else frames

    def _grid(self, frames: np.ndarray) -> tuple[int, int, int]:
        count, height, width, _ = frames.shape
        patch = self.processing.patch_size
        return count // self.processing.temporal_patch_size, height // patch, width // patch

    def encode(self, segments: Iterable[Segment], thumbnails: Mapping[int, Thumbnail], *, start: int = 0) -> Chunk:
        """Tokenises segments and lays out their frames.

        Args:
          segments: From `pixelis_jax.trajectory.rendering`.
          thumbnails: By media id, for every medium in `segments`.
          start: Position of the first token: the preceding chunk's `next_position`.

        Returns:
          The chunk.

        Raises:
          ValueError: A frame has more patches than `patch_bucket`.
        """
        segments = list(segments)
        tokens = tokenize(
            segments, self.tokenizer.encode, self.tokenizer.token_bytes, self.model, self.model.vision.spatial_merge_size
        )
        shown = [segment for segment in segments if isinstance(segment, VisionSegment)]
        grids = [(1, *segment.grid) for segment in shown]
        positions, following = mrope_positions(tokens.ids, grids, self.model, start=start)
        index = visual_index(tokens.ids, grids, self.model, bucket=self.prompt.patch_bucket)
        return Chunk(
            ids=tokens.ids,
            roles=tokens.roles,
            turns=tokens.turns,
            positions=positions,
            next_position=following,
            visual_index=index,
            patches=self.patches([(thumbnails[segment.media], segment.frame) for segment in shown]),
            grid=np.asarray([segment.grid for segment in shown], np.int32).reshape(-1, 2),
            media_spans=tokens.media_spans,
        )

    def patches(self, shown: Sequence[tuple[Thumbnail, int]], frames: int = 0) -> np.ndarray:
        """Normalised patches of (thumbnail, temporal patch), float32 `[F, S, P]`; F is at least `frames`, S is `patch_bucket`."""
        patches = np.zeros((max(len(shown), frames), self.prompt.patch_bucket, self.model.vision.patch_dim), np.float32)
        for frame, (thumbnail, index) in zip(patches, shown, strict=False):
            cut = processing.to_patches(self.pair(thumbnail, index), self.processing)[0]
            frame[: len(cut)] = cut
        return patches

    def pair(self, thumbnail: Thumbnail, index: int) -> np.ndarray:
        """Frames of temporal patch `index`, uint8 `[2, H, W, 3]`."""
        group = self.processing.temporal_patch_size
        return thumbnail.frames[group * index : group * (index + 1)]


def _limited(config: processing.ProcessingConfig, bucket: int) -> processing.ProcessingConfig:
    """Published settings allow images of 16 megapixels: shrinks what the model sees until every frame fits into the bucket."""
    if config.fit_side is not None:
        return config
    area = bucket * config.patch_size**2
    return dataclasses.replace(
        config,
        max_pixels=min(config.max_pixels, area),
        # A limit on frames x height x width; the shortest clip has one temporal patch.
        video_max_pixels=min(config.video_max_pixels, config.temporal_patch_size * area),
    )
