"""The durable part of the memory: SQLite in WAL mode, one transaction a query, one writer, any number of readers.

A transaction that has returned is on disk (`synchronous = FULL`); one that has not is not there at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from pixelis_jax.memory import records, schema
from pixelis_jax.memory.errors import StoreError
from pixelis_jax.memory.records import Record, Row, Summary
from pixelis_jax.workdir import WorkdirError, WriterLock

_KEYS_A_READ = 4096
_WAIT_S = 30.0  # for a lock of SQLite's own: a reader that recovers the log, another's snapshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp:
    """Which content a store has.

    Attributes:
      store: Names the store.
      memory_seq: Transactions committed so far.
      state: Names the last one; after a restore, another future with the same numbers has other names.
    """

    store: str
    memory_seq: int
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredKeys:
    """All keys at one moment: ids, int64 `[N]`, ascending; keys, float32 `[N, D]`; and which moment."""

    ids: np.ndarray
    keys: np.ndarray
    stamp: Stamp


class Transaction:
    """Changes that are all made or none (`Store.transaction`).

    Attributes:
      added: Ids of records that were added and stay.
      evicted: Ids of records that were there before and are gone; complete when the block has ended.
      memory_seq: Number of the transaction; set when it is committed, else None.
    """

    def __init__(self, store: Store, connection: sqlite3.Connection) -> None:
        self._store, self._connection = store, connection
        self.added: list[int] = []
        self.evicted: list[int] = []
        self.memory_seq: int | None = None
        self.cancelled = False
        self.changed = False

    def add(self, record: Record) -> int:
        """Adds a record and returns its id, larger than any before.

        Raises:
          StoreError: The record is not what `Record` says.
        """
        row = records.to_row(record, self._store.dim)
        cursor = self._connection.execute(
            "INSERT INTO records (value, phash, query_id, operations, fidelity, agreement, created)"
            " SELECT ?, ?, ?, ?, ?, ?, memory_seq + 1 FROM meta",
            (row.value, row.phash, row.query_id, row.operations, row.fidelity, row.agreement),
        )
        new = cursor.lastrowid
        assert new is not None  # a row went in
        self._connection.execute("INSERT INTO keys VALUES (?, ?)", (new, row.key))
        contents = (new, row.query, row.trajectory, row.tokens, row.checksum())
        self._connection.execute("INSERT INTO contents VALUES (?, ?, ?, ?, ?)", contents)
        self.added.append(new)
        self.changed = True
        return new

    def set_value(self, record_id: int, value: float) -> None:
        """Changes the value of a record; raises KeyError if there is none, StoreError if the value is not in [0, 1]."""
        records.check_share("value", value)
        self._expect_one("UPDATE records SET value = ? WHERE id = ?", (float(value), record_id), record_id)

    def evict(self, record_id: int) -> None:
        """Removes a record; raises KeyError if there is none."""
        self._expect_one("DELETE FROM records WHERE id = ?", (record_id,), record_id)
        self._connection.execute("DELETE FROM keys WHERE id = ?", (record_id,))
        self._connection.execute("DELETE FROM contents WHERE id = ?", (record_id,))
        if record_id in self.added:
            self.added.remove(record_id)
        else:
            self.evicted.append(record_id)

    def cancel(self) -> None:
        """Nothing of this transaction will have happened."""
        self.cancelled = True

    def make_room(self, excess: int) -> None:
        """Evicts `excess` records: those of least value, then the oldest.

        What this transaction adds goes last. Else, where all others are worth more than a newcomer, none would ever stay long
        enough to show its worth.
        """
        first_new = min(self.added, default=2**63 - 1)
        for which in ("id < ?", "id >= ?"):
            query = f"SELECT id FROM records WHERE {which} ORDER BY value, id LIMIT ?"
            worst = self._connection.execute(query, (first_new, excess)).fetchall()
            for (record_id,) in worst:
                self.evict(record_id)
            excess -= len(worst)

    def _expect_one(self, statement: str, values: tuple[float | int, ...], record_id: int) -> None:
        if self._connection.execute(statement, values).rowcount != 1:
            raise KeyError(record_id)
        self.changed = True


class Store:
    """Records by id.

    An object may be used from several threads, which then wait for one another, whole transactions included; a reader that must
    not wait opens the file once more with `read_only`.
    """

    def __init__(
        self, path: epath.PathLike, *, dim: int | None = None, capacity: int | None = None, read_only: bool = False
    ) -> None:
        """Opens a store, or makes one.

        Args:
          path: A file on a local disk. `-wal`, `-shm` and `.lock` stand beside it.
          dim: Numbers of a key; needed to make a store, else checked.
          capacity: Most records; a transaction that ends with more evicts some. None: no limit.
          read_only: Writes nothing, and does not mind a writer.

        Raises:
          StoreError: Another writer has it, or the file is damaged, of something else, of another version or dimension.
        """
        self.path = Path(os.fspath(path))
        self._capacity, self._read_only = capacity, read_only
        if capacity is not None and capacity < 1:
            raise StoreError(f"capacity is {capacity}, expected 1 or more")
        if read_only and not self.path.is_file():
            raise StoreError(f"{self.path} does not exist")
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path.parent} is no directory")
        if self.path.exists():
            schema.check_file(self.path)
        self._mutex = threading.RLock()
        self._transaction: Transaction | None = None
        self._lock = None if read_only else _locked(self.path)
        try:
            with self._errors():
                self._connection = _connect(self.path, read_only=read_only)
            try:
                with self._errors():
                    self._open(dim)
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            self._unlock()
            raise

    def _open(self, dim: int | None) -> None:
        if schema.is_new(self._connection):
            if self._read_only:
                raise StoreError(f"{self.path} is empty")
            if dim is None:
                raise StoreError(f"{self.path} is new: say of how many numbers a key is")
            schema.create(self._connection, dim)
        schema.check_ours(self._connection, self.path)
        held: int = self._connection.execute("SELECT dim FROM meta").fetchone()[0]
        if dim is not None and dim != held:
            raise StoreError(f"{self.path} holds keys of {held} numbers, not {dim}; another policy wrote it")
        self.dim = held
        if not self._read_only:
            self._connection.execute("PRAGMA journal_mode = WAL")  # a snapshot in a store's place is not in it
            self._connection.execute("PRAGMA synchronous = FULL")
        self._count = self._counted()

    @property
    def stamp(self) -> Stamp:
        """Which content it has now."""
        with self._reading() as connection:
            return _stamp(connection)

    @property
    def memory_seq(self) -> int:
        """Transactions committed so far."""
        return self.stamp.memory_seq

    def __len__(self) -> int:
        with self._reading():
            return self._counted() if self._read_only else self._count

    def ids(self) -> list[int]:
        """Ids of all records, oldest first."""
        with self._reading() as connection:
            return [row[0] for row in connection.execute("SELECT id FROM records ORDER BY id")]

    def get(self, record_id: int) -> Record:
        """Reads a whole record.

        Raises:
          KeyError: There is none of this id.
          StoreError: It is not what was written.
        """
        columns = ", ".join(field.name for field in dataclasses.fields(Row))
        with self._reading() as connection:
            query = f"SELECT {columns}, checksum FROM records JOIN keys USING (id) JOIN contents USING (id) WHERE id = ?"
            found = connection.execute(query, (record_id,)).fetchone()
        if found is None:
            raise KeyError(record_id)
        names = columns.split(", ")
        try:
            return records.from_row(Row(**dict(zip(names, found[:-1], strict=True))), self.dim, checksum=found[-1])
        except StoreError as error:
            raise StoreError(f"{self.path}: record {record_id} is damaged: {error}; restore a snapshot") from error

    def created(self, record_id: int) -> int:
        """`memory_seq` of the transaction that added a record; raises KeyError if there is none."""
        with self._reading() as connection:
            found = connection.execute("SELECT created FROM records WHERE id = ?", (record_id,)).fetchone()
        if found is None:
            raise KeyError(record_id)
        return int(found[0])

    def summaries(self, record_ids: Sequence[int]) -> dict[int, Summary]:
        """What ranking needs of some records, by id; ids without a record are left out."""
        wanted = "[" + ",".join(str(int(record_id)) for record_id in record_ids) + "]"
        query = (
            "SELECT id, value, phash, query_id, operations, fidelity FROM records WHERE id IN (SELECT value FROM json_each(?))"
        )
        with self._reading() as connection:
            return {row[0]: records.summary(*row[1:]) for row in connection.execute(query, (wanted,))}

    def keys(self) -> StoredKeys:
        """Reads all keys at one moment.

        Raises:
          StoreError: A key is no unit vector, or a record has none.
        """
        with self._reading() as connection, _moment(connection):
            stamp, count = _stamp(connection), self._counted()
            ids, keys, at = np.empty(count, np.int64), np.empty((count, self.dim), np.float32), 0
            cursor = connection.execute("SELECT id, key FROM records LEFT JOIN keys USING (id) ORDER BY id")
            while rows := cursor.fetchmany(_KEYS_A_READ):
                parts = [row[1] for row in rows]
                if any(part is None or len(part) != 4 * self.dim for part in parts):
                    raise StoreError(f"{self.path} is damaged: a record has no key of {self.dim} numbers; restore a snapshot")
                ids[at : at + len(rows)] = [row[0] for row in rows]
                keys[at : at + len(rows)] = np.frombuffer(b"".join(parts), "<f4").reshape(len(rows), self.dim)
                at += len(rows)
            try:
                records.check_lengths(keys)
            except StoreError as error:
                raise StoreError(f"{self.path} is damaged: {error}; restore a snapshot") from error
        return StoredKeys(ids=ids, keys=keys, stamp=stamp)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A block whose changes are all made when it ends, or none if it raises or cancels. Without changes it is no transaction.

        Raises:
          StoreError: The store is read-only, a transaction is under way, or the disk refused; then nothing was changed.
        """
        if self._read_only:
            raise StoreError(f"{self.path} was opened read-only")
        with self._mutex:
            if self._transaction is not None:
                raise StoreError(f"{self.path}: a transaction is under way")
            with self._errors():
                self._connection.execute("BEGIN IMMEDIATE")
            change = self._transaction = Transaction(self, self._connection)
            try:
                with self._errors():
                    yield change
                    if change.changed and not change.cancelled:
                        self._commit(change)
            finally:
                self._transaction = None
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _commit(self, change: Transaction) -> None:
        def after() -> int:
            return self._count + len(change.added) - len(change.evicted)

        if self._capacity is not None and after() > self._capacity:
            change.make_room(after() - self._capacity)
        query = "UPDATE meta SET memory_seq = memory_seq + 1, state = ? RETURNING memory_seq"
        number: int = self._connection.execute(query, (uuid.uuid4().hex,)).fetchone()[0]
        self._connection.execute("COMMIT")
        change.memory_seq = number
        self._count = after()

    def snapshot(self, path: epath.PathLike) -> Stamp:
        """Copies the store to one file, which appears when it is complete.

        Args:
          path: Where; local, or on an object store. What stands there is replaced.

        Returns:
          Which content the copy has.
        """
        target = epath.Path(path)
        remote = "://" in os.fspath(path)
        folder = self.path.parent if remote else Path(os.fspath(target.parent))
        temporary = folder / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with self._mutex, self._errors():
                self._refuse_inside("a snapshot")
                with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
                    self._connection.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, which also opens where nothing can be written
                    stamp = _stamp(copy)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if remote:
                epath.Path(temporary).copy(target, overwrite=True)
            else:
                temporary.replace(os.fspath(target))
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return stamp

    def restore(self, path: epath.PathLike) -> None:
        """Gives the store the content of a snapshot, in one transaction: it has the old content or the new.

        Raises:
          StoreError: The snapshot is damaged, no snapshot, or of another dimension; the store is as it was.
        """
        if self._read_only:
            raise StoreError(f"{self.path} was opened read-only")
        source = epath.Path(path)
        with contextlib.ExitStack() as stack:
            if "://" in os.fspath(path):
                local = self.path.with_name(f".{source.name}.{uuid.uuid4().hex}.tmp")
                stack.callback(local.unlink, missing_ok=True)
                source.copy(local)
            else:
                local = Path(os.fspath(source))
            snapshot = stack.enter_context(Store(local, dim=self.dim, read_only=True))
            with self._mutex, self._errors():
                self._refuse_inside("a restore")
                with snapshot._errors():
                    schema.check_pages(snapshot._connection, local)
                snapshot._connection.backup(self._connection)
                self._count = self._counted()

    def check(self) -> None:
        """Reads everything there is and raises StoreError if a page or a record is damaged."""
        with self._reading() as connection:
            schema.check_pages(connection, self.path)
        for record_id in self.ids():
            self.get(record_id)

    def close(self) -> None:
        """Lets go of the file, and lets the next writer in."""
        with self._mutex:
            self._connection.close()
            self._unlock()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _counted(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM records").fetchone()[0])

    def _refuse_inside(self, what: str) -> None:
        if self._transaction is not None:
            raise StoreError(f"{self.path}: {what} inside a transaction")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._errors():
            yield self._connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(_explained(self.path, error)) from error


def discard(path: epath.PathLike) -> None:
    """Removes a store, if there is one; its lock stays, held by nobody.

    Raises:
      StoreError: A writer has it.
    """
    path = Path(os.fspath(path))
    with _locked(path):
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)


def _locked(path: Path) -> WriterLock:
    try:
        return WriterLock(path.with_name(path.name + ".lock"), path)
    except WorkdirError as error:
        raise StoreError(f"{error}, or open it read-only") from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    # One connection for all threads: the store's mutex lets one at a time.
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_WAIT_S, check_same_thread=False)


def _stamp(connection: sqlite3.Connection) -> Stamp:
    store, memory_seq, state = connection.execute("SELECT store, memory_seq, state FROM meta").fetchone()
    return Stamp(store=store, memory_seq=memory_seq, state=state)


@contextlib.contextmanager
def _moment(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read in the block is of one moment, whatever a writer does meanwhile."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _explained(path: Path, error: sqlite3.Error) -> str:
    damaged = getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
    if damaged or (isinstance(error, sqlite3.OperationalError) and "no such" in str(error)):
        return f"{path} is damaged: {error}; restore a snapshot"
    return f"{path}: {error}"
