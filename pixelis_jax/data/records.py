"""Encoded examples on disk: ArrayRecord files with random access.

An encoded example is what training needs of one trajectory, made once by the renderer that the rollout uses: a dict of
the arrays in `FIELDS`. T tokens, F frames of H x W pixels, K calls.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsIndex

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

EncodedExample = Mapping[str, np.ndarray]

# Type and shape of each array. A letter is a length that all arrays of the example share.
FIELDS: Mapping[str, tuple[str, tuple[str | int, ...]]] = {
    "ids": ("int32", ("T",)),
    "roles": ("int8", ("T",)),
    # Role weight x mask of predicting ids[t] from the tokens before it; ids[0] is never predicted.
    "weights": ("float32", ("T",)),
    "positions": ("int32", ("T", 3)),
    # -1 for text; else 0, 1, 2, ... over the visual tokens of all frames in order.
    "visual_index": ("int32", ("T",)),
    # Temporal pairs of resized RGB frames; frame f fills its grid * patch pixels from the top left, zeros elsewhere.
    "thumbs": ("uint8", ("F", 2, "H", "W", 3)),
    "grid": ("int32", ("F", 2)),
    # Index of a call's last operation token, and what the auxiliary heads should say there, in [0, 1]. In captions: of a token
    # of a thing's name, op_id is -1, and the box is that of the thing in the first frame. Or, with op_id -2 - i and no valid
    # box, `box` is where something of kind i stands (captions.INKS).
    "op_position": ("int32", ("K",)),
    "op_id": ("int32", ("K",)),
    "box": ("float32", ("K", 4)),
    "box_valid": ("bool", ("K",)),
    "point": ("float32", ("K", 2)),
    "point_valid": ("bool", ("K",)),
    "span": ("float32", ("K", 2)),
    "span_valid": ("bool", ("K",)),
}
# Sizes of each example, so that batches are planned without reading it: columns of the index beside a file.
SIZES = ("tokens", "frames", "patches", "weighted", "calls")
# A visual token is a block of 2 x 2 patches.
MERGE_UNIT = 4


class RecordError(ValueError):
    """An encoded example, or a file of them, that is not what it should be."""


def check_example(example: EncodedExample) -> None:
    """Checks an encoded example.

    Args:
      example: the arrays.

    Raises:
      RecordError: a field is missing, unknown, or of another type or shape; or the parts do not agree.
    """
    if example.keys() != FIELDS.keys():
        raise RecordError(f"fields missing or unknown: {sorted(example.keys() ^ FIELDS.keys())}")
    lengths: dict[str, int] = {}
    for name, (dtype, shape) in FIELDS.items():
        array = example[name]
        found = zip(shape, array.shape, strict=False)  # another rank is found below
        wanted = tuple(lengths.setdefault(size, n) if isinstance(size, str) else size for size, n in found)
        if array.dtype != dtype or array.ndim != len(shape) or array.shape != wanted:
            expected = f"{dtype} {list(shape)} as {lengths}"
            raise RecordError(f"{name} is {array.dtype} {list(array.shape)}, expected {expected}")
    visual = example["visual_index"][example["visual_index"] >= 0]
    count = int(example["grid"].prod(axis=1).sum()) // MERGE_UNIT
    if not np.array_equal(visual, np.arange(count)):
        raise RecordError(f"visual_index must count the {count} visual tokens of the grid in order, not {len(visual)}")
    if example["weights"][:1].any() or (example["weights"] < 0).any():
        raise RecordError("weights must not be negative, and the first is 0: nothing stands before it")
    if ((example["op_position"] < 0) | (example["op_position"] >= lengths["T"])).any():
        raise RecordError(f"op_position outside the {lengths['T']} tokens")


def encode(example: EncodedExample) -> bytes:
    """Packs arrays into bytes: msgpack of name -> [type, shape, content], which runs no code when it is read.

    Args:
      example: the arrays.

    Returns:
      The bytes.
    """
    fields = {name: [array.dtype.name, list(array.shape), array.tobytes()] for name, array in example.items()}
    return msgpack.packb(fields)


def decode(content: bytes) -> dict[str, np.ndarray]:
    """Unpacks `encode`.

    Args:
      content: the bytes.

    Returns:
      The arrays, read-only.

    Raises:
      RecordError: the bytes are damaged.
    """
    try:
        fields = msgpack.unpackb(content)
        return {name: np.frombuffer(data, dtype).reshape(shape) for name, (dtype, shape, data) in fields.items()}
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise RecordError(f"damaged record: {error}") from error


def write_records(path: epath.PathLike, examples: Iterable[EncodedExample]) -> int:
    """Writes a file of encoded examples and its index; both are whole or absent.

    Args:
      path: the file, by custom ``NAME.array_record``, on a local disk.
      examples: the examples.

    Returns:
      The number of examples.

    Raises:
      RecordError: an example is not as `FIELDS` says, or there is none.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, index_temporary = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.index.tmp.npy")
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        sizes = []
        try:
            for number, example in enumerate(examples):
                try:
                    check_example(example)
                except RecordError as error:
                    raise RecordError(f"example {number}: {error}") from error
                writer.write(encode(example))
                sizes.append(_sizes(example))
        finally:
            writer.close()
        if not sizes:
            raise RecordError(f"no example to write into {path}")
        np.save(index_temporary, np.asarray(sizes, np.int32))
        index_temporary.replace(_index_path(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        index_temporary.unlink(missing_ok=True)
    return len(sizes)


class RecordSource(Sequence[dict[str, np.ndarray]]):
    """Random access to a file of `write_records`.

    Attributes:
      sizes: int32 ``[N, 5]``, the columns of `SIZES` for each example.
    """

    def __init__(self, path: epath.PathLike):
        """Opens the file.

        Args:
          path: the file.

        Raises:
          RecordError: missing, damaged, or without its index.
        """
        self.path = epath.Path(path)
        try:
            self.sizes = np.load(_index_path(self.path), allow_pickle=False)
            self._reader = array_record_module.ArrayRecordReader(str(self.path))
        except (OSError, ValueError, RuntimeError) as error:
            raise RecordError(f"cannot read records from {self.path}: {' '.join(str(error).split())}") from error
        if self.sizes.shape != (self._reader.num_records(), len(SIZES)):
            count = self._reader.num_records()
            raise RecordError(f"{self.path} has {count} records but an index of {self.sizes.shape}")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:  # type: ignore[override]
        number = index.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path} has {len(self)} records, none of number {number}")
        return self.read([number])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Reads several examples at once.

        Args:
          indices: of the examples.

        Returns:
          The examples, in this order.
        """
        return [decode(content) for content in self._reader.read([int(index) for index in indices])]


def _index_path(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}.index.npy")


def _sizes(example: EncodedExample) -> list[int]:
    patches = int(example["grid"].prod(axis=1).max(initial=0))
    weighted = int(np.count_nonzero(example["weights"]))
    return [len(example["ids"]), len(example["grid"]), patches, weighted, len(example["op_id"])]
