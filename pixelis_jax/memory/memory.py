"""The memory: what was answered before and lies near, and what came of using it (`docs/algorithms.md`, section 3)."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from pixelis_jax.encoding import NEAR
from pixelis_jax.memory.index import Index, IndexConfig
from pixelis_jax.memory.records import VALUE_AT_BIRTH, Record, Summary
from pixelis_jax.memory.store import Stamp, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """How the memory remembers.

    Attributes:
      capacity: Most records; beyond, those of least value go, of equals the oldest. None: no limit.
      silent_below: With fewer records nothing is retrieved.
      near: Records whose perceptual hash is at most so many bits apart are near-duplicates of the query.
      value_aware: Whether value counts in ranking; False ranks by cosine alone (a control).
      decay: Share of a value that stays when the record is used.
      widest: Neighbours by cosine that ranking looks at, at most, while it has k.
      index: How neighbours are found.
    """

    capacity: int | None = 100_000
    silent_below: int = 50
    near: int = NEAR
    value_aware: bool = True
    decay: float = 0.9
    widest: int = 1024
    index: IndexConfig = IndexConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A record that was retrieved.

    Attributes:
      id: `Memory.get` reads the rest.
      cosine: Of its key and the query's.
      value: As it was then.
      score: What it was ranked by.
      operations: Names of its exemplar's calls, in order.
      fidelity: Its exemplar's.
    """

    id: int
    cosine: float
    value: float
    score: float
    operations: tuple[str, ...]
    fidelity: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What a record showed when it was used; both in [0, 1].

    Attributes:
      agreement: How far the answer that won agrees with it.
      fidelity: Of what was found by following it.
    """

    agreement: float
    fidelity: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remembered:
    """What one transaction did: the new record, those that had to go, and the transaction's number."""

    id: int
    evicted: tuple[int, ...]
    memory_seq: int


def score(cosine: float, value: float) -> float:
    """`cos * (0.5 + 0.5 value)`: with value 1 a record counts in full, with value 0 by half."""
    return cosine * (0.5 + 0.5 * value)


def next_value(value: float, shown: Shown, decay: float = 0.9) -> float:
    """Exponential mean of the agreement and fidelity that a record showed: `decay * value + (1 - decay) * mean of the two`."""
    return decay * value + (1 - decay) * (shown.agreement + shown.fidelity) / 2


