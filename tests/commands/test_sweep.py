"""Sweeps: what they multiply out to, what is refused before anything runs, and how runs end, with a stand-in for the runs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixelis_jax.commands import jobs, sweep
from pixelis_jax.workdir import Workdir

BASE = "from configs.tiny_sft import get_config"
AXES = (
    '{"rate": {"low": {"optimizer.learning_rate": 5e-4}, "high": {"optimizer.learning_rate": 1}}, '
    '"seed": {"10": {"seed": 10}, "2": {"seed": 2}}}'
)
NAMES = ["rate=low,seed=10", "rate=low,seed=2", "rate=high,seed=10", "rate=high,seed=2"]
# Stands for `pixelis`: writes down how it was started, and ends as ends.json says for the run. "done" also writes what training
# writes last; a command that was stopped goes on to its end the next time.
STUB = """
import json, pathlib, signal, sys, time
workdir = pathlib.Path(next(a.partition("=")[2] for a in sys.argv if a.startswith("--workdir=")))
with open("started.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
ends = pathlib.Path("ends.json")
end = json.loads(ends.read_text()).get(workdir.name, "done") if ends.exists() else "done"
workdir.mkdir(parents=True, exist_ok=True)
if end == "wait" and not (workdir / "checkpoint").exists():
    def save(*_):
        (workdir / "checkpoint").touch()
        sys.exit(3)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path("ready").touch()
    time.sleep(60)
if end == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("ready").touch()
    time.sleep(60)
if end in ("done", "wait"):
    (workdir / "model").mkdir()
    (workdir / "model" / "config.json").touch()
    sys.exit(0)
print(f"pixelis: {workdir.name} went wrong", file=sys.stderr)
sys.exit(end)
"""


def sweep_file(path, *, command="train", base="base.py", fixed="{}", axes=AXES, more=""):
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    config = ConfigDict(convert_dict=False)\n"
        f"    config.command = {command!r}\n    config.base = {base!r}\n    config.fixed = {fixed}\n    config.axes = {axes}\n"
        f"    {more}\n    return config\n"
    )


@pytest.fixture
def stub(run, tmp_path, monkeypatch):
    """A sweep of four runs in an empty directory, whose runs are started as the stand-in."""
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "stub.py").write_text(STUB)
    sweep_file(tmp_path / "rates.py")
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, str(tmp_path / "stub.py")))
    return tmp_path


def ends(folder, **by_name):
    (folder / "ends.json").write_text(json.dumps({name.replace("__", ","): end for name, end in by_name.items()}))


def started(folder):
    path = folder / "started.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started_names(folder):
    return [Path(word.partition("=")[2]).name for call in started(folder) for word in call if word.startswith("--workdir=")]


def table(out):
    """The states in the table at the end of the output."""
    lines = out[out.index("run  ") :].splitlines()[1:]
    return {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line)[1] for line in lines}


def test_every_combination_in_order_as_a_shell_reads_it(run, stub):
    sweep_file(stub / "rates.py", fixed='{"buckets.tokens": (64, 128), "blind": True, "loss": {"beta": 0.2}, "data": ""}')
    status, out, err = run("sweep", "--config=rates.py", "--workdir=my runs", "--print")
    assert (status, err) == (0, "")
    fixed = ["--config.buckets.tokens=(64, 128)", "--config.blind=true", "--config.loss.beta=0.2", "--config.data="]
    assert [shlex.split(line) for line in out.splitlines()] == [
        ["pixelis", "train", "--config=base.py", f"--workdir=my runs/rate={rate},seed={seed}", *fixed]
        + [f"--config.optimizer.learning_rate={value}", f"--config.seed={seed}"]
        for rate, value in (("low", "0.0005"), ("high", "1"))
        for seed in (10, 2)
    ]
    assert not (stub / "my runs").exists() and started(stub) == []


def test_what_is_printed_is_what_is_started(run, stub):
    printed = [shlex.split(line)[1:] for line in run("sweep", "--config=rates.py", "--print")[1].splitlines()]
    assert run("sweep", "--config=rates.py")[0] == 0
    assert started(stub) == printed and len(printed) == 4
    assert printed[0][2] == "--workdir=runs/rates/rate=low,seed=10"
    assert run("sweep", "--config=rates.py", "--print")[1] == ""  # nothing is left to do


def test_a_failed_run_does_not_stop_the_others_and_is_run_again(run, stub):
    ends(stub, **{"rate=low__seed=2": 1, "rate=high__seed=10": 3})
    status, out, err = run("sweep", "--config=rates.py", "--workdir=r")
    assert started_names(stub) == NAMES and status == 3
    assert list(table(out).values()) == ["done", "failed", "stopped", "done"] and list(table(out)) == NAMES
    assert "failed   pixelis: rate=low,seed=2 went wrong\n" in out
    assert err == (
        "pixelis: 1 of 4 runs failed: rate=low,seed=2\npixelis: 1 of 4 runs are not finished; the same command goes on\n"
    )
    assert (stub / "r" / "rate=low,seed=2.log").read_text() == "pixelis: rate=low,seed=2 went wrong\n"
    ends(stub, **{"rate=low__seed=2": 1})
    status, out, err = run("sweep", "--config=rates.py", "--workdir=r")
    assert started_names(stub)[4:] == [NAMES[1], NAMES[2]] and status == 1 and err.count("\n") == 1
    (stub / "ends.json").unlink()
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0
    assert started_names(stub)[6:] == [NAMES[1]]
    assert (stub / "r" / "rate=low,seed=2.log").read_text().count("went wrong") == 2  # logs are added to


@pytest.mark.parametrize(
    ("only", "taken"),
    [
        ("rate=low", ["rate=low,seed=2"]),
        ("seed=2,rate=low", ["rate=low,seed=2"]),
        ("low", ["rate=low,seed=2", "rate=lower,seed=2"]),
    ],
)
def test_whole_labels_are_looked_for_before_texts(run, stub, only, taken):
    rates = '"rate": {"low": {"optimizer.learning_rate": 5e-4}, "lower": {"optimizer.learning_rate": 1e-4}}'
    sweep_file(stub / "two.py", axes=f'{{{rates}, "seed": {{"2": {{"seed": 2}}}}}}')
    assert run("sweep", "--config=two.py", f"--only={only}")[0] == 0
    assert started_names(stub) == taken


def test_states_are_listed_before_between_and_after(run, stub):
    status, out, err = run("sweep", "--config=rates.py", "--list")
    assert (status, err, set(table(out).values())) == (0, "", {"waiting"}) and not (stub / "runs").exists()
    assert run("sweep", "--config=rates.py", "--only=seed=10")[0] == 0
    assert list(table(run("sweep", "--config=rates.py", "--list")[1]).values()) == ["done", "waiting", "done", "waiting"]
    (stub / "runs" / "rates" / NAMES[1]).mkdir()  # another scheduler has begun it
    assert list(table(run("sweep", "--config=rates.py", "--list", "--only=low")[1]).values()) == ["done", "stopped"]
    states = json.loads((stub / "runs" / "rates" / "states.json").read_text())
    assert set(states) == {NAMES[0], NAMES[2]} and states[NAMES[0]]["status"] == 0


def test_runs_can_be_added_but_not_changed(run, refused, stub):
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0
    sweep_file(stub / "rates.py", axes=AXES[:-1] + ', "init": {"base": {"init_from": "tiny_base"}}}')
    refused("r is of another sweep: it has a run rate=", "sweep", "--config=rates.py", "--workdir=r")
    sweep_file(stub / "rates.py", fixed='{"total_steps": 500}')
    words = "seed=10 has total_steps (absent -> 500); give another directory"
    refused(words, "sweep", "--config=rates.py", "--workdir=r")
    (stub / "other.py").write_text(BASE)
    sweep_file(stub / "rates.py", base="other.py")
    for action in ((), ("--print",), ("--list",)):
        refused("r is of another sweep: its base is base.py, not other.py", "sweep", "--config=rates.py", "--workdir=r", *action)
    sweep_file(stub / "rates.py", axes=AXES[:-2] + ', "3": {"seed": 3}}}')
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0
    assert started_names(stub)[4:] == ["rate=low,seed=3", "rate=high,seed=3"]
    assert len(json.loads((stub / "r" / "sweep.json").read_text())["runs"]) == 6


def test_eval_takes_its_model_from_a_variant(run, refused, stub):
    (stub / "eval.py").write_text("from configs.eval_scenes import get_config")
    (stub / "mine").mkdir()
    models = '{"model": {"mine": {"model": "mine"}, "base": {"model": "tiny_base", "slots": 8}}}'
    sweep_file(stub / "models.py", command="eval", base="eval.py", axes=models)
    status, out, _ = run("sweep", "--config=models.py", "--workdir=r", "--print")
    assert status == 0 and out.splitlines() == [
        "pixelis eval --config=eval.py --model=mine --workdir=r/model=mine",
        "pixelis eval --config=eval.py --model=tiny_base --workdir=r/model=base --config.slots=8",
    ]
    sweep_file(stub / "models.py", command="eval", base="eval.py", axes=models.replace("tiny_base", "tiny_bse"))
    refused("models.py: model=base: no model 'tiny_bse'", "sweep", "--config=models.py")
    sweep_file(stub / "models.py", command="eval", base="eval.py", axes='{"slots": {"few": {"slots": 2}}}')
    refused("slots=few: no 'model' among its changes", "sweep", "--config=models.py")


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("rates.py: seed=0: base.py has no field 'sed'; did you mean 'seed'?", {"axes": '{"seed": {"0": {"sed": 0}}}'}),
        ("base.py has no field 'optimizer.rate'", {"fixed": '{"optimizer.rate": 0.1}'}),
        ("seed=b: base.py: flag --config.seed=1.5", {"axes": '{"seed": {"a": {"seed": 1}, "b": {"seed": 1.5}}}'}),
        ("seed=b: base.py: seed must be a whole number in 0", {"axes": '{"seed": {"a": {"seed": 1}, "b": {"seed": -1}}}'}),
        ("low,seed=10: no model 'tiny_bse': neither", {"fixed": '{"init_from": "tiny_bse"}'}),
        ("a=1 and b=1 both change 'seed'", {"axes": '{"a": {"1": {"seed": 1}}, "b": {"1": {"seed": 2}}}'}),
        ("fixed and seed=1 both change 'seed'", {"fixed": '{"seed": 3}', "axes": '{"seed": {"1": {"seed": 1}}}'}),
        ("axes.seed: '../x' cannot stand in a directory's name", {"axes": '{"seed": {"../x": {"seed": 1}}}'}),
        ("axes.a b: 'a b' cannot stand", {"axes": '{"a b": {"1": {"seed": 1}}}'}),
        ("cannot be as long as", {"axes": '{"seed": {"1" * 300: {"seed": 1}}}'}),
        ("axes is empty", {"axes": "{}"}),
        ("axes.seed is [0, 1], expected a dict of variants", {"axes": '{"seed": [0, 1]}'}),
        ("axes.seed.0 is 0, expected a dict of fields", {"axes": '{"seed": {"0": 0}}'}),
        ("axes.seed.0: seed is None, expected a number", {"axes": '{"seed": {"0": {"seed": None}}}'}),
        ("fixed: scenes.answer_only is {}, expected", {"fixed": '{"scenes.answer_only": {}}'}),
        ("command is 'ask', expected one of train, eval", {"command": "ask"}),
        ("base: no such file: none.py", {"base": "none.py"}),
        ("the field 'axis' is not known; did you mean 'axes'?", {"more": "config.axis = {}"}),
        ("rates.py has no field 'fixed'", {"more": "del config.fixed"}),
        ("axes is 3, expected a dict", {"axes": "3"}),
    ],
)
def test_what_is_refused_before_anything_runs(refused, stub, words, changes):
    sweep_file(stub / "rates.py", **changes)
    refused(words, "sweep", "--config=rates.py", "--workdir=r")
    assert started(stub) == []


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no such file: none.py", ["--config=none.py"]),
        ("--jobs must be at least 1, got 0", ["--jobs=0"]),
        ("--max_minutes must be at least 0, got -1", ["--max_minutes=-1"]),
        ("--max_minutes must be at least 0, got nan", ["--max_minutes=nan"]),
        ("--only=sed=2: no run has this in its name; did you mean 'seed=2'?", ["--only=sed=2"]),
        ("not allowed with argument", ["--print", "--list"]),
        ("is a file", ["--workdir=base.py"]),
        ("holds files but no sweep.json", ["--workdir=."]),
    ],
)
def test_options_that_are_refused(refused, stub, words, arguments):
    refused(words, "sweep", *([] if arguments[0].startswith("--config") else ["--config=rates.py"]), *arguments)


def test_a_damaged_record_is_one_line(run, refused, stub):
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0
    (stub / "r" / "sweep.json").write_text("{")
    refused("sweep.json is damaged", "sweep", "--config=rates.py", "--workdir=r")


def sweeping(folder, *arguments):
    """The command in a process of its own, whose runs are started as the stand-in."""
    code = (
        "import sys; from pixelis_jax import cli; from pixelis_jax.commands import sweep; "
        f"sweep.PROGRAM = (sys.executable, {str(folder / 'stub.py')!r}); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "sweep", "--config=rates.py", "--workdir=r", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_its_checkpoint_and_then_the_sweep(run, refused, stub, number):
    ends(stub, **{"rate=low__seed=2": "wait"})
    process = sweeping(stub)
    wait_for(stub / "ready", process)
    refused("a run that one left behind, is at work there", "sweep", "--config=rates.py", "--workdir=r")
    assert list(table(run("sweep", "--config=rates.py", "--workdir=r", "--list")[1]).values())[:2] == ["done", "running"]
    os.killpg(process.pid, number)  # as a terminal or a scheduler does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and list(table(out).values()) == ["done", "stopped", "waiting", "waiting"]
    assert err == "pixelis: 3 of 4 runs are not finished; the same command goes on\n"
    assert (stub / "r" / NAMES[1] / "checkpoint").exists()
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0
    assert started_names(stub) == [*NAMES[:2], *NAMES[1:]]


def test_a_second_interrupt_ends_it_at_once(stub):
    ends(stub, **{"rate=low__seed=10": "stubborn"})
    process = sweeping(stub)
    wait_for(stub / "ready", process)
    process.send_signal(signal.SIGINT)
    time.sleep(5 * jobs.POLL_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 3 and table(out)[NAMES[0]] == "stopped" and started_names(stub) == NAMES[:1]


def test_a_run_that_a_killed_sweep_left_behind_keeps_others_out(refused, run, stub):
    ends(stub, **{"rate=low__seed=10": "wait"})
    process = sweeping(stub)
    wait_for(stub / "ready", process)
    process.kill()
    process.communicate()
    refused("a run that one left behind, is at work there", "sweep", "--config=rates.py", "--workdir=r")
    (left,) = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _runs(pid, stub / "stub.py")]
    os.kill(left, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while _runs(left, stub / "stub.py"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert table(run("sweep", "--config=rates.py", "--workdir=r", "--list")[1])[NAMES[0]] == "stopped"
    assert run("sweep", "--config=rates.py", "--workdir=r")[0] == 0


def _runs(pid, program):
    try:
        return str(program).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def test_the_time_limit_stops_the_run_with_its_checkpoint(run, stub):
    ends(stub, **{"rate=low__seed=10": "wait"})
    status, out, _ = run("sweep", "--config=rates.py", "--workdir=r", f"--max_minutes={3 / 60}")
    assert status == 3 and list(table(out).values()) == ["stopped", "waiting", "waiting", "waiting"]
    assert (stub / "r" / NAMES[0] / "checkpoint").exists() and started_names(stub) == NAMES[:1]
    assert run("sweep", "--config=rates.py", "--workdir=r", "--max_minutes=0")[0] == 3 and len(started(stub)) == 1


def test_several_at_a_time(run, stub):
    """Two runs that wait for each other's directory end only if they are there together."""
    (stub / "stub.py").write_text(
        "import pathlib, sys, time\n"
        'workdir = pathlib.Path(next(a.partition("=")[2] for a in sys.argv if a.startswith("--workdir=")))\n'
        '(workdir / "model").mkdir(parents=True)\n'
        "deadline = time.monotonic() + 20\n"
        "while len(list(workdir.parent.glob('rate=*,seed=*/model'))) < 2:\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.02)\n"
        '(workdir / "model" / "config.json").touch()\n'
    )
    status, out, _ = run("sweep", "--config=rates.py", "--only=low", "--jobs=2")
    assert status == 0 and list(table(out).values()) == ["done", "done"]


def test_checking_touches_no_device(stub):
    """A TPU belongs to one process: what the sweep held, its runs could not get."""
    code = (
        "from pixelis_jax import cli; from jax._src import xla_bridge; "
        "assert cli.main(['sweep', '--config=rates.py', '--print']) == 0; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


def test_the_shipped_sweep_is_six_runs(run, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    status, out, err = run("sweep", "--config=configs/sweeps/tiny_sft.py", "--list")
    assert (status, err) == (0, "") and len(table(out)) == 6 and "tower=frozen,seed=2" in out


@pytest.mark.slow
def test_two_real_runs_from_start_to_model(run, base, tmp_path):
    (tmp_path / "base.py").write_text(
        "from configs import tiny_sft\ndef get_config():\n    config = tiny_sft.get_config()\n"
        f"    config.init_from = {str(base)!r}\n"
        "    config.scenes.counts = {'read': 2}\n    config.scenes.styles = {'direct': 1.0}\n    config.scenes.workers = 0\n"
        "    config.total_steps = 2\n    config.optimizer.warmup_steps = 1\n    config.buckets.tokens = (128,)\n"
        "    config.buckets.frames = (1,)\n    config.buckets.tokens_per_batch = 128\n    config.log_every = 1\n"
        "    return config\n"
    )
    sweep_file(tmp_path / "seeds.py", axes='{"seed": {"0": {"seed": 0}, "1": {"seed": 1, "optimizer.learning_rate": 1e-4}}}')
    status, out, err = run("sweep", "--config=seeds.py", "--workdir=r")
    assert (status, err) == (0, ""), (out, (tmp_path / "r" / "seed=0.log").read_text())
    assert table(out) == {"seed=0": "done", "seed=1": "done"}
    assert [row["step"] for row in Workdir(tmp_path / "r" / "seed=1").metrics()] == [1, 2]
    config = json.loads((tmp_path / "r" / "seed=1" / "config.json").read_text())
    assert (config["seed"], config["optimizer"]["learning_rate"]) == (1, 1e-4)
