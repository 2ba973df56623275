"""Pixels to patches on the host: NumPy and Pillow, no JAX.

Images follow the published Qwen2-VL/Qwen3-VL image processor bit for bit (resize in uint8, then scale and normalise).
Video frames are resized by Pillow as well; sizes follow the published video processor.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from etils import epath
from PIL import Image

# Fields of the published files that do not change the result for RGB uint8 input.
_INERT = {
    "auto_map", "crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop",
    "do_convert_rgb", "do_pad", "do_sample_frames", "fps", "image_processor_type", "input_data_format", "max_frames",
    "min_frames", "num_frames", "pad_size", "processor_class", "return_metadata", "return_tensors", "video_metadata",
    "video_processor_type",
}  # fmt: skip
_FIXED: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255,
}  # fmt: skip
_LONGEST_ASPECT = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessingConfig:
    """How pixels become patches.

    Attributes:
      patch_size: side of a patch in pixels.
      temporal_patch_size: frames in a patch.
      merge_size: side of a merge block in patches.
      min_pixels, max_pixels: area of a resized image.
      video_min_pixels, video_max_pixels: volume of a resized video, frames x height x width.
      mean, std: of the three channels, after scaling to [0, 1].
      fit_side: if set, images are fitted into a square of this side instead, and the four limits above are not used.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    video_min_pixels: int = 4096
    video_max_pixels: int = 25_165_824
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit_side: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("mean", "std"):
                least = 0.0 if field.name == "std" else -math.inf
                if len(value) != 3 or not all(isinstance(item, int | float) and least < item < math.inf for item in value):
                    raise ValueError(f"{field.name} is {value!r}, expected three numbers{' above 0' if least == 0 else ''}")
            elif not (field.name == "fit_side" and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} is {value!r}, expected a positive integer")

    @classmethod
    def tiny(cls) -> Self:
        """Thumbnails of at most 64 x 64 pixels in patches of 8."""
        return cls(patch_size=8, fit_side=64)

    @property
    def factor(self) -> int:
        """Pixels along the side of one visual token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, path: epath.PathLike) -> Self:
        """Reads a published ``preprocessor_config.json`` and the ``video_preprocessor_config.json`` beside it, if any.

        Args:
          path: the file or its directory.

        Returns:
          The configuration.

        Raises:
          ValueError: unreadable, or with a setting that we do not support.
        """
        path = epath.Path(path)
        path = path / "preprocessor_config.json" if path.is_dir() else path
        raw = _read(path)
        names = {"image_mean": "mean", "image_std": "std", "fit_side": "fit_side"} | {
            name: name for name in ("patch_size", "temporal_patch_size", "merge_size")
        }
        fields = {ours: raw[theirs] for theirs, ours in names.items() if raw.get(theirs) is not None}
        fields |= _limits(raw, "")
        video = path.parent / "video_preprocessor_config.json"
        if video.exists():
            fields |= _limits(_read(video), "video_")
        try:
            return cls(**fields | {name: tuple(fields[name]) for name in ("mean", "std") if name in fields})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Returns the layout of ``preprocessor_config.json``."""
        fit = {} if self.fit_side is None else {"fit_side": self.fit_side}
        return fit | {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def smart_resize(h: int, w: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Size of a resized image: multiples of `factor`, an area within limits, the aspect kept as well as possible.

    Args:
      h: height in pixels.
      w: width in pixels.
      factor: pixels along the side of one visual token.
      min_pixels: smallest area.
      max_pixels: largest area.

    Returns:
      Height and width.

    Raises:
      ValueError: the longer side is more than 200 times the shorter.
    """
    _check_aspect(h, w)
    return _within_limits(h, w, 1, 1, factor, min_pixels, max_pixels)


def smart_resize_video(
    frames: int, h: int, w: int, factor: int, temporal_factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """As `smart_resize`, with limits on frames x height x width.

    Args:
      frames: number of frames, at least `temporal_factor`.
      h: height in pixels.
      w: width in pixels.
      factor: pixels along the side of one visual token.
      temporal_factor: frames in a patch.
      min_pixels: smallest volume.
      max_pixels: largest volume.

    Returns:
      Height and width.

    Raises:
      ValueError: the longer side is more than 200 times the shorter.
    """
    if min(h, w) < factor:
        scale = factor / min(h, w)
        h, w = int(h * scale), int(w * scale)
    _check_aspect(h, w)
    rounded_frames = round(frames / temporal_factor) * temporal_factor
    return _within_limits(h, w, frames, rounded_frames, factor, min_pixels, max_pixels)


def fit_resize(h: int, w: int, factor: int, side: int) -> tuple[int, int]:
    """Size of an image fitted into a square: the longer side is `side`, the other the nearest multiple of `factor`.

    Args:
      h: height in pixels.
      w: width in pixels.
      factor: pixels along the side of one visual token.
      side: side of the square, a multiple of `factor`.

    Returns:
      Height and width, each between `factor` and `side`.
    """
    scale = side / max(h, w)
    height, width = (min(side, max(factor, round(length * scale / factor) * factor)) for length in (h, w))
    return height, width


def process_image(rgb: np.ndarray, config: ProcessingConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Resizes, normalises and cuts an image into patches: `resize_image`, then `to_patches`.

    Args:
      rgb: uint8 ``[H, W, 3]``.
      config: how.

    Returns:
      Patches, float32 ``[N, P]`` in the order of `VisionInputs`, and the grid (1, h, w) in patches.

    Raises:
      ValueError: no RGB image, or an aspect beyond 200.
    """
    return to_patches(resize_image(rgb, config), config)


def resize_image(rgb: np.ndarray, config: ProcessingConfig) -> np.ndarray:
    """Resizes an image to what the model sees.

    Args:
      rgb: uint8 ``[H, W, 3]``.
      config: how.

    Returns:
      The same frame ``temporal_patch_size`` times, uint8 ``[2, h, w, 3]``.

    Raises:
      ValueError: no RGB image, or an aspect beyond 200.
    """
    _check_rgb(rgb, 3, "an image [H, W, 3]")
    h, w = rgb.shape[:2]
    if config.fit_side is None:
        size = smart_resize(h, w, config.factor, config.min_pixels, config.max_pixels)
    else:
        size = fit_resize(h, w, config.factor, config.fit_side)
    return np.stack([_resize(rgb, size)] * config.temporal_patch_size)


def to_patches(frames: np.ndarray, config: ProcessingConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Normalises resized frames and cuts them into patches.

    Args:
      frames: uint8 ``[T, H, W, 3]``, T a multiple of the temporal patch, H and W of a merge block.
      config: how.

    Returns:
      Patches, float32 ``[N, P]``, and the grid (t, h, w) in patches.
    """
    return _patchify(np.stack([_normalise(frame, config) for frame in frames]), config)


def process_video(
    frames: np.ndarray, times_s: Sequence[float], config: ProcessingConfig
) -> tuple[np.ndarray, tuple[int, int, int], list[float]]:
    """Resizes, normalises and cuts a clip into patches of two frames each: `resize_video`, then `to_patches`.

    Args:
      frames: uint8 ``[T, H, W, 3]``.
      times_s: seconds from the start of the video, one a frame.
      config: how.

    Returns:
      Patches, float32 ``[N, P]``, frame pair by frame pair; the grid (t, h, w) in patches; the mean time of each pair.

    Raises:
      ValueError: no RGB frames, another number of times than of frames, or an aspect beyond 200.
    """
    resized, times = resize_video(frames, times_s, config)
    patches, grid = to_patches(resized, config)
    return patches, grid, times


def resize_video(frames: np.ndarray, times_s: Sequence[float], config: ProcessingConfig) -> tuple[np.ndarray, list[float]]:
    """Resizes a clip to what the model sees; an odd clip repeats its last frame.

    Args:
      frames: uint8 ``[T, H, W, 3]``.
      times_s: seconds from the start of the video, one a frame.
      config: how.

    Returns:
      Frames, uint8 ``[T', h, w, 3]``, and the mean time of each pair.

    Raises:
      ValueError: no RGB frames, another number of times than of frames, or an aspect beyond 200.
    """
    _check_rgb(frames, 4, "a video [T, H, W, 3]")
    if len(times_s) != len(frames):
        raise ValueError(f"{len(frames)} frames but {len(times_s)} times")
    group = config.temporal_patch_size
    missing = -len(frames) % group
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    times = np.concatenate([times_s, np.repeat(np.asarray(times_s)[-1:], missing)]).reshape(-1, group)
    h, w = frames.shape[1:3]
    if config.fit_side is None:
        count = max(len(frames) - missing, group)
        limits = config.video_min_pixels, config.video_max_pixels
        size = smart_resize_video(count, h, w, config.factor, group, *limits)
    else:
        size = fit_resize(h, w, config.factor, config.fit_side)
    # First and last of a group, as the published processor does; for groups of two that is their mean.
    return np.stack([_resize(frame, size) for frame in frames]), ((times[:, 0] + times[:, -1]) / 2).tolist()


def pack_frames(
    media: Sequence[tuple[np.ndarray, tuple[int, int, int]]], *, frames: int, bucket: int, patch_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lays the patches of one row's media into the fixed shape of `VisionInputs`.

    Args:
      media: (patches ``[t * h * w, P]``, grid (t, h, w)) of the row's media, in order.
      frames: F, frames a row.
      bucket: S, patches a frame.
      patch_dim: P.

    Returns:
      Patches, float32 ``[F, S, P]``, and grid, int32 ``[F, 2]``; zero where absent.

    Raises:
      ValueError: too many frames, or a frame that does not fit into the bucket.
    """
    packed = np.zeros((frames, bucket, patch_dim), np.float32)
    grids = np.zeros((frames, 2), np.int32)
    frame = 0
    for patches, (t, h, w) in media:
        if frame + t > frames or h * w > bucket:
            left = f"{frames - frame} frames of {bucket} are left"
            raise ValueError(f"{t} frames of {h} x {w} patches do not fit: {left}")
        packed[frame : frame + t, : h * w] = patches.reshape(t, h * w, -1)
        grids[frame : frame + t] = h, w
        frame += t
    return packed, grids


def _within_limits(
    h: int, w: int, frames: int, rounded_frames: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    height, width = round(h / factor) * factor, round(w / factor) * factor
    if rounded_frames * height * width > max_pixels:
        shrink = math.sqrt(frames * h * w / max_pixels)
        height = max(factor, math.floor(h / shrink / factor) * factor)
        width = max(factor, math.floor(w / shrink / factor) * factor)
    elif rounded_frames * height * width < min_pixels:
        grow = math.sqrt(min_pixels / (frames * h * w))
        height, width = math.ceil(h * grow / factor) * factor, math.ceil(w * grow / factor) * factor
    return height, width


def _check_aspect(h: int, w: int) -> None:
    if max(h, w) > _LONGEST_ASPECT * min(h, w):
        raise ValueError(f"the sides {w} x {h} differ by more than a factor of {_LONGEST_ASPECT}")


def _check_rgb(array: np.ndarray, rank: int, what: str) -> None:
    if array.dtype != np.uint8 or array.ndim != rank or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"expected {what} of uint8 RGB, got {array.dtype} {list(array.shape)}")


def _resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _normalise(rgb: np.ndarray, config: ProcessingConfig) -> np.ndarray:
    # Scaled in float64 and rounded once, then float32: the published order of rounding.
    scaled = (rgb.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)


def _patchify(frames: np.ndarray, config: ProcessingConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cuts float32 frames ``[T, H, W, 3]`` into patches ``[N, P]`` in merge-block order."""
    patch, merge, group = config.patch_size, config.merge_size, config.temporal_patch_size
    t, h, w = frames.shape[0] // group, frames.shape[1] // patch, frames.shape[2] // patch
    blocks = frames.reshape(t, group, h // merge, merge, patch, w // merge, merge, patch, 3)
    #                       0  1      2           3      4      5           6      7      8
    patches = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return patches.reshape(t * h * w, -1), (t, h, w)


def _read(path: epath.Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read processing settings from {path}: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("size") or {}, dict):
        raise ValueError(f"{path}: expected an object, with an object as size")
    known = {"patch_size", "temporal_patch_size", "merge_size", "size", "min_pixels", "max_pixels", "fit_side"}
    unknown = sorted(raw.keys() - known - _INERT - _FIXED.keys() - {"image_mean", "image_std"})
    if unknown:
        raise ValueError(f"{path} has unsupported fields: {', '.join(unknown)}")
    for name, expected in _FIXED.items():
        if raw.get(name) is not None and raw[name] != expected:
            raise ValueError(f"{path}: {name} is {raw[name]!r}, only {expected!r} is supported")
    return raw


def _limits(raw: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Area limits in either published spelling: ``size`` with edges that are areas, or min_pixels and max_pixels."""
    size = raw.get("size") or {}
    limits = {
        f"{prefix}min_pixels": raw.get("min_pixels") or size.get("shortest_edge"),
        f"{prefix}max_pixels": raw.get("max_pixels") or size.get("longest_edge"),
    }
    return {name: value for name, value in limits.items() if value is not None}
