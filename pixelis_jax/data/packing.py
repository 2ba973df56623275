"""Several examples in one row of a batch, each a segment that sees nothing of the others: less padding, the same loss.

Everything that says where a token stands (positions, visual tokens, calls) is relative to its example, so joining is
concatenation plus offsets. The policy takes the segments as its attention mask.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from pixelis_jax.data.pipeline import Batch, BatchPlan, BatchSource, Bucket, make_batch
from pixelis_jax.data.records import MERGE_UNIT, SIZES, EncodedExample, RecordError, RecordSource

# Examples that are packed together: enough to fill rows well, few enough that looking for room stays cheap.
WINDOW = 1024


def plan_rows(sizes: Int[np.ndarray, "N K"], room: Sequence[int]) -> list[list[int]]:
    """Decides which examples share a row: first-fit decreasing (Johnson 1973, "Near-optimal bin packing algorithms").

    Args:
      sizes: of each example: tokens, frames, and whatever else a row has only so much room for.
      room: of a row, in the same order.

    Returns:
      The numbers of the examples in each row, each example once; a function of the arguments alone.

    Raises:
      RecordError: an example is larger than a row.
    """
    too_large = np.flatnonzero((sizes > room).any(axis=1))
    if too_large.size:
        names = ("tokens", "frames", "weighted tokens")
        asked, held = (
            " and ".join(f"{size} {name}" for size, name in zip(values, names, strict=False))
            for values in (sizes[too_large[0]], room)
        )
        raise RecordError(f"an example of {asked} does not fit into a row of {held}")
    rows: list[list[int]] = []
    left: list[np.ndarray] = []
    for number in np.argsort(-sizes[:, 0], kind="stable").tolist():
        fitting = (row for row, free in enumerate(left) if (sizes[number] <= free).all())
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            left.append(np.asarray(room))
        rows[row].append(number)
        left[row] = left[row] - sizes[number]
    return rows


def plan_run(sizes: Int[np.ndarray, "N 5"], *, tokens: int, frames: int, seed: int) -> list[list[int]]:
    """Decides which examples of a run share a row: `plan_rows` over one window after another of the shuffled examples.

    Args:
      sizes: of each example (`RecordSource.sizes`).
      tokens: room of a row.
      frames: frames that a row can hold.
      seed: of the shuffle.

    Returns:
      The numbers of the examples in each row, each example once; a function of the arguments alone.

    Raises:
      RecordError: an example is larger than a row.
    """
    rows: list[list[int]] = []
    order = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))
    for window in np.split(order, range(WINDOW, len(order), WINDOW)):
        asked = np.stack([sizes[window, SIZES.index(name)] for name in ("tokens", "frames")], axis=1)
        rows += [window[row].tolist() for row in plan_rows(asked, (tokens, frames))]
    return rows


def row_sizes(sizes: Int[np.ndarray, "N 5"], rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "R 5"]:
    """Sizes of rows as if each were one example: sums, but for the patches of the largest frame."""
    totals = np.array([sizes[row].sum(axis=0) for row in rows], sizes.dtype)
    patches = SIZES.index("patches")
    totals[:, patches] = [sizes[row, patches].max() for row in rows]
    return totals


class PackedPlan(BatchPlan):
    """A `BatchPlan` whose rows hold several examples, all of one shape: the largest bucket.

    Which examples share a row is decided once a run; from there a row is what an example is to a `BatchPlan`. Every epoch makes
    other batches of the same rows.

    Attributes:
      rows: numbers of the examples in each row; a batch is the numbers of its rows.
    """

    def __init__(self, sizes: Int[np.ndarray, "N 5"], *, tokens: Sequence[int], frames: Sequence[int], seed: int, **options: Any):
        """Plans a run; arguments and errors as those of `BatchPlan`."""
        self.rows = plan_run(sizes, tokens=max(tokens), frames=max(frames), seed=seed)
        packed = row_sizes(sizes, self.rows)
        super().__init__(packed, tokens=(max(tokens),), frames=(max(frames),), seed=seed, **options)


class PackedSource(BatchSource):
    """The batches of a `PackedPlan`, by number; each process reads its own rows."""

    def __init__(self, source: RecordSource, plan: PackedPlan, *, patch_size: int, process: int = 0, processes: int = 1):
        """Joins examples and plan; arguments as those of `BatchSource`."""
        super().__init__(source, plan, patch_size=patch_size, process=process, processes=processes)
        self._rows = plan.rows

    def _make(self, bucket: Bucket, rows: list[int]) -> Batch:
        return make_packed_batch([self._source.read(self._rows[row]) for row in rows], bucket, self._patch_size)


def join_examples(examples: Sequence[EncodedExample]) -> tuple[dict[str, np.ndarray], Int[np.ndarray, " T"]]:
    """Joins examples to one that is as long as all of them.

    Args:
      examples: at least one.

    Returns:
      The joined example, as `records.FIELDS` says, and the segment of each token: 1, 2, ...
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in examples[0]}
    height, width = (max(example["thumbs"].shape[axis] for example in examples) for axis in (2, 3))
    tokens = visual = 0
    for example in examples:
        moved = dict(example)
        index = example["visual_index"]
        moved["visual_index"] = np.where(index >= 0, index + visual, index).astype(index.dtype)
        moved["op_position"] = (example["op_position"] + tokens).astype(example["op_position"].dtype)
        down, across = height - example["thumbs"].shape[2], width - example["thumbs"].shape[3]
        moved["thumbs"] = np.pad(example["thumbs"], ((0, 0), (0, 0), (0, down), (0, across), (0, 0)))
        for name, array in moved.items():
            parts[name].append(array)
        tokens += len(example["ids"])
        visual += int((index >= 0).sum())
    segments = [np.full(len(example["ids"]), number, np.int32) for number, example in enumerate(examples, start=1)]
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, np.concatenate(segments)


def make_packed_batch(rows: Sequence[Sequence[EncodedExample]], bucket: Bucket, patch_size: int) -> Batch:
    """Pads rows of several examples into a bucket.

    Captions do not belong here: the patch head reads one example a row (`training.sft.see`).

    Args:
      rows: the examples of each row.
      bucket: holds each row.
      patch_size: side of a patch in pixels.

    Returns:
      The batch; its `valid` holds int32 segment ids.
    """
    joined, segments = zip(*map(join_examples, rows), strict=True)
    batch = make_batch(joined, bucket, patch_size)
    valid = np.zeros(batch.ids.shape, np.int32)
    for row, ids in zip(valid, segments, strict=True):
        row[: len(ids)] = ids
    return dataclasses.replace(batch, valid=valid)


def packed_bucket(rows: Sequence[Sequence[EncodedExample]], *, tokens: int | None = None) -> Bucket:
    """The smallest bucket of some rows.

    Args:
      rows: the examples of each row.
      tokens: length of the bucket; that of the longest row by default.

    Returns:
      The bucket.
    """

    def most(name: str) -> int:
        return max(sum(len(example[name]) for example in row) for row in rows)

    weighted = max(sum(int(np.count_nonzero(example["weights"])) for example in row) for row in rows)
    patches = [int(example["grid"].prod(axis=1).max()) for row in rows for example in row if len(example["grid"])]
    return Bucket(
        rows=len(rows),
        tokens=tokens or most("ids"),
        frames=most("grid"),
        patches=max(patches, default=MERGE_UNIT),
        calls=max(1, most("op_id")),
        weighted=max(1, weighted),
    )
