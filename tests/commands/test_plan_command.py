"""`pixelis plan`: what it refuses without compiling, its exit status, and, where libtpu is installed, the real thing."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from pixelis_jax import cli
from pixelis_jax.commands import plan
from pixelis_jax.commands.configs import load_config
from pixelis_jax.plan.topologies import PlanError
from pixelis_jax.policy import ConfigError
from pixelis_jax.sharding import MESH_AXES

CONFIG = "configs/plan_8b.py"
SMALL = (
    "programs=('sft','ccrft','reference','prefill','decode')", "execution.attention=xla", "mesh.data=1",
    "model=tiny", "layers=2", "patches=16", "train.rows=8", "train.tokens=64", "train.weighted=16", "train.frames=1",
    "sample.slots=8", "sample.capacity=64", "sample.prefill_rows=8", "sample.prefill_tokens=16",
)  # fmt: skip
LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            status = cli.main(["plan", *arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=missing.py", "--topology=v5e-8"], "no such file: missing.py"),
        ([f"--config={CONFIG}"], "--topology"),
        ([f"--config={CONFIG}", "--topology=v5e-9"], "v5e-8, v5e-16"),
        ([f"--config={CONFIG}", "--topology=a100-8"], "known: v4, v5e, v5p, v6e"),
        ([f"--config={CONFIG}", "--topology=v5e-8", "--config.mesh.tensor=3"], "does not cover 8 chips"),
        ([f"--config={CONFIG}", "--topology=v5e-8", "--config.programs=()"], "programs names none"),
        ([f"--config={CONFIG}", "--topology=v5e-8", "--json=tests"], "--json: tests is a directory"),
        ([f"--config={CONFIG}", "--topology=v5e-8", "--config.trian.rows=3"], "did you mean 'train"),
        (["--config=configs/tiny_sft.py", "--topology=v5e-8"], "has no field 'clip'"),
    ],
)
def test_bad_input_is_one_line_and_status_two(run, arguments, words):
    status, out, err = run(*arguments)
    assert status == 2 and words in err and err.count("\n") == 1 and not out


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install(run):
    status, _, err = run(f"--config={CONFIG}", "--topology=v5e-256")
    assert (status, err) == (2, "pixelis: the TPU compiler is not installed: pip install 'pixelis-jax[tpu]'\n")


def record(name, *, fits):
    memory = {"arguments": {"parameters": 1}, "padding": 0, "temporaries": 1, "outputs": 0, "aliased": 0, "code": 0, "total": 2}
    return {
        "name": name, "step": "a step", "fits": fits, "lower_s": 1.0, "compile_s": 1.0, "memory": memory, "compiled": None,
        "flops": dict.fromkeys(("vision", "layers", "attention", "unembedding", "total"), 1), "intensity": None,
        "roofline": {"compute_s": 1.0, "hbm_s": None, "ici_s": None, "step_s": 1.0, "limited_by": "compute", "mfu": None},
        "advice": [] if fits else ["less of it"],
    }  # fmt: skip


@pytest.mark.parametrize(("too_large", "status"), [((), 0), (("sft",), 1), (("sft", "ccrft", "reference"), 1)])
def test_status_says_whether_everything_fits(run, tmp_path, monkeypatch, too_large, status):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(plan, "compile_apart", lambda name, config, slice_: record(name, fits=name not in too_large))
    path = tmp_path / "made" / "plan.json"
    found, out, err = run(f"--config={CONFIG}", "--topology=v5e-256", f"--json={path}")
    assert found == status
    assert ("less of it" in out) == bool(too_large)
    assert "compiling sft for v5e-256" in err
    written = json.loads(path.read_text())
    assert written["schema"] == "pixelis.plan/1" and written["topology"]["chips"] == 256
    assert written["mesh"] == {"data": 2, "fsdp": 128, "tensor": 1, "context": 1, "expert": 1}
    assert [program["name"] for program in written["programs"]] == ["sft", "ccrft", "reference"]


@pytest.mark.parametrize(
    ("last", "words"), [("echo 'XlaError: it broke' >&2; exit 3", "XlaError: it broke"), ("kill -9 $$", "ended by signal 9")]
)
def test_a_compiler_that_dies_is_reported_in_one_line(run, tmp_path, monkeypatch, last, words):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: object())
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\necho some noise >&2\n{last}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(plan.sys, "executable", str(broken))
    status, _, err = run(f"--config={CONFIG}", "--topology=v5e-256")
    assert status == 2 and err.splitlines()[-1].startswith("pixelis: sft was not compiled: ") and words in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=qwen4", "no model 'qwen4' (known: qwen3_vl_2b"),
        ("programs=('sft','dream')", "no program 'dream' (known: sft, ccrft, reference"),
        ("trainable=adapters", "lora.rank is 0, but trainable is 'adapters'"),
        ("lora.base=int8", "lora.base is 'int8', but trainable is 'all'"),
        ("train.rows=9", "train.rows is 9, no multiple of the 8 parts"),
        ("execution.remat=some", "execution.remat is 'some'"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_compiled(override, words):
    from pixelis_jax.plan import programs

    config = load_config(plan.Path(CONFIG), [f"--config.{override}"])
    with pytest.raises((PlanError, ConfigError), match=re.escape(words)):
        programs.build("sft", config, AbstractMesh((1, 8, 1, 1, 1), tuple(MESH_AXES)))


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
def test_the_tpu_compiler_plans_the_tiny_policy(tmp_path):
    path = tmp_path / "plan.json"
    command = [sys.executable, "-m", "pixelis_jax", "plan", f"--config={CONFIG}", "--topology=v5e-8", f"--json={path}"]
    done = subprocess.run([*command, *(f"--config.{change}" for change in SMALL)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "".join(f"compiling {name} for v5e-8\n" for name in ("sft", "ccrft", "reference", "prefill", "decode"))
    for program in json.loads(path.read_text())["programs"]:
        assert program["fits"] and 0 < program["memory"]["total"] < 2**30
        assert (program["compiled"]["unknown_loops"] > 0) == (program["name"] in ("prefill", "decode"))
    # Far too long a sequence: the compiler refuses, and the status says so.
    long = [*SMALL, "programs=('reference',)", "train.tokens=65536", "train.rows=64"]
    done = subprocess.run([*command, *(f"--config.{change}" for change in long)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "reference does not fit:" in done.stdout
    assert json.loads(path.read_text())["programs"][0]["memory"]["total"] > 15.75 * 2**30
