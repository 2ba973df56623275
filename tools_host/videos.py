"""Video files as timed RGB frames, with PyAV."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import av
import numpy as np

from tools_host.images import MediaError, refuse_huge

# Without a list ffmpeg reads almost anything as a video: text as a terminal session, a playlist as what it names.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,m4v,mjpeg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a container tells: pixels after rotation, and the times of all frames in seconds, float64 `[N]`."""

    width: int
    height: int
    fps: float
    duration_s: float
    times: np.ndarray


def read_info(path: str) -> VideoInfo:
    """Reads a container's index and decodes its first frame.

    Raises:
      MediaError: If the file is not a video, is damaged, has no frames, or frames of more than `MAX_PIXELS`.
    """
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise MediaError(f"{path}: the video has no frames")
        height, width = _pixels(first).shape[:2]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
    times = _packet_times(path, rate)
    return VideoInfo(width=width, height=height, fps=rate, duration_s=float(times[-1]) + 1 / rate, times=times)


def read_frames(path: str, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
    """`(time_s, RGB uint8 [H, W, 3])` of the frames in `[start_s, end_s]`, decoded from the key frame before `start_s`.

    Raises:
      MediaError: If the file is damaged.
    """
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        origin = stream.start_time or 0
        if start_s > 0 and stream.time_base:
            container.seek(origin + int(start_s / stream.time_base), stream=stream, backward=True)
        for index, frame in enumerate(container.decode(stream)):
            base = float(stream.time_base or 0)
            time_s = index / rate if frame.pts is None else (frame.pts - origin) * base
            if time_s > end_s + 1e-6:
                return
            if time_s >= start_s - 1e-6:
                yield time_s, _pixels(frame)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        with av.open(path, options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: the file holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(f"{path}: the codec of the video is not known")
            refuse_huge(path, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path}: not a readable image or video ({reason})") from error


def _packet_times(path: str, rate: float) -> np.ndarray:
    with _opened(path) as (container, stream):
        origin, base = stream.start_time or 0, float(stream.time_base or 0)
        packets = [packet for packet in container.demux(stream) if packet.size]
        shown = [packet for packet in packets if not packet.is_discard]
        stamps = sorted((packet.pts - origin) * base for packet in shown if packet.pts is not None)
        # An AVI counts frames that were dropped in recording, too: it is truncated only if it also ends too early.
        ends_early = not stamps or stamps[-1] + 2 / rate < stream.frames / rate
        if len(packets) < stream.frames and ends_early:
            raise MediaError(f"{path}: truncated video, {len(packets)} of {stream.frames} frames are there")
    if not stamps:
        # Raw streams carry no times at all.
        return np.arange(max(len(packets), 1)) / rate
    return np.asarray(stamps, dtype=np.float64)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    # `rotation` counts degrees counter-clockwise that are to be applied for display.
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90) % 4))
