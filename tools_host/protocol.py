"""The types that cross the line between the policy and the tools.

Everything here is plain data: it pickles, compares by value and needs neither JAX nor an image library. Pixels appear only behind
`MediaView`, inside a worker. See `docs/architecture.md`, "Tools" and "Trajectory".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in 0..1000, relative to the medium that is named beside it."""

MediaKind = Literal["image", "video"]
DerivedKind = Literal["crop", "frame", "overlay"]

ERROR_CODES = (
    "bad_json",
    "unknown_tool",
    "too_many_calls",
    "missing_argument",
    "unknown_argument",
    "bad_type",
    "bad_box",
    "bad_time",
    "no_such_media",
    "no_such_region",
    "wrong_kind",
    "unreadable",
    "timeout",
    "worker_lost",
    "out_of_memory",
)
"""Every code that `ToolError.code` may hold."""

OUTAGE_CODES = frozenset({"timeout", "worker_lost", "out_of_memory"})
"""Errors of the tool host, not of the policy: training masks the trajectories that met one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parent:
    """How a derived medium is rebuilt from another one.

    Attributes:
      media: Id of the medium it was cut from.
      step: 0-based step of the trajectory that made it.
      bbox_2d: Box in `media`'s coordinates, or None for all of it.
      time_s: Time of the frame used, in seconds, if `media` is a video.
      kind: `crop` and `frame` copy original pixels; `overlay` draws the region's mask on them.
      mask: COCO run-length encoding that an overlay draws, else None.
    """

    media: int
    step: int
    bbox_2d: Box | None
    time_s: float | None
    kind: DerivedKind
    mask: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What the model saw of a medium: the patch grid (t, h, w) and, for a video, the mean time of each frame pair."""

    grid: tuple[int, int, int]
    times_s: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """An image or a video of an episode. Ids count from 1 over the episode.

    `sha256` is that of the file, or of the RGB bytes for a derived medium, whose `uri` is None. `width` and `height` are pixels
    after EXIF orientation; `duration_s` and `fps` are None for an image.
    """

    id: int
    kind: MediaKind
    uri: str | None
    sha256: str
    width: int
    height: int
    duration_s: float | None = None
    fps: float | None = None
    shown: Shown | None = None
    parent: Parent | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """A place that a tool found; `mask` is a COCO run-length encoding over the whole medium, with `counts` as text."""

    id: int
    media: int
    bbox_2d: Box
    mask: Mapping[str, Any] | None = None
    time_s: float | None = None
    text: str | None = None
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time in seconds from the start of a video."""

    start_s: float
    end_s: float
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call as the model wrote it: the arguments are checked by `Environment.prepare`, not here."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolError:
    """Why a call gave nothing. `hint` says what the model could do instead."""

    code: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        if self.code not in ERROR_CODES:
            raise ValueError(f"unknown error code {self.code!r}; known: {', '.join(ERROR_CODES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the model reads after a call. `media` holds the ids of the media that the call derived and showed.

    A call that found nothing is `ok` with no regions. Numbers are rounded before anyone sees them: boxes to integers, scores to
    three decimals, times to two.
    """

    ok: bool
    text: str
    regions: tuple[Region, ...] = ()
    spans: tuple[Span, ...] = ()
    media: tuple[int, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: ToolError | None = None


# --- between the environment and a worker -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSpec:
    """All that a worker needs to rebuild a medium's pixels: the root file and the derivations from it, outermost first."""

    path: str
    sha256: str
    kind: MediaKind
    parents: tuple[Parent, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionSpec:
    """A region that an argument named, with the medium it lies in."""

    media: MediaSpec
    bbox_2d: Box
    mask: Mapping[str, Any] | None
    time_s: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolRequest:
    """A checked call. `arguments` holds JSON values, except that media are `MediaSpec` and regions are `RegionSpec`.

    `key` is the hash of tool, back-end, version, arguments and media hashes: it memoises results and seeds the worker's
    generators, so that a call has one answer.
    """

    tool: str
    backend: str
    arguments: Mapping[str, Any]
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A region as a tool returns it: box `(x1, y1, x2, y2)` in pixels of the medium, ends exclusive; mask bool `[H, W]`."""

    box_px: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    time_s: float | None = None
    text: str | None = None
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived:
    """A medium that a tool asks the environment to show: a crop, a frame or an overlay of the medium named in the call.

    `region` is the index into `ToolOutput.regions` whose mask an overlay draws.
    """

    kind: DerivedKind
    box_px: tuple[float, float, float, float] | None = None
    time_s: float | None = None
    region: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolOutput:
    """What a tool function returns. Ids, coordinates and the final text are the environment's business.

    Attributes:
      summary: One line on the whole result, e.g. `ends at the top left`; the environment adds a line per region, span and medium.
      regions: Regions in the medium named in the call.
      spans: Stretches of time.
      derived: Media to show to the model.
      data: Further measures, JSON values only.
    """

    summary: str = ""
    regions: tuple[Found, ...] = ()
    spans: tuple[Span, ...] = ()
    derived: tuple[Derived, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ToolFailure(Exception):
    """Raised by a tool function for bad arguments or media that it cannot read; becomes an error observation."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.error = ToolError(code=code, message=message, hint=hint)

    def __reduce__(self) -> tuple[type[ToolFailure], tuple[str, str, str]]:
        return type(self), (self.error.code, self.error.message, self.error.hint)


@runtime_checkable
class MediaView(Protocol):
    """A medium's original pixels, opened inside a worker. Crops of crops are cut from the root, never from a resized copy."""

    kind: MediaKind
    width: int
    height: int
    duration_s: float | None
    fps: float | None

    def image(self, time_s: float | None = None) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`, after EXIF orientation; of a video the frame nearest to `time_s` (default: the first)."""
        ...

    def frame_times(self) -> np.ndarray:
        """Times of a video's frames in seconds, float64 `[N]`; `[0.0]` for an image."""
        ...

    def frames(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        """`(time_s, RGB uint8 [H, W, 3])` of every frame in `[start_s, end_s]`, in order."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionView:
    """A region opened inside a worker: `box_px` in pixels of `media`, `mask` bool `[H, W]` over it or None."""

    media: MediaView
    box_px: tuple[int, int, int, int]
    mask: np.ndarray | None
    time_s: float | None


# --- protocols ----------------------------------------------------------------------------------------------------------------


class ToolPool(Protocol):
    """Runs checked calls in worker processes. A future's result is a `ToolOutput` or a `ToolError`: a bad call never raises."""

    def submit(self, request: ToolRequest) -> Future[ToolOutput | ToolError]:
        """Queues a call; blocks while the bounded queue is full."""
        ...

    def close(self) -> None:
        """Ends the workers; calls under way become `worker_lost`."""
        ...


class Environment(Protocol):
    """The media and regions of one episode. `prepare`, then `ToolPool.submit`, then `observe`; or `run` for all three."""

    media: list[Media]
    regions: list[Region]

    def prepare(self, call: ToolCall) -> ToolRequest | ToolError:
        """Checks a call against its tool's schema and the episode's media and regions."""
        ...

    def observe(self, call: ToolCall, output: ToolOutput | ToolError) -> Observation:
        """Numbers the new media and regions, rounds, and words the observation."""
        ...

    def pixels(self, media_id: int, time_s: float | None = None) -> np.ndarray:
        """RGB uint8 `[H, W, 3]` of a medium (of a video: the frame nearest to `time_s`)."""
        ...

    def run(self, call: ToolCall, pool: ToolPool) -> Observation:
        """One call from end to end."""
        ...


def rounded(values: Sequence[float], digits: int) -> tuple[float, ...]:
    """Rounds as observations are rounded: half to even, and never minus zero."""
    return tuple(round(float(value), digits) + 0.0 for value in values)
