"""One model under every name that it can have: the same logits and the same answer, wherever its weights lie."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelis_jax.commands import models
from pixelis_jax.policy import Precision
from pixelis_jax.policy.weights import abstract_model
from pixelis_jax.workdir import Checkpoints, Workdir, WorkdirError

SCENE = Path(__file__).parent.parent / "golden" / "scene.png"
TOTAL = 9


def params_of(loaded):
    return nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param))


def logits(loaded):
    """Of a prompt without pixels, `[1, T, V]`."""
    ids = jnp.arange(5, 12)[None]
    positions = jnp.broadcast_to(jnp.arange(7)[None, :, None], (1, 7, 3))
    hidden, _ = loaded.model(ids, positions)
    return np.asarray(loaded.model.unembed(hidden))


def save(path, step, params, **more):
    checkpoints = Checkpoints(path.resolve() / "checkpoints")
    checkpoints.save(step, arrays={"params": params, "heads": {"w": jnp.zeros(3)}}, **more)
    checkpoints.close()


@pytest.fixture
def stopped(base, tmp_path):
    """The work directory of a run that was stopped at step 7 of 9, with the rest of a save; its weights are those of `base`."""
    loaded = models.load(str(base))
    path = tmp_path / "runs" / "stopped"
    Workdir.create(path, config={"total_steps": TOTAL}, environment={"seed": 0})
    models.save_files(loaded.encoder, path / "policy")
    save(path, 3, jax.tree.map(jnp.zeros_like, params_of(loaded)))
    save(path, 7, params_of(loaded))
    (path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    return path


@pytest.fixture
def converted(run, base, tmp_path):
    assert run("convert", base, "converted", "--to=orbax")[0] == 0
    return tmp_path / "converted"


def test_every_name_gives_the_same_policy(run, base, stopped, converted, monkeypatch, capsys, tmp_path):
    """Published, Orbax, its only step, an unfinished run, its latest step, a shipped name: one policy."""
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "weights")
    shutil.copytree(base, tmp_path / "weights" / "small")
    shutil.copy(SCENE, tmp_path / "scene.png")
    names = {
        str(base): ("base", 0),
        "converted": ("converted", 0),
        "converted/checkpoints/0": ("converted", 0),
        "runs/stopped": ("stopped", 7),
        "runs/stopped/checkpoints/7": ("stopped", 7),
        "small": ("small", 0),
    }
    expected, asked = logits(models.load(str(base))), {}
    for name, (model, step) in names.items():
        loaded = models.load(name)
        assert (loaded.info.model, loaded.info.step) == (model, step)
        np.testing.assert_array_equal(logits(loaded), expected)
        assert loaded.encoder.files() == models.load(str(base)).encoder.files()
    capsys.readouterr()
    for name in ("small", "converted", "runs/stopped"):
        status, out, err = run("ask", "scene.png", "What is on the red card?", f"--model={name}", "--json")
        trace = json.loads(out)
        assert status in (0, 1) and trace["policy"]["model"] == Path(name).name
        asked[name] = [trace[part] for part in ("steps", "final", "answer", "stopped")]
        assert err.count("\n") == (name == "runs/stopped")
    assert asked["small"] == asked["converted"] == asked["runs/stopped"]
    assert not np.array_equal(logits(models.load("runs/stopped/checkpoints/3")), expected)


def test_an_unfinished_run_says_which_step_is_used_and_is_left_alone(stopped, capsys):
    before = sorted(stopped.rglob("*"))
    models.load(str(stopped))
    step = f"its latest checkpoint is of step 7 of {TOTAL}"
    assert capsys.readouterr().err == f"pixelis: {stopped} has not finished: {step}, which is used here\n"
    assert sorted(stopped.rglob("*")) == before  # the save that another process may be making, too
    save(stopped, 9, {"w": jnp.zeros(3)})  # the run itself clears it away
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == ["3", "7", "9"]


def test_a_run_may_move_with_its_checkpoints(stopped, base, tmp_path, monkeypatch):
    shutil.move(stopped, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "checkpoints" / "7")
    np.testing.assert_array_equal(logits(models.load(".")), logits(models.load(str(base))))


def test_a_run_from_before_has_its_tokenizer_in_the_finished_model(stopped, base):
    shutil.rmtree(stopped / "policy")
    with pytest.raises(Exception, match="found no config.json and tokenizer for this checkpoint"):
        models.load(str(stopped / "checkpoints" / "7"))
    shutil.copytree(base, stopped / "model")
    np.testing.assert_array_equal(logits(models.load(str(stopped / "checkpoints" / "7"))), logits(models.load(str(base))))


def test_the_files_of_a_run_are_whole_or_written_again(stopped, encoder):
    (stopped / "policy" / "config.json").unlink()  # the last one: a run that was killed before has none
    models.save_files(encoder, stopped / "policy")
    assert models.load(str(stopped)).encoder.model == encoder.model


def test_convert_takes_every_name_and_keeps_the_stored_format(run, base, stopped, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "weights")
    shutil.copytree(base, tmp_path / "weights" / "small")
    for name, out in (("small", "a"), ("runs/stopped/checkpoints/7", "b"), ("runs/stopped", "c")):
        assert run("convert", name, out, "--to=hf")[0] == 0
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / out / file.name).read_bytes(), file.name
    assert run("convert", "small", "half", "--to=orbax", "--dtype=bfloat16")[0] == 0
    half = models.read(models.locate("half"))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(models.load("half")))} == {jnp.dtype("float32")}


def damage(stopped, how, base):
    """Returns the name to ask for."""
    checkpoints = stopped / "checkpoints"
    if how == "no checkpoint":
        shutil.rmtree(checkpoints)
    elif how == "no complete checkpoint":
        for step in ("3", "7"):
            shutil.rmtree(checkpoints / step)
    elif how == "alone":
        shutil.move(checkpoints / "7", stopped.parent / "7")
        return "runs/7"
    elif how == "renamed":
        shutil.move(checkpoints / "7", checkpoints / "best")
        return "runs/stopped/checkpoints/best"
    elif how == "the folder":
        return "runs/stopped/checkpoints"
    elif how == "an item":
        return "runs/stopped/checkpoints/7/params"
    elif how == "no params":
        shutil.rmtree(checkpoints / "7" / "params")
    elif how == "no arrays":
        shutil.rmtree(checkpoints / "7" / "params")
        (checkpoints / "7" / "params").mkdir()
    elif how == "no tokenizer":
        (stopped / "policy" / "tokenizer.json").unlink()
    elif how == "another shape":
        config = json.loads((stopped / "policy" / "config.json").read_text())
        config["text_config"]["intermediate_size"] *= 2
        (stopped / "policy" / "config.json").write_text(json.dumps(config))
    elif how == "another depth":
        config = json.loads((stopped / "policy" / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] += 1
        (stopped / "policy" / "config.json").write_text(json.dumps(config))
    elif how == "no config":
        (stopped / "policy" / "config.json").write_text("{")
    return "runs/stopped"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "no checkpoint",
            "runs/stopped: a work directory without model/ and without a complete checkpoint: its run has just begun",
        ),
        ("no complete checkpoint", "and without a complete checkpoint"),
        ("alone", "runs/7: found no config.json and tokenizer for this checkpoint; they lie in policy/"),
        ("renamed", "found no config.json and tokenizer for this checkpoint"),
        ("the folder", "not a work directory; a checkpoint is one of runs/stopped/checkpoints/STEP"),
        ("an item", "not a model directory"),
        ("no params", "does not fit: it has no params (it has heads)"),
        ("no arrays", "cannot be read"),
        ("no tokenizer", "no tokenizer.json"),
        ("no config", "config.json"),
        ("another shape", "has shape (128, 384), expected (128, 768)"),
        ("another depth", "decoder/layers/1/attn/k_norm/scale is missing"),
    ],
)
def test_what_is_refused(run, base, stopped, tmp_path, how, words):
    shutil.copy(SCENE, tmp_path / "scene.png")
    name = damage(stopped, how, base)
    status, _, err = run("ask", "scene.png", "What?", f"--model={name}")
    *notices, line = err.splitlines()
    assert status == 2 and line.startswith("pixelis: ") and words in line, err
    assert all("has not finished" in notice for notice in notices)
    status, _, err = run("convert", name, "out", "--to=hf")
    # A conversion needs no tokenizer.
    assert status == (0 if how == "no tokenizer" else 2) and (tmp_path / "out").exists() == (status == 0), err


def test_a_conversion_without_its_checkpoint(refused, converted):
    shutil.rmtree(converted / "checkpoints" / "0")
    refused("converted: its checkpoints/ holds no complete checkpoint", "convert", "converted", "out", "--to=hf")


def test_a_checkpoint_of_many_devices_is_read_on_one(base, tmp_path):
    script = """
