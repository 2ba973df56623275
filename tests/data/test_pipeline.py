"""Encoded examples on disk, and their batches."""

import collections
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax.data import pipeline, records
from pixelis_jax.policy import processing

PATCH = 4


def _example(rng: np.random.Generator, tokens: int = 20, grids: tuple = ((4, 4),), calls: int = 1) -> dict:
    grid = np.array(grids, np.int32).reshape(-1, 2)
    visual = int(grid.prod(axis=1).sum()) // 4
    thumbs = np.zeros((len(grid), 2, 4 * PATCH, 4 * PATCH, 3), np.uint8)
    for frame, (h, w) in zip(thumbs, grid, strict=True):
        frame[:, : h * PATCH, : w * PATCH] = rng.integers(0, 256, (2, h * PATCH, w * PATCH, 3))
    index = np.full(tokens, -1, np.int32)
    index[1 : 1 + visual] = np.arange(visual)
    weights = np.zeros(tokens, np.float32)
    weights[tokens // 2 :] = 2.0
    return {
        "ids": rng.integers(1, 60, tokens).astype(np.int32),
        "roles": rng.integers(0, 7, tokens).astype(np.int8),
        "weights": weights,
        "positions": rng.integers(0, 9, (tokens, 3)).astype(np.int32),
        "visual_index": index,
        "thumbs": thumbs,
        "grid": grid,
        "op_position": rng.integers(0, tokens, calls).astype(np.int32),
        "op_id": rng.integers(0, 6, calls).astype(np.int32),
        "box": rng.random((calls, 4)).astype(np.float32),
        "box_valid": rng.random(calls) < 0.5,
        "point": rng.random((calls, 2)).astype(np.float32),
        "point_valid": rng.random(calls) < 0.5,
        "span": rng.random((calls, 2)).astype(np.float32),
        "span_valid": rng.random(calls) < 0.5,
    }


def _examples(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    grids = [((4, 4),), ((4, 2), (2, 4)), ()]
    return [_example(rng, int(rng.integers(12, 33)), grids[i % 3], calls=i % 4) for i in range(count)]


def _plan(sizes: np.ndarray, **changes) -> pipeline.BatchPlan:
    arguments = {"tokens": (16, 32), "frames": (0, 1, 2), "tokens_per_batch": 128, "rows_multiple": 2, "seed": 0}
    return pipeline.BatchPlan(sizes, **(arguments | {"batches": 100} | changes))


def test_records_round_trip(tmp_path: Path) -> None:
    examples = _examples(7)
    assert records.write_records(tmp_path / "a.array_record", iter(examples)) == 7
    source = records.RecordSource(tmp_path / "a.array_record")
    assert len(source) == 7 == len(list(source))
    for read, written in zip(source.read([3, 0]), (examples[3], examples[0]), strict=True):
        assert read.keys() == written.keys()
        for name in written:
            assert read[name].dtype == written[name].dtype
            np.testing.assert_array_equal(read[name], written[name])
    second = examples[1]
    assert source.sizes[1].tolist() == [len(second["ids"]), 2, 8, np.count_nonzero(second["weights"]), 1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda a: a.astype(np.int64), "ids is int64"),
        ("weights", lambda a: a[:-1], "weights is float32"),
        ("weights", lambda a: a + 1, "the first is 0"),
        ("weights", lambda a: -a, "not be negative"),
        ("visual_index", lambda a: a + 1, "visual_index must count"),
        ("op_position", lambda a: a + 100, "op_position outside"),
        ("box", lambda a: a[:, :3], "box is float32"),
    ],
)
def test_a_wrong_example_is_refused_and_nothing_is_written(tmp_path: Path, name: str, change, message: str) -> None:
    good, bad = _examples(2)
    bad = bad | {name: change(bad[name])}
    with pytest.raises(records.RecordError, match=f"example 1: .*{message}"):
        records.write_records(tmp_path / "a.array_record", [good, bad])
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    with pytest.raises(records.RecordError, match="cannot read"):
        records.RecordSource(path)
    records.write_records(path, _examples(2))
    path.write_bytes(b"no records")
    with pytest.raises(records.RecordError):
        records.RecordSource(path)
    with pytest.raises(records.RecordError, match="damaged"):
        records.decode(b"\x81")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 5), st.data())