class Memory:
    """A store with its index, which always agree: the index follows each committed transaction, and is rebuilt from the store."""

    def __init__(
        self, path: epath.PathLike, *, dim: int | None = None, config: MemoryConfig | None = None, read_only: bool = False
    ) -> None:
        """Opens a memory, or makes one.

        Args:
          path: The store; the index is cached in `<path>.index/`, which may be removed at any time.
          dim: Numbers of a key; needed to make one.
          config: How it remembers.
          read_only: Sees what was there when it was opened, less what has been evicted since.

        Raises:
          StoreError: As `Store`.
        """
        self.config = config or MemoryConfig()
        self._store = Store(path, dim=dim, capacity=self.config.capacity, read_only=read_only)
        self._cache = Path(os.fspath(path) + ".index")
        self._read_only = read_only
        try:
            self._index = self._make_index()
        except BaseException:
            self._store.close()
            raise

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> frozenset[int]:
        """Ids of the records that can be retrieved."""
        return self._index.ids

    @property
    def memory_seq(self) -> int:
        """Number of the last transaction."""
        return self._store.memory_seq

    def get(self, record_id: int) -> Record:
        """Reads a record; raises KeyError if there is none, StoreError if it is damaged."""
        return self._store.get(record_id)

    def retrieve(self, key: np.ndarray, *, phash: int | None, query_id: str, k: int = 8) -> list[Neighbour]:
        """Finds records to learn from: never the query itself, nor another question about (nearly) the same picture.

        The best by score are exact among the keys that the index looks at, unless more than `config.widest` of them could matter.

        Args:
          key: The query's, float32 `[D]`, of length 1.
          phash: Of what it is about; None without a medium, which is near to none.
          query_id: The query's.
          k: How many.

        Returns:
          At most k, best first; of equals the older. None while there are fewer than `config.silent_below` records.
        """
        if len(self) < self.config.silent_below:
            return []
        width = 8 * k
        while True:
            ids, cosines = self._index.search(key, width)
            summaries = self._store.summaries(ids.tolist())
            found = [
                self._neighbour(record_id, cosine, summaries[record_id])
                for record_id, cosine in zip(ids.tolist(), cosines.tolist(), strict=True)
                if record_id in summaries and not self._same(summaries[record_id], phash, query_id)
            ]
            best = sorted(found, key=lambda neighbour: (-neighbour.score, neighbour.id))[:k]
            if len(ids) < width:  # that was all
                return best
            # No key that was not looked at has a larger cosine than the last one, nor a score above this.
            beyond = cosines[-1] if cosines[-1] > 0 or not self.config.value_aware else 0.5 * cosines[-1]
            if len(best) == k and (best[-1].score >= beyond or width >= self.config.widest):
                return best
            width *= 4

    def remember(self, record: Record, shown: Mapping[int, Shown]) -> Remembered:
        """Keeps a record and updates the values of those that were used, in one transaction.

        Args:
          record: What to keep.
          shown: What the neighbours showed, by id; those that have gone since are passed over.

        Raises:
          StoreError: The record is not what `Record` says, or the disk refused; then nothing was changed.
        """
        with self._store.transaction() as change:
            held = self._store.summaries(list(shown))
            for record_id in held:
                change.set_value(record_id, next_value(held[record_id].value, shown[record_id], self.config.decay))
            new = change.add(record)
        assert change.memory_seq is not None  # it was committed
        for record_id in change.evicted:
            self._index.remove(record_id)
        self._index.add(new, record.key)
        return Remembered(id=new, evicted=tuple(change.evicted), memory_seq=change.memory_seq)

    def median_value(self, *, without: Collection[int] = ()) -> float:
        """Median of the values of all records but some; that of a newborn record if there are none."""
        summaries = self._store.summaries([record_id for record_id in self.ids if record_id not in without])
        return float(np.median([held.value for held in summaries.values()])) if summaries else VALUE_AT_BIRTH

    def snapshot(self, path: epath.PathLike) -> Stamp:
        """Copies the store to one file (`Store.snapshot`), for a checkpoint; the index can be built from it."""
        return self._store.snapshot(path)

    def restore(self, path: epath.PathLike) -> None:
        """Goes back to a snapshot.

        Raises:
          StoreError: As `Store.restore`; the memory is as it was.
        """
        self._store.restore(path)
        self._index = self._make_index()

    def save_index(self) -> None:
        """Writes the index's cache, so that the next start need not build it."""
        self._index.save(self._cache, self._store.stamp)

    def close(self) -> None:
        """Writes the index's cache and lets go of the files."""
        try:
            if not self._read_only:
                self.save_index()
        finally:
            self._store.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_index(self) -> Index:
        index = Index.of(self._store.keys(), self.config.index, cache=self._cache)
        if not self._read_only:
            for rest in self._cache.parent.glob(f".{self._cache.name}.*.tmp"):  # of a save that was killed
                shutil.rmtree(rest, ignore_errors=True)
        return index

    def _neighbour(self, record_id: int, cosine: float, held: Summary) -> Neighbour:
        ranked_by = score(cosine, held.value) if self.config.value_aware else cosine
        return Neighbour(
            id=record_id,
            cosine=cosine,
            value=held.value,
            score=ranked_by,
            operations=held.operations,
            fidelity=held.fidelity,
        )

    def _same(self, held: Summary, phash: int | None, query_id: str) -> bool:
        if held.query_id == query_id:
            return True
        return phash is not None and held.phash is not None and (phash ^ held.phash).bit_count() <= self.config.near
