"""Fine-tuning on packed rows: the plan of a run, its batches, and that a stopped run goes on."""

import collections
import dataclasses
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax import policy, sharding
from pixelis_jax.data import packing, pipeline
from pixelis_jax.data.records import RecordError, RecordSource, write_records
from pixelis_jax.training import sft

BUCKETS = {"tokens": (32, 64), "frames": (1, 2, 4), "tokens_per_batch": 128}


def plan(sizes: np.ndarray, *, pack: bool = True, seed: int = 0, rows_multiple: int = 1) -> pipeline.BatchPlan:
    make = packing.PackedPlan if pack else pipeline.BatchPlan
    return make(sizes, **BUCKETS, rows_multiple=rows_multiple, seed=seed, batches=10_000)


def epoch(plan: packing.PackedPlan, number: int = 0) -> list[list[int]]:
    """Examples of each batch of an epoch."""
    count = plan.batches_per_epoch
    return [[one for row in plan[i][1] for one in plan.rows[row]] for i in range(number * count, (number + 1) * count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.array_record"
    write_records(path, micro.make_examples(60))
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 5), st.data())
def test_each_example_once_an_epoch_in_one_shape_that_holds_it(count: int, seed: int, data: st.DataObject) -> None:
    draw = st.tuples(st.integers(2, 64), st.integers(0, 4), st.sampled_from([8, 16]), st.integers(0, 20), st.integers(0, 3))
    sizes = np.array(data.draw(st.lists(draw, min_size=count, max_size=count)), np.int32)
    sizes[:, 3] = np.minimum(sizes[:, 3], sizes[:, 0])
    packed, again = plan(sizes, seed=seed), plan(sizes, seed=seed)
    assert sorted(one for row in packed.rows for one in row) == list(range(count))
    (bucket,) = packed.buckets
    assert (bucket.tokens, bucket.frames, bucket.rows) == (64, 4, 2)
    for row in packed.rows:
        assert (sizes[row].sum(axis=0)[[0, 1, 3, 4]] <= [bucket.tokens, bucket.frames, bucket.weighted, bucket.calls]).all()
        assert sizes[row, 2].max() <= bucket.patches
    seen = collections.Counter(one for batch in epoch(packed) for one in batch)
    if len(packed.rows) >= bucket.rows:  # fewer rows than a batch are left over
        left = set(range(count)) - set(seen)
        assert set(seen.values()) == {1} and sum(bool(left & set(row)) for row in packed.rows) < bucket.rows
    else:
        assert set(seen) == set(range(count))
    for index in (packed.batches_per_epoch + 1, 0):  # another order of asking
        assert np.array_equal(packed[index][1], again[index][1])


def test_epochs_make_other_batches_and_seeds_other_rows() -> None:
    sizes = np.tile(np.array([[20, 1, 16, 5, 1], [13, 0, 16, 5, 1]], np.int32), (40, 1))
    packed, other = plan(sizes), plan(sizes, seed=1)
    assert epoch(packed, 0) != epoch(packed, 1) and packed.rows != other.rows
    assert plan(sizes, rows_multiple=4).buckets[0].rows == 4


def test_windows_are_packed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW", 10)
    sizes = np.tile(np.array([[16, 0, 16, 5, 1]], np.int32), (25, 1))
    rows = packing.plan_run(sizes, tokens=64, frames=4, seed=0)
    assert sorted(one for row in rows for one in row) == list(range(25))
    assert [len(row) for row in rows] == [4, 4, 2, 4, 4, 2, 4, 1]


def test_an_example_larger_than_a_row_is_refused() -> None:
    with pytest.raises(RecordError, match="65 tokens and 1 frames does not fit"):
        plan(np.array([[65, 1, 16, 5, 1]], np.int32))


