"""Nearest neighbours by inner product of unit vectors: exact while there are few, ScaNN when there are many."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.memory.store import Stamp, StoredKeys
from pixelis_jax.workdir import write_json

_FORMAT = 1
_ABOUT = "index.json"
_IDS = "ids.npy"
_FEWEST_LEAVES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How neighbours are found.

    Attributes:
      exact_below: Fewer keys than this are compared one by one.
      leaves_searched: Share of the tree's leaves that a search opens; at least 20 are.
      candidates: Keys that ScaNN proposes, at least; the best of them by exact inner product are returned.
      training_samples: Keys from which the tree and the hashes learn, at most.
      growth: The index is built anew, with a tree of the right size, when it holds this many times the keys it was built from.
      threads: For building; 0 takes one a core.
    """

    exact_below: int = 8192
    leaves_searched: float = 0.05
    candidates: int = 256
    training_samples: int = 100_000
    growth: float = 2.0
    threads: int = 0


class Index:
    """Ids and their keys, in memory.

    ScaNN (https://arxiv.org/abs/1908.10396) has a tree and 4-bit hashes with anisotropic loss, and no copy of the keys: the index
    has them, as float32, and scores ScaNN's candidates itself. Removing moves the last key into the gap, in both.
    """

    def __init__(self, dim: int, config: IndexConfig | None = None) -> None:
        """Creates an empty index of keys of `dim` numbers."""
        self.config = config or IndexConfig()
        self._ids: list[int] = []
        self._row: dict[int, int] = {}
        self._keys = np.empty((0, dim), np.float32)
        self._scann: Any = None
        self._built_from = 0

    @classmethod
    def of(cls, stored: StoredKeys, config: IndexConfig | None = None, *, cache: Path | None = None) -> Index:
        """Makes the index of a store.

        Args:
          stored: The store's keys.
          config: How neighbours are found.
          cache: A directory that `save` wrote. It is used if it is of this content and configuration, else the index is built.
        """
        index = cls(stored.keys.shape[1], config)
        index._ids = stored.ids.tolist()
        index._row = {record_id: row for row, record_id in enumerate(index._ids)}
        index._keys = stored.keys
        if len(index) >= index.config.exact_below and not (cache is not None and index._load(cache, stored.stamp)):
            index._build()
        return index

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> frozenset[int]:
        """All ids."""
        return frozenset(self._row)

    @property
    def approximate(self) -> bool:
        """Whether ScaNN answers, or every key is compared."""
        return self._scann is not None

    def add(self, record_id: int, key: np.ndarray) -> None:
        """Adds an id that the index does not have, with its key, float32 `[D]` of length 1."""
        if record_id in self._row:
            raise KeyError(f"{record_id} is in the index")
        row = len(self._ids)
        if row == len(self._keys):
            grown = np.empty((max(64, row + row // 2), self._keys.shape[1]), np.float32)  # untouched pages take no memory
            grown[:row] = self._keys
            self._keys = grown
        self._keys[row] = key
        self._row[record_id] = row
        self._ids.append(record_id)
        if self._scann is not None:
            self._scann.upsert([record_id], self._keys[row : row + 1])
        if len(self) >= max(self.config.exact_below, self.config.growth * self._built_from):
            self._build()

    def remove(self, record_id: int) -> None:
        """Removes an id; raises KeyError if the index does not have it."""
        row, last = self._row.pop(record_id), self._ids.pop()
        if last != record_id:
            self._ids[row], self._row[last] = last, row
            self._keys[row] = self._keys[len(self._ids)]
        if self._scann is not None:
            self._scann.delete([record_id])
        if len(self) < self.config.exact_below // 2:
            self._scann, self._built_from = None, 0

    def search(self, key: np.ndarray, k: int, *, exclude: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Finds neighbours.

        Args:
          key: float32 `[D]`, of length 1.
          k: How many.
          exclude: Ids that are not returned.

        Returns:
          Ids, int64 `[min(k, what there is)]`, and their exact cosines, float32, nearest first; of equals the smaller id.
        """
        rows = self._candidates(key, k, exclude)
        cosines = (self._keys[: len(self)] if rows is None else self._keys[rows]) @ key
        if exclude:
            rows = np.arange(len(self)) if rows is None else rows
            keep = np.array([self._ids[row] not in exclude for row in rows], bool)
            rows, cosines = rows[keep], cosines[keep]
        if k < len(cosines):
            # All that reach the k-th cosine, so that equals are told apart by id and not by where they lie.
            best = np.flatnonzero(cosines >= np.partition(cosines, len(cosines) - k)[len(cosines) - k])
            rows, cosines = best if rows is None else rows[best], cosines[best]
        ids = np.array(self._ids if rows is None else [self._ids[row] for row in rows], np.int64)
        order = np.lexsort((ids, -cosines))[:k]
        return ids[order], cosines[order]

    def _candidates(self, key: np.ndarray, k: int, exclude: Collection[int]) -> np.ndarray | None:
        """Rows that ScaNN proposes; None where all are to be compared."""
        wanted = max(self.config.candidates, 4 * (k + len(exclude)))
        if self._scann is None or wanted > len(self) // 4:
            return None
        proposed, _ = self._scann.search(key, final_num_neighbors=wanted)
        if len(proposed) < k + len(exclude):  # the leaves that were opened hold too few
            return None
        return np.array([self._row[record_id] for record_id in proposed], np.int64)

    def _build(self) -> None:
        # 60 ms, and only needed here: most memories stay small.
        from scann.scann_ops.py import scann_ops_pybind

        count = len(self)
        leaves = max(16, round(math.sqrt(count)))
        samples = min(count, self.config.training_samples)
        builder = scann_ops_pybind.builder(self._keys[:count], self.config.candidates, "dot_product")
        # Spherical: keys are put into leaves as queries look for them, by inner product. By distance, a leaf of mixed keys, whose
        # centre is short, takes in many that no query would look for there.
        builder = builder.tree(
            leaves, self._leaves_searched(leaves), training_sample_size=samples, training_iterations=8, spherical=True
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=samples)
        self._scann = builder.set_n_training_threads(self.config.threads).build(docids=list(self._ids))
        self._built_from = count

    def _leaves_searched(self, leaves: int) -> int:
        return min(leaves, max(_FEWEST_LEAVES, round(self.config.leaves_searched * leaves)))

    def save(self, directory: Path, stamp: Stamp) -> None:
        """Writes what takes long to build. A directory that another store or another moment wrote is replaced.

        Args:
          directory: Where; nothing else may stand in it.
          stamp: Content of the store that the index is of.
        """
        if self._scann is None:
            shutil.rmtree(directory, ignore_errors=True)
            return
        partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
        try:
            partial.mkdir()
            # Not the searcher's own `serialize`, which pickles the ids.
            self._scann.searcher.serialize(str(partial), True)
            np.save(partial / _IDS, np.array(self._scann.docids, np.int64), allow_pickle=False)
            write_json(partial / _ABOUT, self._about(stamp) | {"built_from": self._built_from, "files": _sizes(partial)})
            shutil.rmtree(directory, ignore_errors=True)  # killed here, there is none, and it is built
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _load(self, directory: Path, stamp: Stamp) -> bool:
        """Takes ScaNN's part from a directory; whether it is whole and of this content."""
        from scann.scann_ops.py import scann_ops_pybind

        try:
            about = json.loads((directory / _ABOUT).read_text())
            if {name: about[name] for name in self._about(stamp)} != self._about(stamp) or about["files"] != _sizes(directory):
                return False
            ids = np.load(directory / _IDS, allow_pickle=False).tolist()
            if len(ids) != len(self) or self._row.keys() != set(ids):
                return False
            # All files were written by `save`: there is no pickled list of ids among them that this would read.
            searcher = scann_ops_pybind.load_searcher(str(directory)).searcher
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return False
        self._scann = scann_ops_pybind.ScannSearcher(searcher, docids=ids)
        self._built_from = int(about["built_from"])
        return True

    def _about(self, stamp: Stamp) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "config": dataclasses.asdict(self.config),
            "dim": self._keys.shape[1],
            **dataclasses.asdict(stamp),
        }


def _sizes(directory: Path) -> dict[str, int]:
    files: Sequence[Path] = sorted(directory.iterdir())
    return {path.name: path.stat().st_size for path in files if path.name != _ABOUT}