import pathlib, sys
from pixelis_jax import sharding
from pixelis_jax.commands import models
from pixelis_jax.workdir import Checkpoints
import jax
from flax import nnx
loaded = models.load(sys.argv[1])
sharding.shard_model(loaded.model, sharding.create_mesh(data=1, fsdp=2, tensor=2))
params = nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param))
print(sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)))
models.save_files(loaded.encoder, pathlib.Path(sys.argv[2]))
Checkpoints(sys.argv[2] + "/checkpoints").save(2, arrays={"params": params})
"""
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(base), str(tmp_path / "sharded")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and int(done.stdout) > 10, done.stderr
    np.testing.assert_array_equal(logits(models.load(str(tmp_path / "sharded"))), logits(models.load(str(base))))


def test_what_a_checkpoint_holds_is_known_without_reading_it(stopped, encoder):
    checkpoints = Checkpoints(stopped / "checkpoints", read_only=True)
    expected = nnx.to_pure_dict(nnx.state(abstract_model(encoder.model, Precision()), nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    stored = checkpoints.stored(7, "params")
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in stored.items()} == {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, leaf.dtype) for path, leaf in leaves
    }
    with pytest.raises(WorkdirError, match=r"it has no lora \(it has heads, params\)"):
        checkpoints.stored(7, "lora")
    checkpoints.close()
