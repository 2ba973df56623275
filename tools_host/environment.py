"""One episode's media and regions: a call in, an observation out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools_host.arguments import CheckedCall, MediaRef, RegionRef, check
from tools_host.config import ToolsConfig
from tools_host.dialect import to_native
from tools_host.geometry import encode_mask, to_relative
from tools_host.media import MediaStore, media_spec, sample_frames
from tools_host.observation_text import error_text, result_text
from tools_host.protocol import (
    Derived,
    Found,
    Media,
    MediaSpec,
    Observation,
    Parent,
    Region,
    RegionSpec,
    Shown,
    Span,
    ToolCall,
    ToolError,
    ToolFailure,
    ToolOutput,
    ToolPool,
    ToolRequest,
    rounded,
)


class EpisodeEnvironment:
    """Implements the `Environment` protocol.

    Attributes:
      media: The episode's media, ids counting from 1 in order.
      regions: The episode's regions, likewise.
      notes: What a user should know of the files, e.g. that only the first frame of an animation is used.

    Args:
      media_paths: Files that the question is about; their ids are 1, 2, ... in this order.
      config: Tools and wording.
      uris: What the trajectory calls the files, by default the paths.
      store: Decoded pixels, shared between episodes; by default one of its own.

    Raises:
      MediaError: If a file is not a usable image or video.
    """

    def __init__(
        self,
        media_paths: Sequence[str],
        config: ToolsConfig,
        *,
        uris: Sequence[str] | None = None,
        store: MediaStore | None = None,
    ) -> None:
        config.load()
        self._config = config
        self._store = store or MediaStore(config.cache_bytes)
        self._paths = [str(path) for path in media_paths]
        self._step = 0
        self.media: list[Media] = []
        self.regions: list[Region] = []
        self.notes: list[str] = []
        for path, uri in zip(self._paths, uris or self._paths, strict=True):
            self._add_file(path, uri)

    def prepare(self, call: ToolCall) -> ToolRequest | ToolError:
        """Checks a call against its tool's schema and the episode's media and regions."""
        try:
            checked = self._check(call)
        except ToolFailure as failure:
            return failure.error
        name = checked.tool.name
        arguments = {key: self._opened(value) for key, value in checked.arguments.items()}
        backend, version = self._config.backend_name(name), self._config.version(name)
        content = json.dumps([name, backend, version, _content(arguments)], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        return ToolRequest(tool=name, backend=backend, arguments=arguments, key=key)

    def observe(self, call: ToolCall | None, output: ToolOutput | ToolError) -> Observation:
        """Numbers the new media and regions, rounds, and words the observation. Counts one step of the trajectory.

        Args:
          call: The call that was prepared; None for a turn whose call could not be parsed.
          output: Its result, or the error that stopped it.
        """
        step, self._step = self._step, self._step + 1
        if isinstance(output, ToolError):
            return Observation(ok=False, text=error_text(output), error=output)
        if call is None:
            raise ValueError("a result needs the call that it belongs to")
        medium = self._check(call).medium
        if medium is None and (output.regions or output.derived):
            raise ValueError(f"tool {call.name!r} found regions but names no medium that they could lie in")
        regions = [self._add_region(found, medium or 0) for found in output.regions]
        media = [self._add_derived(derived, medium or 0, regions, step) for derived in output.derived]
        spans = tuple(_rounded_span(span) for span in output.spans)
        return Observation(
            ok=True,
            text=result_text(output.summary, regions, spans, media, self._config),
            regions=tuple(regions),
            spans=spans,
            media=tuple(medium.id for medium in media),
            data=_rounded_data(output.data),
        )

    def run(self, call: ToolCall, pool: ToolPool) -> Observation:
        """One call from end to end."""
        request = self.prepare(call)
        output = request if isinstance(request, ToolError) else pool.submit(request).result()
        return self.observe(call, output)

    def pixels(self, media_id: int, time_s: float | None = None) -> np.ndarray:
        """RGB uint8 `[H, W, 3]` of a medium as it is shown (of a video: the frame nearest to `time_s`), read-only.

        Raises:
          MediaError: If its file has become unreadable.
        """
        return self._store.open(self._spec(media_id), drawn=True).image(time_s)

    def frames_shown(self, media_id: int, count: int) -> tuple[tuple[float, ...], np.ndarray]:
        """Frames spread evenly over a video, first and last included.

        Args:
          media_id: A video; of an image the one frame is given.
          count: Most frames to give.

        Returns:
          Their times in seconds, and RGB uint8 `[N, H, W, 3]`.
        """
        return sample_frames(self._store.open(self._spec(media_id), drawn=True), count)

    def set_shown(self, media_id: int, shown: Shown) -> None:
        """Records what the model saw of a medium."""
        self.media[media_id - 1] = dataclasses.replace(self.media[media_id - 1], shown=shown)

    def _check(self, call: ToolCall) -> CheckedCall:
        if self._config.dialect == "qwen3_vl":
            call = to_native(call, self.media)
        return check(self._config.tool(call.name), call.arguments, self.media, self.regions)

    def _opened(self, value: Any) -> Any:
        if isinstance(value, MediaRef):
            return self._spec(value.id)
        if isinstance(value, RegionRef):
            region = self.regions[value.id - 1]
            return RegionSpec(media=self._spec(region.media), bbox_2d=region.bbox_2d, mask=region.mask, time_s=region.time_s)
        return value

    def _spec(self, media_id: int) -> MediaSpec:
        return media_spec(self.media, media_id, lambda root: self._paths[root.id - 1])

    def _add_file(self, path: str, uri: str) -> None:
        info = self._store.inspect(path)
        if info.note:
            self.notes.append(info.note)
        medium = Media(
            id=len(self.media) + 1,
            kind=info.kind,
            uri=uri,
            sha256=info.sha256,
            width=info.width,
            height=info.height,
            duration_s=None if info.duration_s is None else round(info.duration_s, 2),
            fps=None if info.fps is None else round(info.fps, 3),
        )
        self.media.append(medium)

    def _add_region(self, found: Found, media_id: int) -> Region:
        medium = self.media[media_id - 1]
        region = Region(
            id=len(self.regions) + 1,
            media=media_id,
            bbox_2d=to_relative(found.box_px, medium.width, medium.height),
            mask=None if found.mask is None else encode_mask(found.mask),
            time_s=None if found.time_s is None else rounded([found.time_s], 2)[0],
            text=found.text,
            score=None if found.score is None else rounded([found.score], 3)[0],
        )
        self.regions.append(region)
        return region

    def _add_derived(self, derived: Derived, media_id: int, regions: Sequence[Region], step: int) -> Media:
        above = self.media[media_id - 1]
        box = None if derived.box_px is None else to_relative(derived.box_px, above.width, above.height)
        parent = Parent(
            media=media_id,
            step=step,
            bbox_2d=box,
            time_s=None if derived.time_s is None else rounded([derived.time_s], 2)[0],
            kind=derived.kind,
            mask=None if derived.region is None else regions[derived.region].mask,
        )
        spec = self._spec(media_id)
        drawn = dataclasses.replace(spec, parents=(*spec.parents, parent))
        pixels = self._store.open(drawn, drawn=True).image()
        medium = Media(
            id=len(self.media) + 1,
            kind="image",
            uri=None,
            sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
            width=pixels.shape[1],
            height=pixels.shape[0],
            parent=parent,
        )
        self.media.append(medium)
        return medium


def _rounded_span(span: Span) -> Span:
    start_s, end_s = rounded([span.start_s, span.end_s], 2)
    score = None if span.score is None else rounded([span.score], 3)[0]
    return Span(start_s=start_s, end_s=end_s, score=score)


def _rounded_data(value: Any, name: str = "") -> Any:
    """Times (names that end in `_s`) to two decimals, every other fraction to three."""
    if isinstance(value, Mapping):
        return {key: _rounded_data(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded_data(item, name) for item in value]
    if isinstance(value, float):
        return rounded([value], 2 if name.endswith("_s") else 3)[0]
    return value


def _content(value: Any) -> Any:
    """JSON form of checked arguments. Media go by content alone, so that equal calls of two episodes share a key."""
    if isinstance(value, MediaSpec):
        return [value.sha256, [[p.kind, p.bbox_2d, p.time_s, p.mask] for p in value.parents]]
    if isinstance(value, RegionSpec):
        return [_content(value.media), value.bbox_2d, value.mask, value.time_s]
    if isinstance(value, Mapping):
        return {key: _content(item) for key, item in value.items()}
    return value
