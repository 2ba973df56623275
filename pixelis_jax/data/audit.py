"""Are two splits really apart? Perceptual hashes of their media, and the strings that their scenes show."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.data.build import load_examples
from pixelis_jax.data.scenes import Split
from pixelis_jax.encoding import NEAR, frames_hash
from tools_host.media import MediaStore
from tools_host.protocol import MediaSpec

_STORE_BYTES = 64 * 2**20
_STRINGS = ("read", "flash_read", "follow_read")


def perceptual_hash(path: Path, store: MediaStore) -> int:
    """64-bit pHash of an image, or of a video's first, middle and last frame side by side.

    Raises:
      MediaError: If the file cannot be read.
    """
    info = store.inspect(str(path))
    view = store.open(MediaSpec(path=str(path), sha256=info.sha256, kind=info.kind))
    if view.kind == "image":
        return frames_hash([view.image()])
    times = view.frame_times()
    return frames_hash([view.image(float(times[at])) for at in (0, len(times) // 2, -1)])


def near_pairs(left: np.ndarray, right: np.ndarray, distance: int = NEAR) -> list[tuple[int, int, int]]:
    """Pairs of hashes at most `distance` bits apart.

    Args:
      left: uint64 `[N]`.
      right: uint64 `[M]`.
      distance: Most bits that differ.

    Returns:
      `(index in left, index in right, bits)`.
    """
    pairs = []
    for row, value in enumerate(left):
        bits = np.bitwise_count(np.bitwise_xor(right, value))
        pairs += [(row, int(column), int(bits[column])) for column in np.flatnonzero(bits <= distance)]
    return pairs


def audit(directory: str | Path, splits: tuple[Split, ...] = ("train", "val", "test", "shift")) -> dict[str, Any]:
    """Compares every pair of built splits.

    Args:
      directory: What `build` wrote to.
      splits: Those to compare; one without examples is left out.

    Returns:
      `{"media": {split: count}, "pairs": [{"left", "right", "near_duplicates": [[id, id, bits]], "same_files",
      "shared_answers"}], "clean"}`. `shared_answers` are random strings that are an answer in both.
    """
    store = MediaStore(_STORE_BYTES)
    read = {split: list(load_examples(directory, split)) for split in splits}
    read = {split: examples for split, examples in read.items() if examples}
    hashes = {
        split: np.array([perceptual_hash(folder / example.media[0], store) for folder, example in examples], np.uint64)
        for split, examples in read.items()
    }
    strings = {
        split: {str(example.truth) for _, example in examples if example.family in _STRINGS} for split, examples in read.items()
    }
    pairs = []
    for left, right in itertools.combinations(read, 2):
        near = near_pairs(hashes[left], hashes[right])
        files = {example.media for _, example in read[left]} & {example.media for _, example in read[right]}
        pairs.append(
            {
                "left": left,
                "right": right,
                "near_duplicates": [[read[left][a][1].id, read[right][b][1].id, bits] for a, b, bits in near],
                "same_files": len(files),
                "shared_answers": sorted(strings[left] & strings[right]),
            }
        )
    clean = not any(pair["near_duplicates"] or pair["same_files"] or pair["shared_answers"] for pair in pairs)
    return {"media": {split: len(examples) for split, examples in read.items()}, "pairs": pairs, "clean": clean}


def summary(report: Mapping[str, Any]) -> str:
    """A line for each pair of splits."""
    lines = [
        f"{pair['left']} - {pair['right']}: {len(pair['near_duplicates'])} near-duplicates, "
        f"{pair['same_files']} equal files, {len(pair['shared_answers'])} shared strings"
        for pair in report["pairs"]
    ]
    return "\n".join([*lines, "clean" if report["clean"] else "not clean"])
