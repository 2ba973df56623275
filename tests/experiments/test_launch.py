"""The launcher: which commands it prints and starts, and what it refuses. It knows nothing of JAX or of the package."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "experiments" / "launch.py"
# Stands for `pixelis`: writes down how it was started, and ends as the file of its work directory's name says.
RECORDER = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
workdir = next(a.partition("=")[2] for a in sys.argv if a.startswith("--workdir="))
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
record = {{"argv": sys.argv[1:], "environment": {{name: os.environ[name] for name in names if name in os.environ}}}}
with open("started.jsonl", "a") as file:
    file.write(json.dumps(record) + "\\n")
ends = pathlib.Path("ends.json")
status = json.loads(ends.read_text()).get(pathlib.Path(workdir).name, 0) if ends.exists() else 0
if status == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
    pathlib.Path("ready").touch()
    time.sleep(60)
sys.exit(status)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty directory with a config, a configs/ that Vertex would find, and a command that records how it is started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.py").write_text("")
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    return tmp_path


def launch(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(LAUNCHER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def started(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "started.jsonl").read_text().splitlines()]


def test_a_single_job_is_the_command_itself(folder):
    done = launch("--config=sft.py", "--workdir=runs/sft", "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pixelis train --config=sft.py --workdir=runs/sft\n"
    assert not (folder / "runs").exists()


def test_a_sweep_is_every_combination_in_order(folder):
    done = launch(
        "--config=sft.py", "--workdir=runs/rates/", "--sweep=optimizer.learning_rate=5e-4,1e-3", "--sweep=total_steps=500",
        "--seeds=0,2", "--dry_run",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"pixelis train --config=sft.py --workdir=runs/rates/learning_rate={rate},seed={seed} "
        f"--config.optimizer.learning_rate={rate} --config.total_steps=500 --config.seed={seed}"
        for rate in ("5e-4", "1e-3")
        for seed in (0, 2)
    ]


def test_fields_that_end_alike_are_named_in_full(folder):
    done = launch("--config=sft.py", "--workdir=r", "--sweep=optimizer.b1=0,1", "--sweep=loss.b1=2,3", "--dry_run")
    assert "--workdir=r/optimizer.b1=0,loss.b1=2 " in done.stdout.splitlines()[0]


def test_what_is_printed_a_shell_reads_as_what_is_started(folder):
    """Blanks, quotes, brackets and `$` arrive as they were given."""
    values = ["(64, 128)", "'a, b'", "$HOME `x`", "[(1, 2), 3]"]
    arguments = ["--config=sft.py", "--workdir=my runs", f"--sweep=loss.weights={','.join(values)}", "--pixelis=./recorder"]
    printed = launch(*arguments, "--dry_run")
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert [line[-1] for line in lines] == [f"--config.loss.weights={value}" for value in values]
    directories = [line[3] for line in lines]
    assert directories[0] == "--workdir=my runs/weights=64_128" and len(set(directories)) == 4
    through_shell = subprocess.run(printed.stdout, shell=True, check=True, cwd=folder)
    assert through_shell.returncode == 0
    by_shell = started(folder)
    (folder / "started.jsonl").unlink()
    assert launch(*arguments).returncode == 0
    assert started(folder) == by_shell == [{"argv": line[1:], "environment": {}} for line in lines]


def test_processes_of_one_job_know_of_each_other(folder):
    arguments = ("--config=sft.py", "--workdir=runs/two", "--processes=3", "--pixelis=./recorder")
    printed = launch(*arguments, "--dry_run").stdout.splitlines()
    assert [line.partition("JAX_PROCESS_ID=")[2] for line in printed] == [
        f"{index} ./recorder train --config=sft.py --workdir=runs/two" for index in range(3)
    ]
    assert launch(*arguments).returncode == 0
    environments = [record["environment"] for record in started(folder)]
    assert sorted(environment["JAX_PROCESS_ID"] for environment in environments) == ["0", "1", "2"]
    assert {environment["JAX_NUM_PROCESSES"] for environment in environments} == {"3"}
    (coordinator,) = {environment["JAX_COORDINATOR_ADDRESS"] for environment in environments}
    assert coordinator.startswith("localhost:")


@pytest.mark.parametrize(
    ("ends", "status", "count", "words"),
    [
        ({}, 0, 3, ""),
        ({"seed=1": 1}, 1, 3, "1 of 3 diverged or failed: seed=1"),
        ({"seed=0": 1, "seed=2": 1}, 1, 3, "2 of 3 diverged or failed: seed=0; seed=2"),
        ({"seed=1": 2}, 2, 2, "job 2 of 3 ended with status 2; no further one is started"),
        ({"seed=0": 3, "seed=1": 1}, 3, 1, "job 1 of 3 ended with status 3"),
    ],
)
def test_one_after_the_other_until_one_cannot_go_on(folder, ends, status, count, words):
    (folder / "ends.json").write_text(json.dumps(ends))
    done = launch("--config=sft.py", "--workdir=r", "--seeds=0,1,2", "--pixelis=./recorder")
    assert done.returncode == status and words in done.stderr and done.stderr.count("\n") == bool(words)
    assert [record["argv"][2] for record in started(folder)] == [f"--workdir=r/seed={seed}" for seed in range(count)]
    assert [line.partition("]")[0] for line in done.stdout.splitlines()] == [f"[{n}/3" for n in range(1, count + 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_first_and_then_the_sweep(folder, number):
    (folder / "ends.json").write_text('{"seed=0": "wait"}')
    command = [sys.executable, str(LAUNCHER), "--config=sft.py", "--workdir=r", "--seeds=0,1", "--pixelis=./recorder"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGTERM:
        process.terminate()  # a scheduler tells the launcher alone
    else:
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells everyone
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3 and "job 1 of 2 ended with status 3" in err and err.count("\n") == 1
    assert len(started(folder)) == 1


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--config is missing", ["--workdir=r"]),
        ("--workdir is missing", ["--config=sft.py"]),
        ("no such file: none.py", ["--config=none.py", "--workdir=r"]),
        ("no such file: .", ["--config=.", "--workdir=r"]),
        ("unexpected argument 'seed=1'", ["--config=sft.py", "--workdir=r", "seed=1"]),
        ("Unknown command line flag 'seed'. Did you mean: seeds ?", ["--config=sft.py", "--workdir=r", "--seed=1"]),
        ("Unknown command line flag", ["--config=sft.py", "--workdir=r", "--config.seed=1"]),
        ("write seed, without config.", ["--config=sft.py", "--workdir=r", "--sweep=config.seed=1"]),
        ("expected FIELD=VALUE", ["--config=sft.py", "--workdir=r", "--sweep=seed"]),
        ("expected FIELD=VALUE", ["--config=sft.py", "--workdir=r", "--sweep=--seed=1"]),
        ("expected FIELD=VALUE", ["--config=sft.py", "--workdir=r", "--sweep=a b=1"]),
        ("a value is empty", ["--config=sft.py", "--workdir=r", "--sweep=seed=1,,2"]),
        ("a value is empty", ["--config=sft.py", "--workdir=r", "--sweep=seed="]),
        ("left open in '(1,2'", ["--config=sft.py", "--workdir=r", "--sweep=seed=(1,2"]),
        ("left open", ["--config=sft.py", "--workdir=r", "--sweep=seed='1"]),
        ("seed is given twice (--seeds gives it too)", ["--config=sft.py", "--workdir=r", "--sweep=seed=1", "--seeds=2"]),
        ("'x' is not a whole number", ["--config=sft.py", "--workdir=r", "--seeds=x"]),
        ("would share the work directory r/seed=1", ["--config=sft.py", "--workdir=r", "--seeds=1,2,1"]),
        ("would share the work directory r/a=1_2", ["--config=sft.py", "--workdir=r", "--sweep=a=1 2,1/2"]),
        ("--processes=0: at least 1", ["--config=sft.py", "--workdir=r", "--processes=0"]),
        ("only with --executor=local", ["--config=sft.py", "--workdir=r", "--processes=2", "--executor=xm_local"]),
        ("invalid literal", ["--config=sft.py", "--workdir=r", "--processes=two"]),
        ("should be one of <local|xm_local|vertex>", ["--config=sft.py", "--workdir=r", "--executor=slurm"]),
        ("only with --executor=vertex", ["--config=sft.py", "--workdir=r", "--resources=tpu_v3=8"]),
        ("relative to the checkout", ["--config=sft.py", "--workdir=/gcs/b/r", "--executor=vertex", "--resources=tpu_v3=8"]),
        ("no command './none'", ["--config=sft.py", "--workdir=r", "--pixelis=./none"]),
    ],
)
def test_what_is_refused(folder, words, arguments):
    before = sorted(folder.rglob("*"))
    done = launch(*arguments)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("launch: ") and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    assert sorted(folder.rglob("*")) == before


VERTEX = ("--config=configs/tiny_sft.py", "--executor=vertex", "--workdir=/gcs/bucket/r", "--seeds=0,1")


def test_a_dry_run_for_vertex_needs_no_xmanager():
    done = launch(*VERTEX, "--resources=tpu_v3=8", "--dry_run", cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines() == [
        f"pixelis train --config=configs/tiny_sft.py --workdir=/gcs/bucket/r/seed={seed} --config.seed={seed}" for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("/gcs/BUCKET/...", [*VERTEX, "--resources=tpu_v3=8", "--workdir=runs/r"]),
        ("needs --resources", VERTEX),
        ("'tpu_v3' is not NAME=AMOUNT", [*VERTEX, "--resources=tpu_v3"]),
        ("'tpu_v3=0' is not NAME=AMOUNT", [*VERTEX, "--resources=tpu_v3=0"]),
    ],
)
def test_what_vertex_refuses(words, arguments):
    done = launch(*arguments, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr


def test_without_xmanager_one_line_says_how_to_get_it(folder):
    code = "import runpy, sys; sys.modules['xmanager'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [str(LAUNCHER), "--config=sft.py", "--workdir=r", "--executor=xm_local", "--pixelis=./recorder"]
    code = f"import sys; sys.argv = {arguments!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install -r experiments/requirements-xmanager.txt" in done.stderr
    assert (ROOT / "experiments" / "requirements-xmanager.txt").exists()


def test_it_starts_without_the_package_and_without_jax(folder):
    code = (
        f"import runpy, sys; sys.argv = [{str(LAUNCHER)!r}, '--config=sft.py', '--workdir=r', '--dry_run']\n"
        f"try: runpy.run_path({str(LAUNCHER)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'pixelis_jax', 'tools_host', 'jax', 'numpy', 'xmanager'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_says_everything():
    done = launch("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"--{name}" in done.stdout for name in ("config", "workdir", "sweep", "seeds", "executor", "[no]dry_run"))


def test_the_real_command_names_a_wrong_field(folder):
    """`pixelis train` itself says it, and no further job is started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(LAUNCHER), f"--config={ROOT}/configs/tiny_sft.py", "--workdir=r"]
    command += ["--sweep=optimizer.learning_rat=1e-3,1e-4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 2 and "did you mean 'optimizer.learning_rate'?" in done.stderr
    assert "job 1 of 2 ended with status 2" in done.stderr and not (folder / "r").exists()
