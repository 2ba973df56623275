"""Oracle traces on disk as encoded examples for supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pixelis_jax.data.build import load_traces
from pixelis_jax.data.examples import encode_trajectory
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.data.scenes import Split
from pixelis_jax.encoding import Encoder, Thumbnail
from pixelis_jax.trajectory import Trajectory
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore, media_spec, sample_frames

DIRECT = "direct"
"""Style of the traces that answer at once: they get the prompt without tools."""

_STORE_BYTES = 64 * 2**20


def supervised_examples(
    directory: str | Path, split: Split, encoder: Encoder, tools: ToolsConfig, *, keep: float = 1.0, seed: int = 0
) -> Iterator[EncodedExample]:
    """Encodes every trace of a built data set.

    Args:
      directory: What `build.build` wrote.
      split: Its split, with traces.
      encoder: Of the policy that will be trained.
      tools: What the prompt names.
      keep: Share of the traces to use, chosen at random: fewer make a weaker policy.
      seed: Of that choice.
    """
    store = MediaStore(_STORE_BYTES)
    rng = np.random.default_rng(seed)
    tools.load()
    schemas = tools.schemas()
    for folder, trajectory in load_traces(directory, split):
        if rng.random() >= keep:
            continue
        shown, thumbnails = show(trajectory, folder, encoder, store)
        mode = "none" if is_direct(trajectory) else encoder.prompt.tools
        yield encode_trajectory(shown, thumbnails, encoder, tools=mode, schemas=schemas)


def is_direct(trajectory: Trajectory) -> bool:
    """Whether a trace answers at once, without tools."""
    return trajectory.id.endswith(f"-{DIRECT}")


def show(trajectory: Trajectory, folder: Path, encoder: Encoder, store: MediaStore) -> tuple[Trajectory, dict[int, Thumbnail]]:
    """Makes the thumbnails of a trajectory's media.

    Args:
      trajectory: With the media of its steps; `shown` may be missing.
      folder: What the media's `uri`s start from.
      encoder: Makes the thumbnails.
      store: Decoded pixels.

    Returns:
      The trajectory with `shown` filled in, and the thumbnails by media id.

    Raises:
      tools_host.media.MediaError: A file is missing, or is not the one that the trace was made from.
    """
    thumbnails: dict[int, Thumbnail] = {}
    for medium in trajectory.media:
        spec = media_spec(trajectory.media, medium.id, lambda root: str(folder / (root.uri or "")))
        view = store.open(spec, drawn=True)
        if medium.kind == "image":
            thumbnails[medium.id] = encoder.image(view.image())
        else:
            times, frames = sample_frames(view, encoder.prompt.video_frames)
            thumbnails[medium.id] = encoder.video(frames, times)
    media = tuple(dataclasses.replace(medium, shown=thumbnails[medium.id].shown) for medium in trajectory.media)
    return dataclasses.replace(trajectory, media=media), thumbnails
