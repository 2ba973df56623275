import dataclasses
import io
import multiprocessing
import pickle
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from memory_records import DIM, make_record, make_tokens, unit

from pixelis_jax.memory import Store, StoreError, discard
from pixelis_jax.trajectory import TokenRecord


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.sqlite"


def add(store: Store, *names: str, **options) -> list[int]:
    """Each record in a transaction of its own."""
    ids = []
    for name in names:
        with store.transaction() as change:
            ids.append(change.add(make_record(name, **options)))
    return ids


def test_a_record_comes_back_as_it_was(path):
    written = make_record("a", phash=2**64 - 1, value=0.25)
    with Store(path, dim=DIM) as store, store.transaction() as change:
        record_id = change.add(written)
    with Store(path) as store:
        read = store.get(record_id)
        summary = store.summaries([record_id, 99])[record_id]
        assert store.created(record_id) == 1
    for field in dataclasses.fields(written):
        if field.name not in ("key", "tokens"):
            assert getattr(read, field.name) == getattr(written, field.name)
    np.testing.assert_array_equal(read.key, written.key)
    for field in dataclasses.fields(TokenRecord):
        np.testing.assert_array_equal(getattr(read.tokens, field.name), getattr(written.tokens, field.name))
    assert (summary.value, summary.phash, summary.query_id) == (0.25, 2**64 - 1, "a")
    assert (summary.operations, summary.fidelity) == (("zoom", "ocr"), 0.75)


def test_transactions_are_numbered_and_all_or_nothing(path):
    with Store(path, dim=DIM) as store:
        assert store.memory_seq == 0
        (first,) = add(store, "a")
        before = store.stamp
        with pytest.raises(RuntimeError, match="half way"), store.transaction() as change:
            change.add(make_record("b"))
            change.set_value(first, 1.0)
            raise RuntimeError("half way")
        with store.transaction() as change:
            change.evict(first)
            change.cancel()
        assert change.memory_seq is None
        with store.transaction():
            pass
        assert store.stamp == before
        assert store.ids() == [first] and store.summaries([first])[first].value == 0.5 and len(store) == 1
        with store.transaction() as change:
            change.set_value(first, 1.0)
        assert change.memory_seq == store.memory_seq == 2
        assert store.stamp.state != before.state


def test_a_full_disk_changes_nothing(path):
    with Store(path, dim=DIM) as store:
        ids = add(store, "a", "b")
        before = store.stamp
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite then reports what a full disk would
        with pytest.raises(StoreError, match="memory.sqlite: database or disk is full"), store.transaction() as change:
            change.set_value(ids[0], 1.0)
            for n in range(100):
                change.add(make_record(f"{n}"))
        assert store.stamp == before and store.ids() == ids and len(store) == 2
        store._connection.execute("PRAGMA max_page_count = 1000000")
        assert len(add(store, "c")) == 1
        store.check()


def test_ids_of_evicted_records_do_not_come_back(path):
    with Store(path, dim=DIM) as store:
        _, last = add(store, "a", "b")
        with store.transaction() as change:
            change.evict(last)
        assert add(store, "c") == [last + 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": np.ones(DIM, np.float32)}, "length 4, expected 1"),
        ({"key": np.full(DIM, np.nan, np.float32)}, "length nan"),
        ({"key": unit(1).astype(np.float64)}, "float64"),
        ({"key": unit(1, dim=8)}, r"float32 \[8\], expected float32 \[16\]"),
        ({"value": 1.5}, "value is 1.5"),
        ({"fidelity": float("nan")}, "fidelity is nan"),
        ({"phash": 2**64}, "64 bits"),
        ({"agreement": -1}, "agreement is -1"),
        ({"tokens": dataclasses.replace(make_tokens(3), roles=np.zeros(4, np.int8))}, "roles is int8"),
    ],
)
def test_what_is_no_record_is_refused_and_nothing_changes(path, change, message):
    with Store(path, dim=DIM) as store:
        add(store, "a")
        with pytest.raises(StoreError, match=message), store.transaction() as transaction:
            transaction.add(make_record("b"))
            transaction.add(dataclasses.replace(make_record("c"), **change))
        assert len(store.ids()) == 1


def test_oversized_content_is_refused(path, monkeypatch):
    monkeypatch.setattr("pixelis_jax.memory.records.CONTENT_BYTES", 100)
    with Store(path, dim=DIM) as store, pytest.raises(StoreError, match="more than 100"):
        add(store, "a")


def test_unknown_ids_raise(path):
    with Store(path, dim=DIM) as store:
        for call in (lambda change: change.set_value(7, 0.5), lambda change: change.evict(7)):
            with pytest.raises(KeyError), store.transaction() as change:
                call(change)
        with pytest.raises(KeyError):
            store.get(7)


