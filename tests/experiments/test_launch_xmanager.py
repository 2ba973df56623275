"""The launcher with XManager; runs where experiments/requirements-xmanager.txt is installed, and is skipped elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xmanager")

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "experiments" / "launch.py"
RECORDER = f"""#!{sys.executable}
import json, sys
with open("started.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(sys.argv[-1] == "--config.seed=7")
"""
VERTEX = ("--config=configs/tiny_sft.py", "--executor=vertex", "--workdir=/gcs/bucket/r")


def launch(home: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """XManager keeps its database of experiments in the home directory."""
    command = [sys.executable, str(LAUNCHER), *arguments]
    environment = os.environ | {"HOME": str(home), "GOOGLE_APPLICATION_CREDENTIALS": "", "NO_GCE_CHECK": "true"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd, env=environment)


@pytest.fixture
def local(tmp_path):
    (tmp_path / "sft.py").write_text("")
    (tmp_path / "recorder").write_text(RECORDER)
    (tmp_path / "recorder").chmod(0o755)

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        fixed = ("--config=sft.py", "--workdir=my runs", "--executor=xm_local", "--pixelis=./recorder")
        done = launch(tmp_path, *fixed, *arguments, cwd=tmp_path)
        log = tmp_path / "started.jsonl"
        return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return run


def test_jobs_of_this_machine_get_their_arguments_unharmed(local):
    done, started = local("--sweep=loss.weights=(1, 2),$HOME", "--seeds=0,1")
    assert done.returncode == 0, done.stderr
    assert started == [
        ["train", "--config=sft.py", f"--workdir=my runs/weights={name},seed={seed}", f"--config.loss.weights={weights}"]
        + [f"--config.seed={seed}"]
        for weights, name in (("(1, 2)", "1_2"), ("$HOME", "HOME"))
        for seed in (0, 1)
    ]


def test_a_job_that_fails_ends_the_sweep(local):
    done, started = local("--seeds=0,7,8")
    assert done.returncode == 1 and len(started) == 2
    assert "returned non-zero code: 1; no further job is started" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("TPU v2 and v3 on Vertex AI, not tpu_v5e", ("--resources=tpu_v5e=8",)),
        ("Unknown ResourceType 'tpu_v9'", ("--resources=tpu_v9=8",)),
        ("Accelerator already set", ("--resources=v100=1,tpu_v3=8",)),
        ("credentials", ("--resources=tpu_v3=8",)),
        ("Unknown command line flag 'xm_foo'", ("--resources=tpu_v3=8", "--xm_foo")),
    ],
)
def test_what_vertex_refuses(tmp_path, words, arguments):
    done = launch(tmp_path, *VERTEX, *arguments)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("launch: ") and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_machine_that_vertex_is_asked_for(monkeypatch):
    """XManager's own translation of what the launcher asks for."""
    from xmanager import xm, xm_local
    from xmanager.cloud import vertex

    monkeypatch.syspath_prepend(str(LAUNCHER.parent))
    import launch as launcher

    def machine(**resources: int) -> dict:
        executor = xm_local.Vertex(requirements=launcher.vertex_requirements(resources))
        return vertex.get_machine_spec(xm.Job(executable=None, executor=executor))

    pod = machine(tpu_v3=32)
    assert (pod["accelerator_type"].name, pod["accelerator_count"], pod["machine_type"]) == ("TPU_V3", 32, "cloud-tpu")
    assert machine(cpu=16, ram=60) == {"machine_type": "n1-standard-16"}
