"""Media behind `MediaView`: files opened safely, derivations cut from original pixels, and a bounded cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tools_host.cache import ByteCache
from tools_host.geometry import decode_mask, to_pixels
from tools_host.images import MediaError, frame_count, is_image, read_image
from tools_host.protocol import Media, MediaKind, MediaSpec, MediaView, Parent, RegionSpec, RegionView
from tools_host.videos import VideoInfo, read_frames, read_info

__all__ = [
    "ImageView",
    "MediaError",
    "MediaInfo",
    "MediaStore",
    "VideoView",
    "draw_mask",
    "file_sha256",
    "media_spec",
    "sample_frames",
]

TINT = np.array([255, 0, 160], dtype=np.float32)
"""Colour of drawn masks: rare in photographs, readable on dark and light."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a file holds, without its pixels; `note` says what was left out of it, e.g. later frames of an animation."""

    kind: MediaKind
    sha256: str
    width: int
    height: int
    duration_s: float | None = None
    fps: float | None = None
    note: str = ""


class ImageView:
    """A `MediaView` of one RGB uint8 array `[H, W, 3]`."""

    kind: MediaKind = "image"
    duration_s: float | None = None
    fps: float | None = None

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def image(self, time_s: float | None = None) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`; an image has the same pixels at every time."""
        return self._pixels

    def frame_times(self) -> np.ndarray:
        """`[0.0]`."""
        return np.zeros(1)

    def frames(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        """The image, if `[start_s, end_s]` holds time 0."""
        if start_s <= 0 <= end_s:
            yield 0.0, self._pixels


class VideoView:
    """A `MediaView` of a video file. A short video is decoded once and kept in `cache`, a long one frame by frame.

    Args:
      path: Video file.
      sha256: Of the file, the key in `cache`.
      info: What `read_info` gave for it.
      cache: Holds decoded frames; a video whose frames take more than half of it is not kept whole.
    """

    kind: MediaKind = "video"

    def __init__(self, path: str, sha256: str, info: VideoInfo, cache: ByteCache[Any]) -> None:
        self._path, self._sha256, self._info, self._cache = path, sha256, info, cache
        self.width, self.height = info.width, info.height
        self.duration_s: float | None = info.duration_s
        self.fps: float | None = info.fps
        self._short = len(info.times) * info.width * info.height * 3 <= cache.max_bytes // 2

    def frame_times(self) -> np.ndarray:
        """Times of the frames in seconds, float64 `[N]`."""
        return np.array([time_s for time_s, _ in self._all()]) if self._short else self._info.times

    def image(self, time_s: float | None = None) -> np.ndarray:
        """RGB uint8 `[H, W, 3]` of the frame nearest to `time_s` (default: the first)."""
        times = self.frame_times()
        index = int(np.argmin(np.abs(times - (time_s or 0.0))))
        return self._all()[index][1] if self._short else self._single(float(times[index]))

    def frames(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        """`(time_s, RGB uint8 [H, W, 3])` of every frame in `[start_s, end_s]`, in order."""
        if not self._short:
            yield from self._decoded(start_s, end_s)
            return
        for time_s, pixels in self._all():
            if start_s - 1e-6 <= time_s <= end_s + 1e-6:
                yield time_s, pixels

    def _decoded(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        for time_s, pixels in read_frames(self._path, start_s, end_s):
            height, width = pixels.shape[:2]
            if (width, height) != (self.width, self.height):
                sizes = f"{self.width} x {self.height} at first, {width} x {height} at {time_s:.2f} s"
                raise MediaError(f"{self._path}: the frames are not of one size: {sizes}")
            yield time_s, pixels

    def _all(self) -> list[tuple[float, np.ndarray]]:
        key = ("frames", self._sha256)
        frames = self._cache.get(key)
        if frames is None:
            frames = list(self._decoded(0.0, float("inf")))
            if not frames:
                raise MediaError(f"{self._path}: the video has no frames")
            for _, pixels in frames:
                pixels.flags.writeable = False
            self._cache.put(key, frames, sum(pixels.nbytes for _, pixels in frames))
        return frames

    def _single(self, time_s: float) -> np.ndarray:
        key = ("frame", self._sha256, time_s)
        pixels = self._cache.get(key)
        if pixels is None:
            # A little slack finds the frame even if the index and the decoder round its time differently.
            slack = 0.5 / (self.fps or 25.0)
            found = list(self._decoded(time_s - slack, time_s + slack))
            if not found:
                raise MediaError(f"{self._path}: no frame could be decoded at {time_s:.2f} s")
            pixels = min(found, key=lambda timed: abs(timed[0] - time_s))[1]
            pixels.flags.writeable = False
            self._cache.put(key, pixels, pixels.nbytes)
        return pixels


class MediaStore:
    """Opens media and keeps decoded pixels by content, at most `max_bytes` of them.

    Args:
      max_bytes: Ceiling of the cache.
    """

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self._cache: ByteCache[Any] = ByteCache(max_bytes)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded pixels held now."""
        return self._cache.bytes

    def inspect(self, path: str) -> MediaInfo:
        """Says what a file holds.

        Raises:
          MediaError: If it is missing, empty, a directory, damaged, too large, or neither an image nor a video.
        """
        sha256 = file_sha256(path)
        if is_image(path):
            height, width = self._image(path, sha256).shape[:2]
            frames = frame_count(path)
            note = f"{path}: only the first of {frames} frames is used" if frames > 1 else ""
            return MediaInfo(kind="image", sha256=sha256, width=width, height=height, note=note)
        info = self._video_info(path, sha256)
        return MediaInfo(
            kind="video",
            sha256=sha256,
            width=info.width,
            height=info.height,
            duration_s=info.duration_s,
            fps=info.fps,
        )

    def open(self, spec: MediaSpec, *, drawn: bool = False) -> MediaView:
        """Rebuilds a medium from its root file.

        Args:
          spec: Root and derivations.
          drawn: Whether an overlay's mask is drawn. Tools see the pixels below it, as does what is cut from an overlay.

        Raises:
          MediaError: If the file is unreadable, or is no longer the one that `spec` was made from.
        """
        view = self._root(spec)
        for parent in spec.parents:
            view = ImageView(_derive(view, parent, drawn=drawn and parent is spec.parents[-1]))
        return view

    def open_region(self, spec: RegionSpec) -> RegionView:
        """Opens the medium of a region and decodes its mask; raises as `open`."""
        view = self.open(spec.media)
        return RegionView(
            media=view,
            box_px=to_pixels(spec.bbox_2d, view.width, view.height),
            mask=None if spec.mask is None else decode_mask(spec.mask, (view.height, view.width)),
            time_s=spec.time_s,
        )

    def _root(self, spec: MediaSpec) -> MediaView:
        if file_sha256(spec.path) != spec.sha256:
            raise MediaError(f"{spec.path}: the file changed after the episode began")
        if spec.kind == "image":
            return ImageView(self._image(spec.path, spec.sha256))
        return VideoView(spec.path, spec.sha256, self._video_info(spec.path, spec.sha256), self._cache)

    def _image(self, path: str, sha256: str) -> np.ndarray:
        pixels = self._cache.get(("image", sha256))
        if pixels is None:
            pixels = read_image(path)
            self._cache.put(("image", sha256), pixels, pixels.nbytes)
        return pixels

    def _video_info(self, path: str, sha256: str) -> VideoInfo:
        info = self._cache.get(("info", sha256))
        if info is None:
            info = read_info(path)
            self._cache.put(("info", sha256), info, info.times.nbytes)
        return info


def file_sha256(path: str) -> str:
    """Hash of a file's bytes, remembered until its time stamp or size changes.

    Raises:
      MediaError: If it is missing, empty, a directory or not readable, or the path is none.
    """
    if os.path.isdir(path):
        raise MediaError(f"{path}: a directory, not an image or a video")
    try:
        status = os.stat(path)
        if not os.path.isfile(path):
            raise MediaError(f"{path}: not an ordinary file")
        if status.st_size == 0:
            raise MediaError(f"{path}: the file is empty")
        return _hash(os.path.abspath(path), status.st_mtime_ns, status.st_size)
    except MediaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character or half of a surrogate pair, no path at all
        raise MediaError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


@functools.lru_cache(maxsize=4096)
def _hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _derive(view: MediaView, parent: Parent, *, drawn: bool) -> np.ndarray:
    pixels = view.image(parent.time_s)
    if drawn and parent.kind == "overlay" and parent.mask is not None:
        try:
            pixels = draw_mask(pixels, parent.mask)
        except ValueError as error:
            raise MediaError(f"the mask of an overlay: {error}") from error
    if parent.bbox_2d is None:
        return pixels
    x1, y1, x2, y2 = to_pixels(parent.bbox_2d, view.width, view.height)
    return np.ascontiguousarray(pixels[y1:y2, x1:x2])


def draw_mask(pixels: np.ndarray, mask_rle: Mapping[str, Any]) -> np.ndarray:
    """Tints a mask and draws its contour.

    Args:
      pixels: RGB uint8 `[H, W, 3]`.
      mask_rle: COCO run-length encoding over `[H, W]`.

    Returns:
      A new RGB uint8 `[H, W, 3]`.

    Raises:
      ValueError: If it encodes no mask of this size.
    """
    mask = decode_mask(mask_rle, pixels.shape[:2])
    inner = mask.copy()
    # About 1/200 of the longer side stays visible after the observation pipeline has made the medium smaller.
    for _ in range(max(1, round(max(mask.shape) / 200))):
        padded = np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    out = pixels.copy()
    out[inner] = np.rint(0.65 * pixels[inner] + 0.35 * TINT).astype(np.uint8)
    out[mask & ~inner] = TINT.astype(np.uint8)
    return out


def media_spec(media: Sequence[Media], media_id: int, path: Callable[[Media], str]) -> MediaSpec:
    """How to rebuild a medium of an episode.

    Args:
      media: The episode's media, ids counting from 1.
      media_id: The medium wanted.
      path: Gives the file of a root medium.
    """
    parents: list[Parent] = []
    medium = media[media_id - 1]
    while medium.parent is not None:
        parents.insert(0, medium.parent)
        medium = media[medium.parent.media - 1]
    return MediaSpec(path=path(medium), sha256=medium.sha256, kind=medium.kind, parents=tuple(parents))


def sample_frames(view: MediaView, count: int) -> tuple[tuple[float, ...], np.ndarray]:
    """Frames spread evenly over a video, first and last included; of an image the one frame.

    Args:
      view: The medium.
      count: Most frames to give.

    Returns:
      Their times in seconds, and RGB uint8 `[N, H, W, 3]`.
    """
    times = view.frame_times()
    picked = np.unique(np.rint(np.linspace(0, len(times) - 1, min(count, len(times)))).astype(int))
    chosen = tuple(float(time_s) for time_s in times[picked])
    return chosen, np.stack([view.image(time_s) for time_s in chosen])
