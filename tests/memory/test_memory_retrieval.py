import dataclasses

import numpy as np
import pytest
from memory_records import DIM, at_cosine, make_record, unit

from pixelis_jax.memory import IndexConfig, Memory, MemoryConfig, Shown, Store, StoreError, next_value

LOUD = MemoryConfig(silent_below=1)
QUERY = unit(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.sqlite"


def ask(memory: Memory, *, phash: int | None = None, query_id: str = "q", k: int = 8) -> list[int]:
    return [neighbour.id for neighbour in memory.retrieve(QUERY, phash=phash, query_id=query_id, k=k)]


def test_ranks_by_cosine_times_half_plus_half_the_value(path):
    with Memory(path, dim=DIM, config=LOUD) as memory:
        near = memory.remember(make_record("near", at_cosine(0.9), value=0.0, fidelity=0.25), {}).id
        far = memory.remember(make_record("far", at_cosine(0.6), value=1.0, operations=("segment",)), {}).id
        same = memory.remember(make_record("same", at_cosine(0.8), value=0.5), {}).id
        first, second, third = memory.retrieve(QUERY, phash=None, query_id="q")
    assert [first.id, second.id, third.id] == [far, same, near]  # 0.6, 0.8 * 0.75, 0.9 * 0.5; of equals the older
    assert first.score == pytest.approx(0.6) and second.score == pytest.approx(0.6) and third.score == pytest.approx(0.45)
    assert (first.value, first.operations, first.fidelity) == (1.0, ("segment",), 0.75)
    assert third.cosine == pytest.approx(0.9) and third.fidelity == 0.25
    control = dataclasses.replace(LOUD, value_aware=False)
    with Memory(path, config=control, read_only=True) as memory:
        found = memory.retrieve(QUERY, phash=None, query_id="q")
    assert [n.id for n in found] == [near, same, far] and [n.score for n in found] == [n.cosine for n in found]


def test_is_silent_until_there_are_fifty(path):
    with Memory(path, dim=DIM) as memory:
        for n in range(49):
            memory.remember(make_record(f"{n}"), {})
        assert ask(memory) == []
        memory.remember(make_record("49"), {})
        assert len(ask(memory)) == 8


def test_never_the_query_itself_nor_a_near_duplicate(path):
    bits = 0b1111_0000_1111
    with Memory(path, dim=DIM, config=LOUD) as memory:
        ids = [
            memory.remember(make_record(name, at_cosine(0.9 - 0.1 * n), phash=phash), {}).id
            for n, (name, phash) in enumerate(
                [
                    ("q", 2**63),
                    ("four bits", bits ^ 0b1111),
                    ("five bits", bits ^ 0b11111),
                    ("no picture", None),
                    ("high", bits ^ 2**63),
                ]
            )
        ]
        assert ask(memory, phash=bits) == [ids[2], ids[3]]
        assert ask(memory, phash=None) == ids[1:]
        assert ask(memory, phash=bits, query_id="high") == [ids[0], ids[2], ids[3]]


@pytest.mark.parametrize("exact_below", [100_000, 500])
def test_looks_wide_enough_that_k_remain(path, exact_below):
    """Of 700 records the 600 nearest are near-duplicates; the best of the others come, with ScaNN and without."""
    index = IndexConfig(exact_below=exact_below, candidates=64, threads=1)
    random = np.random.default_rng(0)
    with Memory(path, dim=DIM, config=MemoryConfig(index=index, widest=64)) as memory:
        for n in range(700):
            direction = random.standard_normal(DIM - 1)
            cosine = 0.99 - n / 1000
            key = np.append(cosine, np.sqrt(1 - cosine**2) * direction / np.linalg.norm(direction)).astype(np.float32)
            last = memory.remember(make_record(f"{n}", key, phash=7 if n < 600 else 2**40 - 1), {}).id
        assert memory._index.approximate == (exact_below == 500)
        assert ask(memory, phash=7) == list(range(last - 99, last - 91))


def test_a_record_of_much_value_is_found_behind_many_that_are_nearer(path):
    """300 records at cosine 0.8 and worth nothing score 0.4; one at 0.5 and worth all scores 0.5."""
    with Memory(path, dim=DIM, config=LOUD) as memory:
        for n in range(300):
            memory.remember(make_record(f"{n}", at_cosine(0.8, axis=1 + n % 14), value=0.0), {})
        worth = memory.remember(make_record("worth", at_cosine(0.5), value=1.0), {}).id
        assert ask(memory)[0] == worth


def test_the_value_after_use():
    assert next_value(0.5, Shown(agreement=1.0, fidelity=0.5)) == pytest.approx(0.9 * 0.5 + 0.1 * 0.75)
    assert next_value(1.0, Shown(agreement=1.0, fidelity=1.0)) == pytest.approx(1.0)


def test_remembering_is_one_transaction(path):
    with Memory(path, dim=DIM, config=LOUD) as memory:
        a, b = (memory.remember(make_record(name), {}).id for name in "ab")
        done = memory.remember(make_record("c"), {a: Shown(agreement=1, fidelity=1), 77: Shown(agreement=1, fidelity=1)})
        assert (done.id, done.evicted, done.memory_seq) == (3, (), 3)
        assert memory.get(a).value == pytest.approx(0.55) and memory.get(b).value == 0.5
        bad = dataclasses.replace(make_record("d"), key=np.zeros(DIM, np.float32))
        with pytest.raises(StoreError, match="length 0"):
            memory.remember(bad, {b: Shown(agreement=1, fidelity=1)})
        with pytest.raises(StoreError, match="value is"):
            memory.remember(make_record("d"), {b: Shown(agreement=9, fidelity=9)})
        assert memory.get(b).value == 0.5 and memory.memory_seq == 3 and memory.ids == {1, 2, 3}


def test_what_is_evicted_is_not_retrieved(path):
    config = MemoryConfig(silent_below=1, capacity=3)
    with Memory(path, dim=DIM, config=config) as memory:
        ids = [memory.remember(make_record(f"{n}", at_cosine(0.9 - n / 10)), {}).id for n in range(3)]
        done = memory.remember(make_record("3", at_cosine(0.5)), {ids[0]: Shown(agreement=1, fidelity=1)})
        assert done.evicted == (ids[1],)
        assert sorted(ask(memory)) == [ids[0], ids[2], done.id] == sorted(memory.ids)


def test_index_and_store_agree_after_a_restart_a_restore_and_without_the_cache(path, tmp_path, monkeypatch):
    from pixelis_jax.memory import Index

    built = []
    build = Index._build
    monkeypatch.setattr(Index, "_build", lambda self: (built.append(len(self)), build(self)))
    config = MemoryConfig(capacity=620, index=IndexConfig(exact_below=500, candidates=64, threads=1))
    with Memory(path, dim=DIM, config=config) as memory:
        for n in range(600):
            memory.remember(make_record(f"{n}"), {})
        stamp = memory.snapshot(tmp_path / "copy")
        expected, answers = memory.ids, ask(memory)
        for n in range(40):
            memory.remember(make_record(f"later {n}"), {})
        assert built == [500] and len(memory) == 620
        later = memory.ids
    assert (tmp_path / "memory.sqlite.index" / "index.json").exists()
    with Memory(path, config=config) as memory:
        assert built == [500]  # from the cache
        assert memory.ids == later == set(memory._store.ids())
        memory.restore(tmp_path / "copy")
        assert built == [500, 600]
        assert memory.ids == expected == set(memory._store.ids()) and memory.memory_seq == stamp.memory_seq == 600
        assert ask(memory) == answers
        memory.remember(make_record("other"), {})
        copied = path.with_name("crashed.sqlite")
        memory.snapshot(copied)
    with Memory(copied, config=config) as memory:  # there is no cache
        assert built == [500, 600, 601]
        assert memory.ids == set(memory._store.ids())


def test_a_stale_cache_is_not_used(path):
    config = MemoryConfig(index=IndexConfig(exact_below=100, candidates=16, threads=1))
    with Memory(path, dim=DIM, config=config) as memory:
        for n in range(120):
            memory.remember(make_record(f"{n}"), {})
    with Store(path) as store, store.transaction() as change:  # behind the index's back
        change.evict(1)
        new = change.add(make_record("new"))
    with Memory(path, config=config) as memory:
        assert memory.ids == set(range(2, 121)) | {new} and memory._index._built_from == 120
        assert memory.retrieve(memory.get(new).key, phash=None, query_id="q", k=1)[0].id == new
        assert 1 not in [n.id for n in memory.retrieve(unit(1), phash=None, query_id="q", k=120)]


def test_a_reader_retrieves_while_another_writes(path):
    with Memory(path, dim=DIM, config=LOUD) as memory:
        gone = memory.remember(make_record("gone", at_cosine(0.9)), {}).id
        stays = memory.remember(make_record("stays", at_cosine(0.8)), {}).id
        with Memory(path, config=LOUD, read_only=True) as reader:
            assert ask(reader) == [gone, stays]
            with memory._store.transaction() as change:
                change.evict(gone)
                change.set_value(stays, 1.0)
            (left,) = reader.retrieve(QUERY, phash=None, query_id="q")
            assert left.id == stays and left.value == 1.0
