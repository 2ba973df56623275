"""The tables of a store, and how to tell a store from any other file."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path

from pixelis_jax.memory.errors import StoreError

VERSION = 1
"""Of the tables below; a store of another version is refused."""

_APPLICATION = 0x50584D31  # "PXM1", in the header of the file
_MAGIC = b"SQLite format 3\0"
_PAGE_BYTES = 8192  # three keys of 512 numbers a page instead of one

# Three tables, because they are read apart: `records` for ranking, `keys` when an index is built, `contents` one at a time.
# AUTOINCREMENT: the id of an evicted record never comes back, so an id in hand means one record or none.
_TABLES = """
CREATE TABLE meta (
  version INTEGER NOT NULL, store TEXT NOT NULL, dim INTEGER NOT NULL, memory_seq INTEGER NOT NULL, state TEXT NOT NULL
) STRICT;
CREATE TABLE records (
  id INTEGER PRIMARY KEY AUTOINCREMENT, value REAL NOT NULL, phash INTEGER, query_id TEXT NOT NULL, operations TEXT NOT NULL,
  fidelity REAL NOT NULL, agreement INTEGER NOT NULL, created INTEGER NOT NULL
) STRICT;
CREATE INDEX records_by_value ON records (value, id);
CREATE TABLE keys (id INTEGER PRIMARY KEY, key BLOB NOT NULL) STRICT;
CREATE TABLE contents (
  id INTEGER PRIMARY KEY, query TEXT NOT NULL, trajectory BLOB NOT NULL, tokens BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
"""


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether nothing has been written yet, also because whoever began was killed."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return tables == 0 and connection.execute("PRAGMA application_id").fetchone()[0] == 0


def create(connection: sqlite3.Connection, dim: int) -> None:
    """Writes the tables of an empty store of keys of `dim` numbers."""
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (?, ?, ?, 0, ?)", (VERSION, uuid.uuid4().hex, dim, uuid.uuid4().hex))
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute("COMMIT")


def check_file(path: Path) -> None:
    """Raises StoreError if a file cannot be a store, before SQLite touches it. An empty one can."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if start and start != _MAGIC:
        raise StoreError(f"{path} is no memory: it is not an SQLite database; name another file or restore a snapshot")


def check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError if a database is something else, or a store of another version."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise StoreError(f"{path} is no memory: it is an SQLite database of something else; name another file")
    version = connection.execute("SELECT version FROM meta").fetchone()[0]
    if version != VERSION:
        raise StoreError(f"{path} has tables of version {version}; this program reads version {VERSION}")


def check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """Reads the whole database and raises StoreError if its pages do not fit together."""
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise StoreError(f"{path} is damaged: {' '.join(problem.split())}; restore a snapshot")
