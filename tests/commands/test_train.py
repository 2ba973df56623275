"""Training from the command line: both phases, going on, and everything that is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from pixelis_jax.commands import models
from pixelis_jax.workdir import Workdir, WriterLock

SFT = """
from configs import tiny_sft

def get_config():
    config = tiny_sft.get_config()
    config.init_from = {base!r}
    config.scenes.counts = {{"read": 2, "shape": 1}}
    config.scenes.styles = {{"direct": 1.0}}
    config.scenes.workers = 0
    config.total_steps = 3
    config.optimizer.warmup_steps = 1
    config.buckets.tokens = (128,)
    config.buckets.frames = (1,)
    config.buckets.tokens_per_batch = 128
    config.log_every = 1
    return config
"""

LOOK = """
from configs import tiny_base

def get_config():
    config = tiny_base.get_config()
    config.scenes.counts = {"read": 1}
    config.scenes.workers = 0
    config.total_steps = 1
    config.optimizer.warmup_steps = 0
    config.buckets.tokens = (192,)
    config.buckets.frames = (1,)
    config.buckets.tokens_per_batch = 192
    return config
"""


@pytest.fixture
def sft(base, tmp_path):
    path = tmp_path / "sft.py"
    path.write_text(SFT.format(base=str(base)))
    return f"--config={path}"


def steps(workdir):
    return [row["step"] for row in Workdir(workdir).metrics()]


def parameters(name):
    return jax.tree.leaves(nnx.state(models.load(name).model))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_sft_stops_moves_goes_on_and_ends_in_a_model(run, refused, sft, base, encoder, capsys, tmp_path):
    status, out, _ = run("train", sft, "--workdir=a", "--config.max_minutes=0")
    assert status == 3 and "stopped at step 1" in out and steps("a") == [1]
    loaded = models.load("a")
    assert capsys.readouterr().err == "pixelis: a has not finished: its latest checkpoint is of step 1 of 3, which is used here\n"
    assert (loaded.info.model, loaded.info.step) == ("a", 1) and loaded.encoder.files() == encoder.files()
    first = parameters("a/checkpoints/1")
    assert capsys.readouterr().err == "" and same(first, jax.tree.leaves(nnx.state(loaded.model)))
    words = "a has not finished: its latest checkpoint is of step 1 of 3, later it will be another; let it finish, or give a/che"
    refused(words, "train", sft, "--workdir=new", "--config.init_from=a")
    os.rename("a", "b")  # nothing in a run depends on where it lies
    status, out, err = run("train", sft, "--workdir=b")
    assert status == 0 and "going on from step 1" in out and steps("b") == [1, 2, 3]
    # Its warm-up begins at a rate of 0, so the first step changes nothing; the last one is the finished model.
    assert same(first, parameters(str(base))) and same(first, parameters("b/checkpoints/1"))
    assert same(parameters("b/checkpoints/3"), parameters("b")) and not same(first, parameters("b"))
    loaded = models.load("b")
    assert loaded.info.model == "b" and loaded.encoder.files() == encoder.files()
    written = (tmp_path / "b" / "model" / "config.json").stat().st_mtime_ns
    assert run("train", sft, "--workdir=b")[0] == 0  # a third time there is nothing left to do
    assert (tmp_path / "b" / "model" / "config.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "b" / "config.json").read_text())["data"] == ""
    status, _, err = run("train", sft, "--workdir=b", "--config.seed=1")
    assert status == 2 and err == (
        "pixelis: b was made by another config: seed (0 -> 1); give another directory or the same config\n"
    )


def test_adapters_beside_a_base_in_few_bits_on_packed_rows_end_in_a_model(run, sft, base):
    changes = ("trainable=adapters", "lora.rank=2", "lora.base=int8", "buckets.pack=true", "optimizer.warmup_steps=0")
    assert run("train", sft, "--workdir=a", *(f"--config.{change}" for change in changes))[0] == 0
    assert steps("a") == [1, 2, 3] and not same(parameters("a"), parameters(str(base)))
    assert {str(leaf.dtype) for leaf in parameters("a")} == {"float32"}


def test_look_starts_from_a_new_policy(run, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("pixelis_jax.data.look.tiny_encoder", lambda: encoder)
    (tmp_path / "look.py").write_text(LOOK)
    assert run("train", "--config=look.py", "--workdir=runs/look")[0] == 0
    assert (tmp_path / "runs" / "look" / "data" / "look.array_record").exists()
    assert models.load("runs/look").model.config == encoder.model


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no field 'sed'; did you mean 'seed'?", ["--config.sed=1"]),
        ("did you mean 'optimizer.learning_rate'?", ["--config.optimizer.learning_rat=1"]),
        ("total_steps=abc", ["--config.total_steps=abc"]),
        ("Missing value", ["--config.total_steps"]),
        ("warmup_steps (1)", ["--config.total_steps=1"]),
        ("log_every must be at least 1", ["--config.log_every=0"]),
        ("buckets.pack needs loss.patches_weight 0, got 0.5", ["--config.buckets.pack=true", "--config.loss.patches_weight=0.5"]),
        ("lora.base is 'int8', but trainable is 'all'", ["--config.lora.base=int8"]),
        (
            "lora.base is 'nf3', known are int8, int4",
            ["--config.trainable=adapters", "--config.lora.rank=4", "--config.lora.base=nf3"],
        ),
        ("phase is 'rft', expected one of look, sft", ["--config.phase=rft"]),
        ("seed must be a whole number in 0 .. 2^32 - 1, got -1", ["--config.seed=-1"]),
        ("seed must be a whole number in", [f"--config.scenes.seed={2**32}"]),
        ("buckets.tokens must be whole numbers of at least 1, got ()", ["--config.buckets.tokens=()"]),
        ("buckets.frames must be whole numbers of at least 1, got (0, 4)", ["--config.buckets.frames=(0, 4)"]),
        ("buckets.tokens_per_batch must be a whole number of at least 1", ["--config.buckets.tokens_per_batch=0"]),
        ("loss.chunk must be a whole number of at least 1, got 0", ["--config.loss.chunk=0"]),
        ("optimizer.learning_rate must be a number above 0, got -1.0", ["--config.optimizer.learning_rate=-1.0"]),
        ("optimizer.learning_rate must be a number above 0, got nan", ["--config.optimizer.learning_rate=nan"]),
        ("optimizer.b1 must be at least 0 and less than 1", ["--config.optimizer.b1=1.0"]),
        ("max_minutes must be a number of at least 0, got -1.0", ["--config.max_minutes=-1"]),
        ("pixels.std must be numbers above 0", ["--config.pixels.std=(0.5, 0.0, 0.5)"]),
        ("scenes.styles.direct must be a number", ["--config=styles.py"]),
        ("the field 'log_evry' is not known; did you mean 'log_every'?", ["--config=typo.py"]),
        ("the field 'optimizer.lerning_rate' is not known; did you mean 'optimizer.learning_rate'?", ["--config=typo2.py"]),
        ("no such file: none.array_record", ["--config.data=none.array_record"]),
        ("cannot read records from sft.py", ["--config.data=sft.py"]),
        ("no model 'tiny_bse'", ["--config.init_from=tiny_bse"]),
        ("not a model directory", ["--config.init_from=sft.py"]),
        ("does not cover", ["--config.mesh.data=77"]),
        ("read: cannot make -1 scenes", ["--config.scenes.counts.read=-1"]),
        ("scenes.styles must be shares", ["--config.scenes.styles.direct=-1.0"]),
        ("answer_only.read is a share, got 2.0", ["--config=lazy.py"]),
        ("scenes.reframed is a share, got 1.5", ["--config.scenes.reframed=1.5"]),
        ("no split 'shaft' (known: train, val, test, shift)", ["--config.scenes.split=shaft"]),
        ("scenes.kinds must be among", ["--config=kinds.py"]),
        ("is a file", ["--workdir=sft.py"]),
        ("not a work directory", ["--workdir=."]),
        ("no such file: none.py", ["--config=none.py"]),
        ("no such file: .", ["--config=."]),
        ("ModuleNotFoundError", ["--config=import.py"]),
        ("SyntaxError", ["--config=syntax.py"]),
        ("no function get_config()", ["--config=empty.py"]),
        ("returns int, expected a ConfigDict", ["--config=three.py"]),
        ("no field 'blind'", ["--config=few.py"]),
        ("total_steps is '10', expected a number", ["--config=text.py"]),
        ("phase is None", ["--config=eval.py"]),
    ],
)
def test_what_is_refused(refused, sft, tmp_path, words, arguments):
    files = {
        "import": "import no_such_thing",
        "syntax": "def get_config(:",
        "empty": "x = 1",
        "three": "def get_config(): return 3",
        "few": "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'phase': 'sft', 'seed': 0})",
        "text": "from configs import tiny_sft\ndef get_config():\n"
        "    config = tiny_sft.get_config()\n    del config.total_steps\n    config.total_steps = '10'\n    return config",
        "eval": "from configs.eval_scenes import get_config",
        "lazy": "from configs import tiny_sft\ndef get_config():\n"
        "    config = tiny_sft.get_config()\n    config.scenes.answer_only = {'read': 2.0}\n    return config",
        "styles": "from configs import tiny_sft\ndef get_config():\n"
        "    config = tiny_sft.get_config()\n    config.scenes.styles = {'direct': 'most'}\n    return config",
        "typo": "from configs import tiny_sft\ndef get_config():\n"
        "    config = tiny_sft.get_config()\n    config.log_evry = 5\n    return config",
        "typo2": "from configs import tiny_sft\ndef get_config():\n"
        "    config = tiny_sft.get_config()\n    config.optimizer.lerning_rate = 0.1\n    return config",
        "kinds": "from configs import tiny_base\ndef get_config():\n"
        "    config = tiny_base.get_config()\n    config.scenes.kinds = ('images',)\n    return config",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = [argument for argument in (sft, "--workdir=new") if argument.partition("=")[0] not in given]
    refused(words, "train", *defaults, *arguments)


def test_a_shipped_name_is_guessed(refused, sft, base, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    shutil.copytree(base, tmp_path / "weights" / "tiny_base")
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "weights")
    refused("did you mean 'tiny_base'?", "train", sft, "--workdir=new", "--config.init_from=tiny_bse")


def test_a_run_that_diverges_fails_without_a_traceback(run, sft, monkeypatch):
    def diverge(*_, **__):
        raise FloatingPointError("step 2 has loss nan")

    monkeypatch.setattr("pixelis_jax.commands.train.train", diverge)
    assert run("train", sft, "--workdir=new") == (1, "", "pixelis: step 2 has loss nan\n")


def test_a_directory_that_is_being_written_is_left_alone(run, sft, tmp_path):
    (tmp_path / "a").mkdir()
    with WriterLock(tmp_path / "a" / ".lock", tmp_path / "a"):
        status, _, err = run("train", sft, "--workdir=a")
    assert (status, err) == (2, f"pixelis: a is being written by process {os.getpid()}; stop it or wait for it\n")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".lock", "config.json", "environment.json"]


def start(*arguments):
    command = [sys.executable, "-m", "pixelis_jax", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ
    )


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_goes_on(run, sft, tmp_path):
    many = (sft, "--workdir=a", "--config.total_steps=400", "--config.checkpoint_every_steps=5")
    process = start("train", *many)
    wait_for(tmp_path / "a" / "checkpoints" / "10", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, out, _ = run("train", *many, "--config.max_minutes=0")
    assert status == 3 and "going on from step" in out


@pytest.mark.slow
def test_the_first_interrupt_saves_and_is_quiet(sft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start("train", sft, "--workdir=a", "--config.total_steps=400", "--config.checkpoint_every_steps=5")
    wait_for(tmp_path / "a" / "checkpoints" / "5", process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (3, "")
    assert max(Workdir("a").open_checkpoints().steps()) >= 5
