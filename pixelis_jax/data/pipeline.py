"""Encoded examples to padded batches: shuffled, bucketed by length, resumable from one integer.

The plan of an epoch (which examples make which batch) is a pure function of the sizes, the seed and the epoch, so batch
number i of a run can be made without the ones before it: the state of the iterator is the next number.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, SupportsIndex

import grain
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pixelis_jax.data.records import MERGE_UNIT, SIZES, EncodedExample, RecordError, RecordSource

_TOKENS, _FRAMES, _PATCHES, _WEIGHTED, _CALLS = range(len(SIZES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """The static shape of a batch.

    Attributes:
      rows: examples of all processes together.
      tokens: T.
      frames: F; 0 for text alone.
      patches: S, patches a frame.
      calls: K.
      weighted: C, the most positions of non-zero weight in a row.
    """

    rows: int
    tokens: int
    frames: int
    patches: int
    calls: int
    weighted: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "ids", "weights", "roles", "positions", "visual_index", "valid", "patches", "grid",
        "op_position", "op_id", "op_valid", "box", "box_valid", "point", "point_valid", "span", "span_valid",
    ],
    meta_fields=["weighted"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of B rows in the shape of its bucket; the arrays are those of `records.FIELDS`, zero where padded.

    They are NumPy arrays when made, and lie on the devices in a step.

    Attributes:
      valid: where a row has a token; int32 segment ids from 1, with 0 for padding, where rows are packed (`data.packing`).
      visual_index: into the visual tokens of the padded frames (`policy.visual_index`), -1 for text and padding.
      patches: in the order of `policy.VisionInputs`, not yet normalised.
      op_valid: where a row has a call.
      weighted: static; at most this many positions of a row have a weight.
    """

    ids: Int[Any, "B T"]
    weights: Float[Any, "B T"]
    roles: Int[Any, "B T"]
    positions: Int[Any, "B T 3"]
    visual_index: Int[Any, "B T"]
    valid: Bool[Any, "B T"] | Int[Any, "B T"]
    patches: UInt8[Any, "B F S P"]
    grid: Int[Any, "B F 2"]
    op_position: Int[Any, "B K"]
    op_id: Int[Any, "B K"]
    op_valid: Bool[Any, "B K"]
    box: Float[Any, "B K 4"]
    box_valid: Bool[Any, "B K"]
    point: Float[Any, "B K 2"]
    point_valid: Bool[Any, "B K"]
    span: Float[Any, "B K 2"]
    span_valid: Bool[Any, "B K"]
    weighted: int


class BatchPlan(Sequence[tuple[Bucket, np.ndarray]]):
    """Which examples make which batch, for every batch of a run.

    An example goes into the first bucket that holds its tokens and frames. Within an epoch each bucket is shuffled and
    cut into batches: what is left over after the last full batch waits for another epoch's shuffle, except in a bucket
    with less than one batch, whose examples repeat to fill it. Then the batches of all buckets are shuffled.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 5"],
        *,
        tokens: Sequence[int],
        frames: Sequence[int],
        tokens_per_batch: int,
        rows_multiple: int,
        seed: int,
        batches: int,
    ):
        """Plans a run.

        Args:
          sizes: of each example (`RecordSource.sizes`).
          tokens: lengths of the buckets.
          frames: frame counts of the buckets.
          tokens_per_batch: tokens, with padding, of all processes together; sets each bucket's rows.
          rows_multiple: rows are a multiple of this: the devices over which a batch is split.
          seed: of the shuffle.
          batches: length of the run.

        Raises:
          RecordError: an example fits into no bucket.
        """
        longest, most = sizes[:, [_TOKENS, _FRAMES]].max(axis=0)
        if longest > max(tokens) or most > max(frames):
            raise RecordError(
                f"an example of {longest} tokens or {most} frames fits into no bucket: "
                f"the largest have {max(tokens)} tokens and {max(frames)} frames"
            )
        self._seed = seed
        self._batches = batches
        token_bucket = np.searchsorted(np.sort(tokens), sizes[:, _TOKENS])
        frame_bucket = np.searchsorted(np.sort(frames), sizes[:, _FRAMES])
        self._members: list[np.ndarray] = []
        self.buckets: list[Bucket] = []
        for t, length in enumerate(sorted(tokens)):
            for f, count in enumerate(sorted(frames)):
                members = np.flatnonzero((token_bucket == t) & (frame_bucket == f))
                if members.size:
                    rows = max(1, tokens_per_batch // length // rows_multiple) * rows_multiple
                    self._members.append(members)
                    self.buckets.append(_bucket(sizes, members, rows, length, count))
        self._per_epoch = [max(1, len(m) // b.rows) for m, b in zip(self._members, self.buckets, strict=True)]

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one pass over the data."""
        return sum(self._per_epoch)

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: SupportsIndex) -> tuple[Bucket, np.ndarray]:  # type: ignore[override]
        """Returns the bucket of batch `index` and the numbers of its examples, one a row."""
        number = index.__index__()
        if not 0 <= number < self._batches:
            raise IndexError(f"batch {number} of a run of {self._batches}")
        epoch, position = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[position]

    # Two: the reader threads stand on both sides of the end of an epoch.
    @functools.lru_cache(maxsize=2)  # noqa: B019 - one plan a process, and it lives as long as the run
    def _epoch(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        rng = np.random.default_rng([self._seed, epoch])
        batches = []
        for bucket, members, count in zip(self.buckets, self._members, self._per_epoch, strict=True):
            order = np.resize(rng.permutation(members), (count, bucket.rows))
            batches += [(bucket, rows) for rows in order]
        return [batches[i] for i in rng.permutation(len(batches))]


class BatchSource(Sequence[Batch]):
    """The batches of a run, by number; each process reads its own rows."""

    def __init__(self, source: RecordSource, plan: BatchPlan, *, patch_size: int, process: int = 0, processes: int = 1):
        """Joins examples and plan.

        Args:
          source: the examples.
          plan: which of them make which batch.
          patch_size: side of a patch in pixels.
          process: index of this process.
          processes: number of processes; divides the rows of every batch.
        """
        self._source, self._plan, self._patch_size = source, plan, patch_size
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: SupportsIndex) -> Batch:  # type: ignore[override]
        bucket, rows = self._plan[index]
        return self._make(bucket, np.split(rows, self._processes)[self._process].tolist())

    def _make(self, bucket: Bucket, rows: list[int]) -> Batch:
        """Makes this process's part of a batch."""
        return make_batch(self._source.read(rows), bucket, self._patch_size)


