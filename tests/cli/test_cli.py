import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixelis_jax import cli

GOLDEN = Path(__file__).parent.parent / "golden"
SCENE, TRACE = str(GOLDEN / "scene.png"), str(GOLDEN / "trace.jsonl")
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def pixelis(*arguments, **options):
    command = [sys.executable, "-m", "pixelis_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False, **options)


@pytest.fixture
def run(capsys):
    """Runs a command in this process: exit status, standard output, standard error."""

    def call(*arguments):
        try:
            status = cli.main(list(arguments))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def test_help_is_complete(run):
    status, out, _ = run("--help")
    assert status == 0 and all(name in out for name in cli.COMMANDS)
    assert run()[0] == 2 and run("--version")[1].startswith("pixelis ")


@pytest.mark.parametrize("command", [*([name] for name in cli.COMMANDS), ["tools", "run"], ["tools", "list"]])
def test_every_command_explains_itself(run, command):
    status, out, err = run(*command, "--help")
    assert status == 0 and err == "" and f"pixelis {' '.join(command)}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relpay", TRACE], "did you mean 'replay'"),
        (["tools", "run", "zom", SCENE], "did you mean 'zoom'"),
        (["tools", "run", "zoom", "missing.png"], "missing.png: No such file"),
        (["tools", "run", "zoom", str(GOLDEN)], "a directory"),
        (["tools", "run", "zoom", TRACE], "trace.jsonl"),
        (["tools", "run", "zoom", SCENE, "--args={"], "--args is not valid JSON"),
        (["tools", "run", "zoom", SCENE, "--args=[1]"], "--args must be a JSON object"),
        (["tools", "run", "zoom", SCENE], "missing_argument"),
        (["tools", "run", "zoom", SCENE, '--args={"bbox_2d": [0, 0, 9]}'], "bad_box"),
        (["tools", "run", "zoom", SCENE, '--args={"bbox": [0, 0, 9, 9]}'], "unknown_argument"),
        (["tools", "run", "track", SCENE, '--args={"bbox_2d": [0, 0, 9, 9], "time_s": 0}'], "wrong_kind"),
        (["tools", "run", "zoom", SCENE, "--imports=no_such_lab.tools"], "no module 'no_such_lab.tools'"),
        (["tools", "list", "--what"], "unrecognized arguments: --what"),
        (["tools", "list", "--config.x=1"], "unrecognized arguments: --config.x=1"),
        (["tools"], "required"),
        (["replay", "none.jsonl"], "none.jsonl"),
        (["replay", SCENE], "line 1"),
        (["replay", TRACE, "--media_root=/no/such/place"], "--media_root"),
        (["replay", TRACE, "--media_root=/"], "scene.png"),
        (["replay", TRACE, "--tolerance=loose"], "invalid choice"),
        (["report", "/no/such/place"], "no such file"),
        (["convert", "/no/such/place", "x", "--to=hf"], "no model '/no/such/place'"),
        (["convert", str(GOLDEN), "x", "--to=orbax"], "config.json"),
        (["bench", "nothing"], "invalid choice"),
        (["bench", "tools", "--scenes=0"], "--scenes"),
        (["bench", "tools", "--scenes=1", f"--json={SCENE}/figures.json"], "--json"),
        (["tools", "lst"], "did you mean 'list'?"),
        (["tools", "list", "--jsn"], "unrecognized arguments: --jsn; did you mean '--json'?"),
        (["replay", TRACE, "--tolerence=exact"], "did you mean '--tolerance'?"),
        (["replay", TRACE, "--tolerance=num"], "did you mean 'numeric'?"),
        (["data", "build", "--out=new", "--split=tst"], "did you mean 'test'?"),
        (["bench", "tool"], "did you mean 'tools'?"),
        (["bench", "scenes", "--split=tst"], "did you mean 'test'?"),
        (["bench", "scenes", "--chain=orcle"], "did you mean 'oracle'?"),
        (["ask", SCENE, "--config.seed=1"], "unrecognized arguments: --config.seed=1"),
        (["ask", "b\udcffad.png", "What?"], "not UTF-8"),
        (["ask", SCENE, "q\udcff?"], "not UTF-8"),
        (["tools", "run", "zoom", SCENE, '--args={"label": "\\ud800"}'], "half of a surrogate pair"),
        (["tools", "run", "zoom", SCENE, '--args={"label": "a", "label": "b"}'], "a key stands twice"),
        (["tools", "run", "zoom", SCENE, "--args=" + "[" * 3000], "--args is not valid JSON: maximum recursion"),
        (["report", TRACE, "--max_traces=0"], "--max_traces must be at least 1, got 0"),
        (["report", TRACE, "--max_traces=-1"], "--max_traces must be at least 1, got -1"),
        (["report", TRACE, "--max_votes=0"], "--max_votes must be at least 1, got 0"),
        (["report", TRACE, "--media_root=/no/such/place"], "--media_root"),
        (["report", TRACE, "--out=."], "--out: . is a directory"),
        (["report", TRACE, f"--out={SCENE}/r.html"], "--out"),
        (["data", "build", "--out=new", "--seed=4294967296"], "--seed must lie in 0 .. 2^32 - 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith("pixelis: ") and err.count("\n") == 1 and words in err
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_no_place_for_a_page_and_an_empty_trace_has_none(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jsonl").touch()
    status, _, err = run("report", TRACE, f"--out={tmp_path / 'pipe'}")
    assert status == 2 and "no ordinary file" in err and (tmp_path / "pipe").is_fifo()
    status, _, err = run("report", str(tmp_path / "empty.jsonl"))
    assert status == 2 and "holds no trajectory" in err and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:", "SyntaxError"),
        ("x = y", "NameError: name 'y' is not defined"),
        ("raise ValueError('no licence')", "ValueError: no licence"),
        ("raise SystemExit(7)", "SystemExit: 7"),
    ],
)
def test_a_module_of_the_users_that_fails_is_their_error(run, tmp_path, monkeypatch, text, words):
    (tmp_path / "bad_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = run("tools", "list", "--imports=bad_lab")
    assert status == 2 and err.count("\n") == 1 and f"--imports: bad_lab: {words}" in err


def test_tools_list(run):
    status, out, _ = run("tools", "list")
    assert status == 0 and all(f"{name} (" in out for name in ("zoom", "segment", "track", "ocr", "localize", "properties"))
    # In a process of its own: other tests register tools of theirs in this one.
    command = [sys.executable, "-m", "pixelis_jax", "tools", "list", "--json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [schema["function"]["name"] for schema in json.loads(listed)]
    assert names == ["zoom", "segment", "track", "ocr", "localize", "properties"]


def test_tools_run_looks_at_real_pixels_and_writes_what_it_found(run, tmp_path):
    out_dir = tmp_path / "new" / "out"
    status, out, _ = run("tools", "run", "segment", SCENE, '--args={"bbox_2d": [100, 160, 370, 510]}', f"--out={out_dir}")
    assert status == 0 and "region 1" in out
    assert {path.name for path in out_dir.iterdir()} == {"observation.json", "media-2.png", "regions-1.png"}
    record = json.loads((out_dir / "observation.json").read_text())
    assert record["observation"]["regions"][0]["media"] == 1 and len(record["media"]) == 2


def test_replay_tells_identical_from_different(run, tmp_path):
    status, out, _ = run("replay", TRACE, "--tolerance=numeric")
    assert status == 0 and "2 trajectories, 0 different" in out
    lines = Path(TRACE).read_text().replace('"text":"HK3V9"', '"text":"HK3V8"')
    (tmp_path / "t.jsonl").write_text(lines)
    status, out, _ = run("replay", str(tmp_path / "t.jsonl"), "--tolerance=numeric", f"--media_root={GOLDEN}")
    assert status == 1 and "image: DIFFERENT" in out and "clip: identical" in out
    assert "steps[1].observation.regions[0].text: recorded 'HK3V8', now 'HK3V9'" in out


def test_report_is_written_where_it_was_asked_for(run, tmp_path):
    status, out, _ = run("report", TRACE, f"--out={tmp_path / 'a' / 'r.html'}")
    assert status == 0 and "2 of 2 trajectories" in out
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["r.html"]
    shutil.copy(TRACE, tmp_path / "t.jsonl")
    assert run("report", str(tmp_path / "t.jsonl"), f"--media_root={GOLDEN}")[0] == 0
    assert (tmp_path / "report.html").exists()


def test_the_module_starts_workers_without_running_itself_again():
    done = pixelis("replay", TRACE, "--tolerance=numeric")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("image: identical") == 1


def test_a_reader_that_leaves_early_causes_no_noise():
    command = f"{sys.executable} -m pixelis_jax tools list --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert done.stderr == ""


def test_an_interrupt_is_quiet(monkeypatch, run):
    monkeypatch.setattr(cli, "_run", lambda argv: signal.raise_signal(signal.SIGINT))
    assert run("tools", "list") == (130, "", "")


def test_an_error_of_our_own_is_not_dressed_up_as_the_users(monkeypatch):
    def broken(argv):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["tools", "list"])


def test_the_command_line_starts_without_heavy_imports():
    heavy = "{'jax', 'flax', 'cv2', 'numpy', 'transformers'}"
    code = f"import sys, pixelis_jax.cli; pixelis_jax.cli.main(['--help']); sys.exit(bool({heavy} & set(sys.modules)))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0 and time.monotonic() - start < 20


@pytest.mark.slow
def test_convert_there_and_back_changes_no_byte(run, tmp_path):
    from flax import nnx

    from pixelis_jax import policy
    from pixelis_jax.policy import weights

    model = policy.Qwen3VL(policy.tiny(vocab_size=256), rngs=nnx.Rngs(0))
    (tmp_path / "tokenizer.json").write_text("{}")
    weights.save(model, tmp_path / "a", extra_files=[tmp_path / "tokenizer.json"])
    assert run("convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to=orbax")[0] == 0
    assert run("convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to=hf")[0] == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "c").iterdir()) and "tokenizer.json" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.slow
def test_bench_prints_ratios_and_writes_the_figures(run, tmp_path):
    status, out, _ = run("bench", "tools", "--scenes=1", f"--json={tmp_path / 'b.json'}")
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert status == 0 and {"zoom", "segment", "track", "ocr", "localize", "properties"} <= {row["tool"] for row in rows}
    assert all(row["right_interval"][0] <= row["right"] <= row["right_interval"][1] + 1e-4 for row in rows)
    assert all(row["median_ratio"] == pytest.approx(row["median_ms"] / 30, abs=1e-3) for row in rows) and "/budget" in out


def test_the_interval_of_a_share_by_hand():
    from pixelis_jax.commands.bench import wilson

    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
