"""The store against a dictionary, whatever is done to it and in whatever order."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from memory_records import DIM, make_record

from pixelis_jax.memory import Store

CAPACITY = 4
VALUES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


class StoreMachine(RuleBasedStateMachine):
    """`model` maps ids to (query, value)."""

    snapshots = Bundle("snapshots")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "memory.sqlite"
        self.store = Store(self.path, dim=DIM, capacity=CAPACITY)
        self.model: dict[int, tuple[str, float]] = {}
        self.seq, self.last_id, self.count = 0, 0, 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(values=st.lists(VALUES, max_size=3), changed=VALUES, evict=st.booleans(), cancel=st.booleans(), pick=st.randoms())
    def transaction(self, values, changed, evict, cancel, pick) -> None:
        model, added, gone = dict(self.model), [], []
        with self.store.transaction() as change:
            touched = bool(values)
            if model:
                record_id = pick.choice(sorted(model))
                change.set_value(record_id, changed)
                model[record_id] = (model[record_id][0], changed)
                touched = True
            if evict and model:
                record_id = pick.choice(sorted(model))
                change.evict(record_id)
                del model[record_id]
                gone.append(record_id)
            for value in values:
                self.count += 1
                record_id = change.add(make_record(f"q{self.count}", value=value))
                model[record_id] = (f"q{self.count}", value)
                added.append(record_id)
            if cancel:
                change.cancel()
        if cancel or not touched:
            assert change.memory_seq is None
            return
        while len(model) > CAPACITY:
            worst = min(model, key=lambda record_id: (record_id in added, model[record_id][1], record_id))
            del model[worst]
            (added if worst in added else gone).append(worst)
        assert all(record_id > self.last_id for record_id in added)
        self.model, self.seq = model, self.seq + 1
        self.last_id = max([self.last_id, *added])
        assert change.memory_seq == self.seq
        assert sorted(change.evicted) == sorted(gone)
        assert set(change.added) == set(added) & set(model)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.path, capacity=CAPACITY)

    @rule(target=snapshots)
    def snapshot(self):
        path = self.folder / f"copy-{len(list(self.folder.iterdir()))}-{self.count}"
        stamp = self.store.snapshot(path)
        return path, dict(self.model), self.seq, self.last_id, stamp

    @rule(target=snapshots, taken=consumes(snapshots))
    def restore(self, taken):
        path, model, seq, last_id, stamp = taken
        self.store.restore(path)
        assert self.store.stamp == stamp
        self.model, self.seq, self.last_id = dict(model), seq, last_id
        return multiple(taken)

    @invariant()
    def equals_the_model(self) -> None:
        with Store(self.path, read_only=True) as reader:
            for store in (self.store, reader):
                assert store.ids() == sorted(self.model) and len(store) == len(self.model)
                assert store.memory_seq == self.seq
                assert store.keys().ids.tolist() == sorted(self.model)
                assert {i: (s.query_id, s.value) for i, s in store.summaries(store.ids()).items()} == self.model


TestStoreAgainstADictionary = StoreMachine.TestCase
TestStoreAgainstADictionary.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
