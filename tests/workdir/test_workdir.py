"""A run's directory: configuration, atomic files, metrics, checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.path import atomicity

from pixelis_jax import workdir
from pixelis_jax.workdir import Workdir, WorkdirError, atomic

CONFIG = {"seed": 1, "optimizer": {"learning_rate": 0.1, "b1": 0.9}, "tokens": (128, 256)}


def _create(path: Path, config: dict = CONFIG, **kwargs) -> Workdir:
    return Workdir.create(path, config=config, environment={"seed": 1}, **kwargs)


def test_create_then_open(tmp_path: Path) -> None:
    _create(tmp_path / "a" / "run")
    opened = Workdir(tmp_path / "a" / "run")
    assert opened.config == CONFIG | {"tokens": [128, 256]}
    assert opened.environment == {"seed": 1}
    _create(tmp_path / "a" / "run")  # the same configuration, tuples and all


def test_another_config_is_refused_in_one_line_that_names_the_fields(tmp_path: Path) -> None:
    _create(tmp_path)
    other = {"seed": 2, "optimizer": {"learning_rate": 0.1, "b1": 0.8}, "tokens": (128, 256), "new": None}
    with pytest.raises(WorkdirError) as caught:
        _create(tmp_path, other)
    message = str(caught.value)
    assert "\n" not in message
    assert "seed (1 -> 2)" in message and "optimizer.b1 (0.9 -> 0.8)" in message and "new (absent -> null)" in message
    assert "learning_rate" not in message and "tokens" not in message
    assert Workdir(tmp_path).config["seed"] == 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_no_json_can_hold_is_refused_before_anything_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(WorkdirError, match="cannot be kept in config.json"):
        _create(tmp_path / "run", CONFIG | {"odd": value})
    assert not (tmp_path / "run").exists()


def test_fields_that_may_differ(tmp_path: Path) -> None:
    _create(tmp_path)
    changed = CONFIG | {"optimizer": {"learning_rate": 0.1, "b1": 0.8}}
    _create(tmp_path, changed, may_differ=("optimizer.b1",))


@pytest.mark.parametrize("make", ["missing", "file", "empty", "not_json", "not_object"])
def test_what_is_no_work_directory(tmp_path: Path, make: str) -> None:
    path = tmp_path / "run"
    if make == "file":
        path.write_text("x")
    elif make != "missing":
        path.mkdir()
    if make in ("not_json", "not_object"):
        (path / "config.json").write_text({"not_json": "{", "not_object": "[]"}[make])
    with pytest.raises(WorkdirError) as caught:
        Workdir(path)
    assert "\n" not in str(caught.value) and "run" in str(caught.value)


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(WorkdirError, match="not a work directory"):
        _create(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_run_that_fails_to_write_its_config_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = atomic.write_json

    def fail_on_config(path: Path, value: object) -> None:
        if path.name == "config.json":
            raise OSError("no space left on device")
        whole(path, value)

    monkeypatch.setattr(atomic, "write_json", fail_on_config)
    with pytest.raises(OSError, match="no space"):
        _create(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(WorkdirError):
        Workdir(tmp_path / "run")
    _create(tmp_path / "run")  # and the same command succeeds later


def test_metrics_are_closed_shards(tmp_path: Path) -> None:
    run = _create(tmp_path)
    writer = run.open_metrics()
    writer.write_scalars(1, {"loss": 2.0})
    assert run.metrics() == []  # nothing is half-written
    writer.flush()
    writer.write_scalars(2, {"loss": float("nan")})
    writer.close()
    assert sorted(item.name for item in tmp_path.glob("metrics-*")) == ["metrics-0-0.jsonl", "metrics-0-1.jsonl"]
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(1, 2.0), (2, "nan")]
    assert list((tmp_path / "tensorboard").iterdir())


def test_no_step_appears_twice_after_a_resume(tmp_path: Path) -> None:
    run = _create(tmp_path)
    writer = workdir.MetricsWriter(tmp_path, process=0, flush_rows=4)
    for step in range(1, 11):
        writer.write_scalars(step, {"loss": step})
    writer.close()
    again = workdir.MetricsWriter(tmp_path, process=0, flush_rows=4)
    again.resume(6)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]
    for step in range(7, 13):
        again.write_scalars(step, {"loss": -step})
    again.close()
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["loss"] for row in rows[5:8]] == [6, -7, -8]


def test_more_than_ten_shards_stay_in_order(tmp_path: Path) -> None:
    run = _create(tmp_path)
    for process in (0, 1):
        writer = workdir.MetricsWriter(tmp_path, process=process, flush_rows=1)
        for step in range(12):
            writer.write_scalars(step, {"loss": 0})
        writer.close()
    assert [row["step"] for row in run.metrics()] == [*range(12), *range(12)]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    run = _create(tmp_path)
    (tmp_path / "metrics-0-0.jsonl").write_text('{"step": 1')
    with pytest.raises(WorkdirError, match="metrics-0-0.jsonl is damaged"):
        run.metrics()


def _items(scale: float) -> dict:
    params = {"layers": {0: {"w": jnp.full((2, 3), scale)}, 1: {"w": jnp.ones((2, 3), jnp.bfloat16)}}}
    return {"params": params, "rng": {"key": jnp.arange(2, dtype=jnp.uint32)}}


def test_checkpoints_round_trip(tmp_path: Path) -> None:
    run = _create(tmp_path)
    checkpoints = run.open_checkpoints(keep=2)
    assert checkpoints.latest() is None
    for step in (3, 7, 9):
        checkpoints.save(step, arrays=_items(float(step)), values={"data_iter": {"next_index": step}})
    checkpoints.close()
    checkpoints = run.open_checkpoints()
    assert checkpoints.steps() == [7, 9]
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(0.0))
    arrays, values = checkpoints.restore(7, arrays=template, values=["data_iter"])
    jax.tree.map(np.testing.assert_array_equal, arrays, _items(7.0))
    assert arrays["params"]["layers"][1]["w"].dtype == jnp.bfloat16
    assert values == {"data_iter": {"next_index": 7}}
    with pytest.raises(WorkdirError, match=r"no complete checkpoint of step 3; complete are \[7, 9\]"):
        checkpoints.restore(3, arrays=template)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = _create(tmp_path).open_checkpoints()
    checkpoints.save(1, arrays=_items(1.0))
    for wrong in ({"params": {"other": jnp.zeros(3)}}, {"lora": {"w": jnp.zeros(3)}}):
        with pytest.raises(WorkdirError) as caught:
            checkpoints.restore(1, arrays=wrong)
        assert "\n" not in str(caught.value) and "does not fit" in str(caught.value)


def test_what_an_interrupted_save_left_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _create(tmp_path)
    checkpoints = run.open_checkpoints()
    checkpoints.save(1, arrays=_items(1.0))

    async def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    # Everything is written, and the rename that would make it a checkpoint fails.
    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(2, arrays=_items(2.0))
    monkeypatch.undo()
    assert run.open_checkpoints().steps() == [1]


def test_environment_names_what_a_run_ran_on() -> None:
    described = workdir.describe_environment(seed=5)
    assert described["seed"] == 5 and described["versions"]["jax"] == jax.__version__
    assert described["devices"]["count"] == jax.device_count()
    json.dumps(described, allow_nan=False)


def test_parameter_overview_counts() -> None:
    table = workdir.describe_parameters({"a": {"w": jnp.zeros((2, 3))}, "b": jnp.zeros(4)})
    assert "a/w" in table and "Total: 10" in table


def test_neither_tensorflow_nor_torch_is_imported() -> None:
    code = "import sys, pixelis_jax.workdir; sys.exit(bool({'tensorflow', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