def test_the_least_value_goes_first_then_the_oldest_and_the_newest_stays(path):
    with Store(path, dim=DIM, capacity=3) as store:
        (a,), (b,), (c,) = (add(store, name, value=value) for name, value in (("a", 0.9), ("b", 0.6), ("c", 0.6)))
        with store.transaction() as change:
            d = change.add(make_record("d", value=0.5))  # of all the least, but new
        assert change.evicted == [b] and store.ids() == [a, c, d]
        with store.transaction() as change:
            e = change.add(make_record("e", value=0.55))
        assert change.evicted == [d] and store.ids() == [a, c, e]
        with store.transaction() as change:  # more than fits
            new = [change.add(make_record(f"f{n}", value=0.5 + n / 10)) for n in range(4)]
        assert sorted(change.evicted) == [a, c, e] and store.ids() == new[1:] == change.added
        with pytest.raises(KeyError):
            store.get(new[0])


def test_a_smaller_capacity_takes_effect_with_the_next_transaction(path):
    with Store(path, dim=DIM) as store:
        ids = add(store, *"abcdef")
    with Store(path, capacity=2) as store:
        assert store.ids() == ids
        with store.transaction() as change:
            change.set_value(ids[1], 0.9)
        assert store.ids() == [ids[1], ids[5]]


def test_a_second_writer_is_refused_and_the_next_is_let_in(path):
    with Store(path, dim=DIM):
        refusal = r"memory.sqlite is being written by process \d+; stop it or wait for it, or open it read-only"
        with pytest.raises(StoreError, match=refusal):
            Store(path)
        with pytest.raises(StoreError, match=refusal):
            discard(path)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert "is being written by process" in pool.apply(_open_error, (str(path),))
    with Store(path) as store:
        add(store, *"ab")
    discard(path)
    assert [rest.name for rest in path.parent.glob(f"{path.name}*")] == [f"{path.name}.lock"]
    discard(path)  # nothing is there
    with Store(path, dim=DIM) as store:
        assert store.ids() == []


def _open_error(path: str) -> str:
    try:
        Store(path).close()
    except StoreError as error:
        return str(error)
    return "opened"


def test_readers_see_whole_transactions_while_one_writes(path):
    """Every transaction adds two records of one query: a reader never sees an odd number, nor a key that is missing."""
    done, seen, problems = threading.Event(), set(), []
    with Store(path, dim=DIM) as store:

        def read() -> None:
            with Store(path, read_only=True) as reader:
                while not done.is_set():
                    keys = reader.keys()
                    seen.add(keys.stamp.memory_seq)
                    if len(keys.ids) != 2 * keys.stamp.memory_seq:
                        problems.append((len(keys.ids), keys.stamp))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range(60):
            with store.transaction() as change:
                change.add(make_record(f"a{n}"))
                change.add(make_record(f"b{n}"))
        done.set()
        for thread in threads:
            thread.join()
    assert not problems
    assert len(seen) > 2


