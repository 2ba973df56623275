"""The scenes as a TFDS data set: files and texts in ArrayRecord, which Grain reads by index through `tfds.data_source`.

Building and reading need no tensorflow, because every feature is bytes or text: images stay encoded, records of
structure are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pixelis_jax.data.build import load_examples, load_traces
from pixelis_jax.data.scenes import SPLITS, Split
from pixelis_jax.trajectory import Example, Trajectory
from pixelis_jax.trajectory.io import example_from_json, example_to_json


class PixelisScenes(tfds.core.GeneratorBasedBuilder):
    """What `pixelis_jax.data.build` wrote, one record an example.

    Features: `id`, `family`, `question`, `suffix` (of the media's file name), `example` (JSON of an `Example` whose
      `gold` is its
    trace, if it has one) as text, and `media`, the bytes of the file.

    Args:
      source: The folder that `build` wrote to; needed to build, not to read.
      data_dir: Where the records are.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    name = "pixelis_scenes"

    def __init__(self, *, source: str | Path | None = None, data_dir: str | Path, **kwargs: Any) -> None:
        self._source = None if source is None else Path(source)
        super().__init__(data_dir=str(data_dir), file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions about synthetic images and clips with known answers, and traces that find them.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "family": text,
                    "question": text,
                    "suffix": text,
                    "example": text,
                    "media": tfds.features.Tensor(shape=(), dtype=np.object_),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        if self._source is None:
            raise ValueError("PixelisScenes: give source=FOLDER, written by `pixelis data build`, to build the records")
        present = [split for split in SPLITS if any((self._source / split).glob("examples-*.jsonl"))]
        if not present:
            raise ValueError(f"{self._source} holds no examples; write some with `pixelis data build`")
        return {split: self._generate_examples(split) for split in present}

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        assert self._source is not None
        traces: dict[str, Trajectory] = {trace.example: trace for _, trace in load_traces(self._source, split)}
        for folder, example in load_examples(self._source, split):
            yield example.id, _record(folder, example, traces.get(example.id))


def record_example(record: Mapping[str, Any]) -> tuple[Example, bytes]:
    """The example (with its trace as `gold`) and the bytes of its file, from a record that `tfds.data_source` gives."""
    return example_from_json(json.loads(record["example"])), bytes(record["media"])


def _record(folder: Path, example: Example, trace: Trajectory | None) -> dict[str, Any]:
    (path,) = example.media
    whole = Example(**{**vars(example), "gold": trace})
    return {
        "id": example.id,
        "family": example.family,
        "question": example.question,
        "suffix": Path(path).suffix,
        "example": json.dumps(example_to_json(whole), ensure_ascii=False),
        "media": (folder / path).read_bytes(),
    }