def iterate(source: BatchSource, *, threads: int = 2, prefetch: int = 4) -> grain.DatasetIterator:
    """Iterates over batches in order, prepared ahead in threads.

    Args:
      source: the batches.
      threads: reader threads.
      prefetch: batches made ahead.

    Returns:
      An iterator with `get_state` and `set_state`; the state names the next batch.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def make_batch(examples: Sequence[EncodedExample], bucket: Bucket, patch_size: int) -> Batch:
    """Pads examples into a bucket.

    Args:
      examples: one a row.
      bucket: holds each of them.
      patch_size: side of a patch in pixels.

    Returns:
      The batch.
    """

    def pad(name: str, length: int, fill: int = 0) -> np.ndarray:
        first = examples[0][name]
        out = np.full((len(examples), length, *first.shape[1:]), fill, first.dtype)
        for row, example in zip(out, examples, strict=True):
            row[: len(example[name])] = example[name]
        return out

    t, k = bucket.tokens, bucket.calls
    grid = pad("grid", bucket.frames)
    heads = ("op_position", "op_id", "box", "box_valid", "point", "point_valid", "span", "span_valid")
    return Batch(
        **{name: pad(name, t) for name in ("ids", "weights", "positions")},
        roles=pad("roles", t).astype(np.int32),
        visual_index=_padded_visual_index(pad("visual_index", t, fill=-1), grid, bucket.patches // MERGE_UNIT),
        valid=np.arange(t) < np.array([len(example["ids"]) for example in examples])[:, None],
        patches=_patches(examples, bucket, patch_size),
        grid=grid,
        op_valid=np.arange(k) < np.array([len(example["op_id"]) for example in examples])[:, None],
        **{name: pad(name, k) for name in heads},
        weighted=bucket.weighted,
    )


def patchify(frames: UInt8[np.ndarray, "N 2 H W 3"], patch_size: int) -> UInt8[np.ndarray, "N S P"]:
    """Cuts temporal pairs of frames into patches in merge-block order (docs/qwen3_vl.md), without normalising them.

    Args:
      frames: height and width are multiples of two patches.
      patch_size: side of a patch in pixels.

    Returns:
      Patches, each channel, time, y, x.
    """
    n, pair, height, width, channels = frames.shape
    h, w = height // patch_size // 2, width // patch_size // 2
    blocks = frames.reshape(n, pair, h, 2, patch_size, w, 2, patch_size, channels)
    #                       0  1     2  3  4           5  6  7           8
    return blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(n, h * w * MERGE_UNIT, -1)


def _bucket(sizes: np.ndarray, members: np.ndarray, rows: int, tokens: int, frames: int) -> Bucket:
    # The number of patches is that of the whole data set, so that fewer shapes are compiled.
    patches, calls = int(sizes[:, _PATCHES].max()), int(sizes[:, _CALLS].max())
    # Room for a batch, in steps of 16: other data of the same kind then meets the same compiled shapes.
    weighted = min(tokens, -(-int(sizes[members, _WEIGHTED].max()) // 16) * 16)
    return Bucket(rows=rows, tokens=tokens, frames=frames, patches=patches, calls=max(1, calls), weighted=weighted)


def _patches(examples: Sequence[EncodedExample], bucket: Bucket, patch_size: int) -> np.ndarray:
    out = np.zeros((len(examples), bucket.frames, bucket.patches, 2 * 3 * patch_size**2), np.uint8)
    for row, example in zip(out, examples, strict=True):
        for h, w in np.unique(example["grid"], axis=0):
            (frames,) = np.nonzero((example["grid"] == (h, w)).all(axis=1))
            pixels = example["thumbs"][frames, :, : h * patch_size, : w * patch_size]
            row[frames, : h * w] = patchify(pixels, patch_size)
    return out


def _padded_visual_index(index: np.ndarray, grid: np.ndarray, slots: int) -> np.ndarray:
    """Turns the count of a visual token in its row into its place among frames padded to `slots` tokens each."""
    ends = np.cumsum(grid.prod(axis=2) // MERGE_UNIT, axis=1)  # [B, F]
    frame = (index[:, :, None] >= ends[:, None, :]).sum(axis=2)
    starts = np.pad(ends, ((0, 0), (1, 0)))
    place = frame * slots + index - np.take_along_axis(starts, frame, axis=1)
    return np.where(index >= 0, place, -1).astype(np.int32)