def test_less_is_padding(data: Path) -> None:
    sizes = RecordSource(data).sizes

    def padding(pack: bool) -> float:
        made = plan(sizes, pack=pack)
        lengths = packing.row_sizes(sizes, made.rows)[:, 0] if pack else sizes[:, 0]
        batches = [made[i] for i in range(made.batches_per_epoch)]
        room = sum(bucket.rows * bucket.tokens for bucket, _ in batches)
        return 1 - sum(int(lengths[rows].sum()) for _, rows in batches) / room

    assert padding(True) < 0.25 < padding(False)


def make_source(data: Path, *, pack: bool, process: int = 0, processes: int = 1) -> pipeline.BatchSource:
    source = RecordSource(data)
    make = packing.PackedSource if pack else pipeline.BatchSource
    return make(source, plan(source.sizes, pack=pack), patch_size=micro.PATCH, process=process, processes=processes)


def test_the_iterator_resumes_and_processes_share_a_batch(data: Path) -> None:
    source = make_source(data, pack=True)
    iterator = pipeline.iterate(source)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(30)]
    resumed = pipeline.iterate(make_source(data, pack=True))
    resumed.set_state(state)
    for batch in expected:
        other = next(resumed)
        for field in dataclasses.fields(batch):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(other, field.name))
    halves = [make_source(data, pack=True, process=number, processes=2)[5] for number in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([half.valid for half in halves]), expected[0].valid)


def test_the_loss_of_an_epoch_is_that_of_its_examples_alone(data: Path) -> None:
    """Sums of weighted losses over batches of packed rows, and over the same examples one a row."""
    source, model = RecordSource(data), micro.make_model()
    packed = make_source(data, pack=True)
    config, banned = micro.make_config(data), np.zeros(micro.VOCAB, bool)

    @nnx.jit
    def total(model: policy.Qwen3VL, batch: pipeline.Batch) -> jax.Array:
        hidden, _ = sft.encode(model, batch, config.pixels)
        # The loss is a mean over the weights of positions that something stands before.
        return sft.imitate(model, hidden, batch, banned, config.loss)[0] * batch.weights[:, 1:].sum()

    made = plan(source.sizes)
    together = sum(float(total(model, packed[i])) for i in range(made.batches_per_epoch))
    numbers = [one for batch in epoch(made) for one in batch]
    alone = pipeline.Bucket(rows=len(numbers), tokens=32, frames=2, patches=16, calls=2, weighted=32)
    one_by_one = float(total(model, pipeline.make_batch(source.read(numbers), alone, micro.PATCH)))
    assert together == pytest.approx(one_by_one, rel=1e-5)


def config(data: Path, **changes: object):
    made = micro.make_config(data, total_steps=40, **changes)
    made.buckets.update(BUCKETS | {"pack": True})
    return made


def test_a_packed_run_compiles_once_and_a_stopped_one_ends_in_the_same_bits(data: Path, tmp_path: Path) -> None:
    model, result = sft.train(config(data), tmp_path / "whole", micro.make_model())
    assert result.finished and result.compilations == 1
    _, stopped = sft.train(config(data, max_minutes=0.0), tmp_path / "stopped", micro.make_model())
    assert not stopped.finished and int(stopped.state.step) == 1
    again, result = sft.train(config(data), tmp_path / "stopped", micro.make_model())
    assert result.finished
    for left, right in zip(*(jax.tree.leaves(nnx.state(one)) for one in (model, again)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_batches_of_a_run_are_packed_where_the_config_says_so(data: Path) -> None:
    mesh = sharding.create_mesh(data=1)
    assert type(sft.plan_batches(RecordSource(data), config(data), mesh, micro.PATCH)) is packing.PackedSource
    assert type(sft.plan_batches(RecordSource(data), micro.make_config(data), mesh, micro.PATCH)) is pipeline.BatchSource


def test_captions_are_refused(data: Path, tmp_path: Path) -> None:
    wrong = config(data)
    wrong.loss.patches_weight = 1.0
    with pytest.raises(policy.ConfigError, match="buckets.pack needs loss.patches_weight 0, got 1.0"):
        sft.train(wrong, tmp_path / "run", micro.make_model())
    assert not (tmp_path / "run").exists()