def test_a_plan_is_complete_deterministic_and_fits(count: int, seed: int, data: st.DataObject) -> None:
    draw = st.tuples(st.integers(2, 32), st.integers(0, 2), st.just(16), st.integers(0, 16), st.integers(0, 3))
    sizes = np.array(data.draw(st.lists(draw, min_size=count, max_size=count)), np.int32)
    sizes[:, 3] = np.minimum(sizes[:, 3], sizes[:, 0])
    plan, again = _plan(sizes, seed=seed), _plan(sizes, seed=seed)
    seen: collections.Counter[int] = collections.Counter()
    for i in range(plan.batches_per_epoch):
        (bucket, rows), (same_bucket, same_rows) = plan[i], again[i]
        assert bucket == same_bucket and np.array_equal(rows, same_rows)
        assert len(rows) == bucket.rows and bucket.rows % 2 == 0
        assert (sizes[rows] <= [bucket.tokens, bucket.frames, bucket.patches, bucket.weighted, bucket.calls]).all()
        seen.update(rows.tolist())
    for bucket, members in zip(plan.buckets, plan._members, strict=True):
        drawn = {member: seen[member] for member in members.tolist() if seen[member]}
        if len(members) >= bucket.rows:  # each once; fewer than a batch is left over
            assert set(drawn.values()) == {1} and len(members) - len(drawn) < bucket.rows
        else:  # all, repeated evenly
            assert len(drawn) == len(members) and max(drawn.values()) - min(drawn.values()) <= 1


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    sizes = np.tile(np.array([[10, 1, 16, 5, 1]], np.int32), (64, 1))
    plan = _plan(sizes)
    first = np.concatenate([plan[i][1] for i in range(plan.batches_per_epoch)])
    second = np.concatenate([plan[plan.batches_per_epoch + i][1] for i in range(plan.batches_per_epoch)])
    other = np.concatenate([_plan(sizes, seed=1)[i][1] for i in range(plan.batches_per_epoch)])
    assert sorted(first) == sorted(second) == sorted(other) == list(range(64))
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_an_example_that_fits_no_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="an example of 40 tokens or 1 frames fits into no bucket"):
        _plan(np.array([[40, 1, 16, 5, 1]], np.int32))


def test_the_iterator_resumes_from_its_state(tmp_path: Path) -> None:
    records.write_records(tmp_path / "a.array_record", _examples(30))
    source = records.RecordSource(tmp_path / "a.array_record")
    batches = pipeline.BatchSource(source, _plan(source.sizes), patch_size=PATCH)
    iterator = pipeline.iterate(batches)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(12)]
    resumed = pipeline.iterate(batches)
    resumed.set_state(state)
    for batch in expected:
        other = next(resumed)
        assert batch.weighted == other.weighted
        np.testing.assert_array_equal(batch.ids, other.ids)
        np.testing.assert_array_equal(batch.patches, other.patches)


def test_processes_share_a_batch_without_overlap(tmp_path: Path) -> None:
    records.write_records(tmp_path / "a.array_record", _examples(30))
    source = records.RecordSource(tmp_path / "a.array_record")
    plan = _plan(source.sizes)
    whole = pipeline.BatchSource(source, plan, patch_size=PATCH)[3]
    halves = [pipeline.BatchSource(source, plan, patch_size=PATCH, process=p, processes=2)[3] for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([half.ids for half in halves]), whole.ids)


def test_a_batch_holds_what_the_examples_hold() -> None:
    rng = np.random.default_rng(1)
    examples = [_example(rng, 12, ((4, 2), (2, 4)), calls=2), _example(rng, 9, ((4, 4),), calls=0)]
    bucket = pipeline.Bucket(rows=2, tokens=16, frames=2, patches=16, calls=3, weighted=8)
    batch = pipeline.make_batch(examples, bucket, PATCH)
    assert batch.valid.sum(axis=1).tolist() == [12, 9] and batch.op_valid.sum(axis=1).tolist() == [2, 0]
    np.testing.assert_array_equal(batch.ids[1, :9], examples[1]["ids"])
    assert not batch.ids[1, 9:].any() and not batch.weights[1, 9:].any()
    assert batch.grid.tolist() == [[[4, 2], [2, 4]], [[4, 4], [0, 0]]]
    # Two frames of two tokens each, in frames padded to four tokens.
    assert batch.visual_index[0, :6].tolist() == [-1, 0, 1, 4, 5, -1]
    assert batch.visual_index[1, :6].tolist() == [-1, 0, 1, 2, 3, -1]
    assert not batch.patches[1, 1].any() and not batch.patches[0, :, 8:].any()


def test_text_alone() -> None:
    bucket = pipeline.Bucket(rows=1, tokens=16, frames=0, patches=16, calls=1, weighted=8)
    batch = pipeline.make_batch([_example(np.random.default_rng(0), 10, (), calls=0)], bucket, PATCH)
    assert batch.patches.shape == (1, 0, 16, 96) and (batch.visual_index == -1).all()


def test_patches_are_those_of_the_policy_s_processing() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)  # of this size it is not resized
    patches, (_, h, w) = processing.process_image(image, processing.ProcessingConfig.tiny())
    assert (h, w) == (6, 8)
    ours = pipeline.patchify(np.stack([image, image])[None], 8)[0]
    np.testing.assert_allclose((ours.astype(np.float32) / 255 - 0.5) / 0.5, patches, atol=1e-6)