def test_threads_that_share_a_store_wait_for_each_other(path):
    with Store(path, dim=DIM) as store:
        threads = [threading.Thread(target=add, args=(store, *(f"{n}-{m}" for m in range(10)))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == len(store.ids()) == store.memory_seq == 40


def test_a_reader_changes_nothing(path):
    with pytest.raises(StoreError, match="does not exist"):
        Store(path, read_only=True)
    assert not path.exists()
    Store(path, dim=DIM).close()
    with Store(path, read_only=True) as reader:
        with pytest.raises(StoreError, match="read-only"), reader.transaction():
            pass
        with pytest.raises(StoreError, match="read-only"):
            reader.restore(path)


def test_a_transaction_inside_another_is_refused(path):
    with Store(path, dim=DIM) as store, store.transaction() as change:
        with pytest.raises(StoreError, match="under way"), store.transaction():
            pass
        with pytest.raises(StoreError, match="inside a transaction"):
            store.snapshot(path.with_name("copy"))
        change.add(make_record("a"))


def test_what_is_not_ours_is_refused_and_left_alone(path):
    path.write_bytes(b"no database at all")
    with pytest.raises(StoreError, match="not an SQLite database"):
        Store(path, dim=DIM)
    assert path.read_bytes() == b"no database at all"
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="SQLite database of something else"):
        Store(path, dim=DIM)
    assert path.read_bytes() == content


def test_another_version_and_another_dimension_are_refused(path):
    Store(path, dim=DIM).close()
    with pytest.raises(StoreError, match="keys of 16 numbers, not 32"):
        Store(path, dim=32)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET version = 2")
    other.close()
    with pytest.raises(StoreError, match="tables of version 2; this program reads version 1"):
        Store(path)


def test_a_new_store_needs_a_dimension_and_a_directory(path):
    with pytest.raises(StoreError, match="say of how many numbers"):
        Store(path)
    with pytest.raises(StoreError, match="no directory"):
        Store(path / "deeper" / "memory.sqlite", dim=DIM)
    with Store(path, dim=DIM) as store:  # what the failed attempt left is no obstacle
        add(store, "a")


def test_a_truncated_file_is_damaged(path):
    with Store(path, dim=DIM) as store:
        add(store, *(f"{n}" for n in range(60)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match="is damaged: .*; restore a snapshot"), Store(path) as store:
        store.check()


@pytest.mark.parametrize("column", ["query", "trajectory", "tokens"])
def test_a_changed_byte_is_found(path, column):
    with Store(path, dim=DIM) as store:
        (record_id,) = add(store, "a")
    with sqlite3.connect(path) as other:
        kind = "TEXT" if column == "query" else "BLOB"
        other.execute(f"UPDATE contents SET {column} = CAST(substr({column}, 2) || substr({column}, 1, 1) AS {kind})")
    other.close()
    with Store(path) as store, pytest.raises(StoreError, match=f"record {record_id} is damaged: its checksum"):
        store.get(record_id)


def test_a_damaged_key_is_found_when_an_index_is_made(path):
    with Store(path, dim=DIM) as store:
        add(store, "a", "b")
    with sqlite3.connect(path) as other:
        other.execute("UPDATE keys SET key = zeroblob(64) WHERE id = 2")
    other.close()
    with Store(path) as store, pytest.raises(StoreError, match="is damaged: key has length 0"):
        store.keys()


def test_nothing_in_a_store_is_unpickled(path, monkeypatch):
    """Python objects in place of the token ids, under a checksum that fits, are not made."""
    with Store(path, dim=DIM) as store:
        (record_id,) = add(store, "a")
    evil = io.BytesIO()
    fields = {field.name: getattr(make_tokens(7), field.name) for field in dataclasses.fields(TokenRecord)}
    np.savez(evil, **fields | {"ids": np.array([print] * 7, object)})
    with sqlite3.connect(path) as other:
        other.execute("UPDATE contents SET tokens = ?, checksum = 0", (evil.getvalue(),))
    other.close()
    monkeypatch.setattr("pixelis_jax.memory.records.Row.checksum", lambda _: 0)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with Store(path) as store, pytest.raises(StoreError, match="not a token record: Object arrays cannot be loaded"):
        store.get(record_id)


def test_a_snapshot_is_one_file_and_restores(path, tmp_path):
    copy = tmp_path / "checkpoint" / "memory.sqlite"
    copy.parent.mkdir()
    with Store(path, dim=DIM) as store:
        first = add(store, "a", "b")
        stamp = store.snapshot(copy)
        assert stamp == store.stamp
        assert [entry.name for entry in copy.parent.iterdir()] == ["memory.sqlite"]
        later = add(store, "c")
        with Store(path, read_only=True) as reader:
            store.restore(copy)
            assert reader.ids() == store.ids() == first and len(store) == 2 and store.stamp == stamp
        (other,) = add(store, "d")  # another future: the same number, another name
        assert [other] == later and store.memory_seq == 3
        assert store.get(other).query_id == "d"
    with Store(path) as store:
        store.check()
        assert store.ids() == [*first, other]
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with Store(copy, read_only=True) as snapshot:
        assert snapshot.ids() == first


def test_a_damaged_snapshot_is_refused_and_the_store_stays(path, tmp_path):
    copy = tmp_path / "copy.sqlite"
    with Store(path, dim=DIM) as store:
        ids = add(store, *(f"{n}" for n in range(40)))
        store.snapshot(copy)
        content = bytearray(copy.read_bytes())
        content[8192 * 3 : 8192 * 6] = bytes(8192 * 3)
        copy.write_bytes(content)
        with pytest.raises(StoreError, match=r"copy.sqlite is damaged"):
            store.restore(copy)
        with pytest.raises(StoreError, match="does not exist"):
            store.restore(tmp_path / "none")
        assert store.ids() == ids
        add(store, "a")


def test_a_snapshot_that_cannot_be_written_leaves_nothing(path, tmp_path):
    with Store(path, dim=DIM) as store, pytest.raises(StoreError, match="unable to open|cannot be written"):
        store.snapshot(tmp_path / "absent" / "copy.sqlite")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["memory.sqlite", "memory.sqlite.lock"]
