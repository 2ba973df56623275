"""What the comparison with transformers consists of, without transformers: works, memory, statistics, table, errors."""

import dataclasses
import multiprocessing
import os
import sys

import numpy as np
import pytest
import tiny_work

from pixelis_jax import cli
from pixelis_jax.commands import bench
from pixelis_jax.data import records
from pixelis_jax.speed import duel, memory, results, work


@pytest.mark.parametrize("name", work.WORKS)
def test_examples_are_encoded_examples_with_the_work_s_sizes(name):
    one = work.WORKS[name]
    examples = work.make_examples(one)
    for example, length, grids in zip(examples, one.lengths, one.grids, strict=True):
        records.check_example(example)
        assert len(example["ids"]) == length and example["grid"].tolist() == [list(grid) for grid in grids]
        imitated = length - 1 if one.weighted == 1 else round(length * one.weighted)
        assert np.count_nonzero(example["weights"]) == imitated
    batch = work.make_our_batch(one, examples)
    assert np.count_nonzero(batch.valid) == one.tokens and batch.ids.shape[1] <= max(one.lengths)
    if one.packed:
        # The point of packing: hardly any padding, where one example a row is half padding.
        assert batch.ids.size <= 1.2 * one.tokens and one.padded_tokens >= 2 * one.tokens
    else:
        assert batch.ids.size == one.tokens


def test_parameters_are_about_what_the_titles_say():
    counts = {name: work.count_parameters(one.model) / 1e6 for name, one in work.WORKS.items()}
    assert 9 < counts["train_10m"] == counts["prefill_10m"] < 12
    assert 90 < counts["train_100m"] == counts["prefill_100m"] < 110
    assert work.WORKS["useful"].model.text.vocab_size == 151_936


def test_images_that_leave_no_room_for_the_imitated_tokens_are_refused():
    with pytest.raises(ValueError, match="16 tokens do not hold images"):
        work.make_examples(dataclasses.replace(tiny_work.make_work(packed=True), lengths=(16, 22, 16)))


@pytest.mark.skipif(not memory.supported(), reason="memory is read from /proc")
def test_peak_sees_what_was_allocated_since_and_nothing_from_before():
    block = 64 << 20
    before = np.ones(block, np.uint8)
    del before
    memory.reset_peak()
    start = memory.resident()
    assert memory.peak() - start < block // 4
    during = np.ones(block, np.uint8)
    del during
    assert block * 0.9 < memory.peak() - start < block * 1.5
    assert memory.resident() - start < block // 4


def comparison(**changes) -> duel.Comparison:
    made = duel.Comparison(
        seconds={"ours": [1.0, 2.0, 2.0], "theirs": [3.0, 4.0, 2.0]},
        processor_seconds={"ours": [2.0] * 3, "theirs": [4.0] * 3},
        values={"ours": [1.0] * 3, "theirs": [1.0] * 3},
        memory={"ours": 3 << 20, "theirs": 4 << 20},
        layout={side: {"rows": 3, "tokens": 120} for side in duel.SIDES},
        versions={"jax": "0"},
        stages={side: {"loss": [(0.5, 0.0)] * 3, "step": [(2.0, 0.0)] * 3} for side in duel.SIDES},
    )
    return dataclasses.replace(made, **changes)


def test_a_row_says_what_was_measured_and_whether_it_is_enough():
    row = results.make_row("useful", tiny_work.make_work(packed=True), comparison(), parameters=7)
    # Ratios by repetition are 3, 2 and 1; their median is 2. 78 tokens in a median of 2 s and of 3 s.
    assert row["ratio"] == 2.0 and 1.0 <= row["interval"][0] <= 2.0 <= row["interval"][1] <= 3.0
    assert row["useful_tokens_per_second"] == {"ours": 39.0, "theirs": 26.0}
    assert row["fast"] and row["memory_ratio"] == 0.75 and row["light"] is False
    text = results.table([row])
    assert "2.00" in text and ">= 1 " in text + " " and "<= 0.5 !" in text
    assert results.stage_table([row]).splitlines()[-1].split() == ["theirs", "0.500", "1.500"]
    slow = results.make_row("useful", tiny_work.make_work(), comparison(seconds={"ours": [2.0] * 3, "theirs": [1.0] * 3}), 7)
    assert not slow["fast"] and slow["light"] is None and ">= 1 !" in results.table([slow])


def test_memory_that_cannot_be_measured_is_left_out():
    row = results.make_row("useful", tiny_work.make_work(packed=True), comparison(memory={}), parameters=7)
    assert row["memory_ratio"] is None and row["light"] is None
    results.table([row])


def test_sides_that_compute_something_else_are_no_comparison():
    duel._check_equal({"ours": [8.0, 7.0], "theirs": [8.0001, 7.0]})
    with pytest.raises(duel.ContestantError, match="do not compute the same"):
        duel._check_equal({"ours": [8.0, 7.0], "theirs": [8.0, 7.1]})


def test_a_contestant_that_dies_is_an_error_that_names_it(tmp_path, capfd):
    context = multiprocessing.get_context("spawn")
    with (
        pytest.raises(duel.ContestantError, match="process of nobody has died"),
        duel._player(context, "nobody", tiny_work.make_work(), str(tmp_path), 1),
    ):
        pass
    capfd.readouterr()  # the traceback of the process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work=fly"], "no work 'fly' (known: train_10m"),
        (["--repetitions=1"], "--repetitions must be at least 2"),
        (["--threads=0"], "--threads from 1 to"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: object())
    assert cli.main(["bench", "policy", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_torch_there_is_one_line_that_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert cli.main(["bench", "policy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch is not installed here" in line and "make .venv-oracle/.installed" in line


def test_sides_start_with_kept_memory_unless_the_caller_chose(monkeypatch):
    for name in duel.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    before = dict(os.environ)
    with duel._environment(duel.ALLOCATOR):
        assert {name: os.environ[name] for name in duel.ALLOCATOR} == duel.ALLOCATOR | {"MALLOC_ARENA_MAX": "3"}
    assert dict(os.environ) == before


def test_record_names_the_allocator_that_the_sides_have(monkeypatch):
    for name in duel.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("MALLOC_CONF", "thp:always")
    assert duel.allocator() == duel.ALLOCATOR | {"LD_PRELOAD": "", "MALLOC_CONF": "thp:always"}
