"""Oracle traces on disk as encoded examples for supervised fine-tuning."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pixelis_jax.data.build import trace_files
from pixelis_jax.data.examples import encode_trajectory
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.data.scenes import Split
from pixelis_jax.data.workers import chain_in_order
from pixelis_jax.encoding import Encoder, Thumbnail
from pixelis_jax.trajectory import Final, Trajectory
from pixelis_jax.trajectory.io import read_trajectories
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore, media_spec, sample_frames

DIRECT = "direct"
"""Style of the traces that answer at once: they get the prompt without tools."""

_STORE_BYTES = 64 * 2**20


def supervised_examples(
    directory: str | Path,
    split: Split,
    encoder: Encoder,
    tools: ToolsConfig,
    *,
    answer_only: Mapping[str, float] | None = None,
    workers: int = 2,
    seed: int = 0,
) -> Iterator[EncodedExample]:
    """Encodes the traces of a built data set, in an order that does not depend on the number of workers.

    Args:
      directory: What `build.build` wrote.
      split: Its split, with traces.
      encoder: Of the policy that will be trained.
      tools: What the prompt names.
      answer_only: By family, the share of its traces that are cut down to their answer, though the prompt names the tools: a
        policy that has seen many of them often guesses where it should look.
      workers: Processes; 0 works in this one.
      seed: Chooses those traces.
    """
    files = trace_files(directory, split)
    work = functools.partial(_encode_file, encoder=encoder, tools=tools, answer_only=answer_only or {}, seed=seed)
    yield from chain_in_order(work, files, workers)


def _encode_file(
    path: Path, *, encoder: Encoder, tools: ToolsConfig, answer_only: Mapping[str, float], seed: int
) -> Sequence[EncodedExample]:
    store = MediaStore(_STORE_BYTES)
    tools.load()
    schemas = tools.schemas()
    examples = []
    for trajectory in read_trajectories(path):
        if not is_direct(trajectory) and _draw(trajectory, seed) < answer_only.get(_family(trajectory), 0.0):
            trajectory = _cut_down(trajectory)
        shown, thumbnails = show(trajectory, path.parent, encoder, store)
        mode = "none" if is_direct(trajectory) else encoder.prompt.tools
        examples.append(encode_trajectory(shown, thumbnails, encoder, tools=mode, schemas=schemas))
    return examples


def _family(trajectory: Trajectory) -> str:
    return "" if trajectory.source is None else trajectory.source.item.partition("/")[0]


def _draw(trajectory: Trajectory, seed: int) -> float:
    """A number in [0, 1) that is always the same for a trace."""
    return float(np.random.default_rng([seed, zlib.crc32(trajectory.id.encode())]).random())


def _cut_down(trajectory: Trajectory) -> Trajectory:
    """The same question answered at once."""
    media = tuple(medium for medium in trajectory.media if medium.uri is not None)
    final = Final(raw=f"<answer>{trajectory.answer}</answer>", thought="")
    return dataclasses.replace(trajectory, media=media, steps=(), final=final)


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
