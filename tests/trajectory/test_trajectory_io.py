import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from pixelis_jax import trajectory as package
from pixelis_jax.trajectory import (
    Example,
    ShardWriter,
    Source,
    TokenRecord,
    TrajectoryError,
    load_record,
    read_examples,
    read_trajectories,
    record_from_bytes,
    record_to_bytes,
    save_record,
    trajectory_from_json,
    trajectory_schema,
    trajectory_to_json,
    write_examples,
    write_trajectories,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "trace.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
SCHEMA = json.loads((Path(package.__file__).parent / "schema.json").read_text())

MUTATIONS = {
    "an unknown field": (lambda value: value.update(colour="red"), "colour: unknown field"),
    "an unknown field deep down": (
        lambda value: value["steps"][1]["observation"]["regions"][0].update(x=1),
        "steps[1].observation.regions[0].x: unknown field",
    ),
    "a future schema": (lambda value: value.update(schema="pixelis.trajectory/2"), "pixelis.trajectory/2"),
    "no schema": (lambda value: value.pop("schema"), "schema"),
    "a missing field": (lambda value: value.pop("steps"), "steps: missing"),
    "text for a number": (lambda value: value.update(seed="0"), "seed: expected an integer"),
    "a boolean for an integer": (lambda value: value.update(seed=True), "seed: expected an integer"),
    "a fraction for an integer": (
        lambda value: value["media"][0].update(width=3.5),
        "media[0].width: expected an integer",
    ),
    "a box of three": (
        lambda value: value["steps"][1]["observation"]["regions"][0].update(bbox_2d=[1, 2, 3]),
        "bbox_2d: expected an array of 4",
    ),
    "an unknown reason to stop": (lambda value: value.update(stopped="bored"), "stopped: expected one of answer"),
    "an unknown kind": (lambda value: value["media"][0].update(kind="audio"), "media[0].kind"),
    "an object for a list": (lambda value: value.update(steps={}), "steps: expected an array"),
    "null where there must be a value": (lambda value: value.update(question=None), "question: expected a string"),
    "a call without arguments": (
        lambda value: value["steps"][0]["call"].pop("arguments"),
        "steps[0].call.arguments: missing",
    ),
}


def test_the_schema_file_is_the_one_that_the_types_give():
    assert trajectory_schema() == SCHEMA


@pytest.mark.parametrize("line", LINES, ids=[line["id"] for line in LINES])
def test_the_golden_trace_validates_and_reads_back_as_written(line):
    jsonschema.Draft202012Validator(SCHEMA).validate(line)
    assert trajectory_to_json(trajectory_from_json(line)) == line


@pytest.mark.parametrize("name", MUTATIONS)
def test_reader_and_schema_refuse(name):
    change, message = MUTATIONS[name]
    line = copy.deepcopy(LINES[0])
    change(line)
    with pytest.raises(TrajectoryError) as error:
        trajectory_from_json(line)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(line)


def test_an_unknown_error_code_is_refused():
    line = copy.deepcopy(LINES[0])
    line["steps"][2]["observation"]["error"]["code"] = "tired"
    with pytest.raises(TrajectoryError, match="unknown error code 'tired'"):
        trajectory_from_json(line)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: "),
        ('{"a": 1, "a": 2}', "line 2: a key stands twice"),
        ('{"a": NaN}', "line 2: NaN"),
        ("[1]", "line 2: a trajectory"),
        ("[" * 10**5, "line 2: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path, bad, message):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + bad + "\n")
    with pytest.raises(TrajectoryError, match=message) as error:
        list(read_trajectories(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(TrajectoryError, match="cannot be read"):
        list(read_trajectories(tmp_path / "none.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\x89PNG\xff")
    with pytest.raises(TrajectoryError, match="line 1"):
        list(read_trajectories(tmp_path / "binary.jsonl"))


def test_text_with_every_kind_of_line_end_survives(tmp_path):
    gold = trajectory_from_json(LINES[0])
    odd = dataclasses.replace(gold, question="a\u2028b\u0085c\r\nd\x1ee \U0001f600")
    write_trajectories(tmp_path / "t.jsonl", [odd, gold])
    assert list(read_trajectories(tmp_path / "t.jsonl")) == [odd, gold]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "t.jsonl"
    gold = trajectory_from_json(LINES[0])
    write_trajectories(path, [gold])
    with pytest.raises(ValueError):
        write_trajectories(path, [gold, dataclasses.replace(gold, scores={"task": float("nan")})])
    assert list(read_trajectories(path)) == [gold]
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


def test_shards_are_closed_and_numbered_on(tmp_path):
    gold = trajectory_from_json(LINES[0])
    for start in (0, 3):
        with ShardWriter(tmp_path, "eval", process=1, shard_size=2) as writer:
            for index in range(start, start + 3):
                writer.write(dataclasses.replace(gold, sample=index))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["eval-1-0.jsonl", "eval-1-1.jsonl", "eval-1-2.jsonl", "eval-1-3.jsonl"]
    assert [item.sample for name in names for item in read_trajectories(tmp_path / name)] == list(range(6))


def test_examples_round_trip(tmp_path):
    gold = trajectory_from_json(LINES[0])
    source = Source(dataset="scenes", split="test", item="read/3")
    examples = [
        Example(
            id="a",
            question="Q?",
            media=("a.png",),
            verifier="number",
            truth={"value": 3, "abs": 0.5},
            source=source,
            family="read",
            gold=gold,
        ),
        Example(id="b", question="Q?", media=(), verifier="exact", truth=["x", "y"], source=source),
    ]
    write_examples(tmp_path / "e.jsonl", examples)
    assert list(read_examples(tmp_path / "e.jsonl")) == examples
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}')
    with pytest.raises(TrajectoryError, match="question: missing"):
        list(read_examples(tmp_path / "bad.jsonl"))


def record(length: int = 5) -> TokenRecord:
    return TokenRecord(
        ids=np.arange(length, dtype=np.int32),
        roles=np.full(length, 3, np.int8),
        log_probs=np.linspace(-2, 0, length, dtype=np.float32),
        forced=np.zeros(length, bool),
        policy_step=np.full(length, 7, np.int32),
        media_spans=np.array([[1, 3, 1, 0]], np.int32),
    )


@pytest.mark.parametrize("margins", [None, np.array([0, 1e-7, 2, np.inf, np.inf], np.float32)])
def test_token_records_round_trip_bit_for_bit(tmp_path, margins):
    made = dataclasses.replace(record(), margins=margins)
    save_record(tmp_path / "r.npz", made)
    loaded = load_record(tmp_path / "r.npz")
    assert (loaded.margins is None) == (margins is None)
    for name in (field.name for field in dataclasses.fields(TokenRecord) if getattr(made, field.name) is not None):
        saved, read = getattr(made, name), getattr(loaded, name)
        assert saved.dtype == read.dtype
        np.testing.assert_array_equal(saved, read)


def test_what_is_no_token_record_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", ids=np.arange(3))
    np.savez(
        tmp_path / "pickled.npz",
        **{name: np.array([{}], object) for name in [f.name for f in dataclasses.fields(TokenRecord)]},
    )
    (tmp_path / "text.npz").write_text("no")
    for name in ("other", "pickled", "text", "absent"):
        with pytest.raises(TrajectoryError):
            load_record(tmp_path / f"{name}.npz")
    with pytest.raises(TrajectoryError, match="roles is int8 \\[4\\]"):
        save_record(tmp_path / "x.npz", dataclasses.replace(record(), roles=np.zeros(4, np.int8)))
    with pytest.raises(TrajectoryError, match="margins is float32 \\[4\\]"):
        save_record(tmp_path / "x.npz", dataclasses.replace(record(), margins=np.zeros(4, np.float32)))
    with pytest.raises(TrajectoryError, match="ids is int64"):
        save_record(tmp_path / "x.npz", dataclasses.replace(record(), ids=np.arange(5)))


def test_a_token_record_that_would_unpack_to_too_much_or_is_damaged_is_refused(monkeypatch):
    record = TokenRecord(
        ids=np.zeros(100_000, np.int32),
        roles=np.zeros(100_000, np.int8),
        log_probs=np.zeros(100_000, np.float32),
        forced=np.zeros(100_000, bool),
        policy_step=np.zeros(100_000, np.int32),
        media_spans=np.zeros((0, 4), np.int32),
    )
    content = record_to_bytes(record)
    assert len(content) < 10_000
    np.testing.assert_array_equal(record_from_bytes(content).ids, record.ids)
    for damaged in (content[:-30], b"", b"PK", content[:500] + b"\xff" * 20 + content[520:]):
        with pytest.raises(TrajectoryError, match="not a token record"):
            record_from_bytes(damaged)
    monkeypatch.setattr("pixelis_jax.trajectory.io.RECORD_BYTES", 1_000_000)
    with pytest.raises(TrajectoryError, match="would unpack to 14"):
        record_from_bytes(content)
