"""Evaluation, scenes and demo from the command line, with one or two scenes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pixelis_jax.commands import models

EVAL = """
from ml_collections import ConfigDict

def get_config():
    counts = {"read": 1, "shape": 1}
    asked = {"samples": 2, "with_tools": True, "no_tools": True, "constrain": False}
    return ConfigDict({"split": "test", "counts": counts, "workers": 0, "slots": 2, **asked})
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "eval.py").write_text(EVAL)
    return "--config=eval.py"


def test_eval_writes_results_and_traces_that_can_be_moved(run, config, base):
    status, out, err = run("eval", config, f"--model={base}", "--workdir=a", "--timeline=timeline.json")
    assert (status, err) == (0, "") and "a/report.html: 8 of 8 trajectories" in out
    events = json.loads(Path("timeline.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} >= {"decode", "dispatch", "layout", "prompts"}
    curves: dict[str, list[float]] = {}
    for event in events:
        if event["ph"] == "C":
            curves.setdefault(event["name"], []).append(event["args"][event["name"]])
    assert max(curves["slots decoding"]) == max(curves["slots taken"]) == 2 and max(curves["tokens a second"]) > 0
    assert curves["tokens prefilled"] == sorted(curves["tokens prefilled"]) and curves["tokens prefilled"][-1] > 0
    assert max(curves["bytes of the cache in use"]) > 0 and set(curves) >= {"compilations", "episodes that wait for a tool"}
    results = json.loads(Path("a/results.json").read_text())["results"]
    assert [results[name]["n"] for name in ("with_tools", "without_tools")] == [2, 2]
    assert results["without_tools"]["mean_chain"] == 0 and "tool_gain" in results
    assert list(results["with_tools"]["families"]) == ["read", "shape"]
    assert (results["sampled"]["n"], results["sampled"]["samples"]) == (2, 2)
    assert results["sampled"]["best"]["accuracy"] >= results["sampled"]["single"]["accuracy"]
    lines = [json.loads(line) for line in Path("a/trajectories/with_tools-0-0.jsonl").read_text().splitlines()]
    assert [line["sampling"]["family"] for line in lines] == ["read", "shape"]
    assert all(line["sampling"]["truth"] and line["scores"]["task"] in (0.0, 1.0) for line in lines)
    # Other questions or another model would be mixed with these.
    status, _, err = run("eval", config, f"--model={base}", "--workdir=a", "--config.counts.read=2")
    assert status == 2 and "counts.read (1 -> 2)" in err and err.count("\n") == 1
    other = shutil.copytree(base, Path("other"))
    status, _, err = run("eval", config, f"--model={other}", "--workdir=a")
    assert status == 2 and "model (" in err
    status, _, err = run("eval", config, "--model=a", "--workdir=b")
    assert status == 2 and "a work directory without model/" in err
    os.rename("a", "c")
    assert run("replay", "c/trajectories/with_tools-0-0.jsonl")[0] == 0


def test_eval_keeps_calls_to_their_grammar(run, config, base):
    fields = ("--config.constrain=True", "--config.no_tools=False", "--config.samples=0")
    status, _, err = run("eval", config, f"--model={base}", "--workdir=kept", *fields)
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in Path("kept/trajectories/with_tools-0-0.jsonl").read_text().splitlines()]
    assert [line["sampling"]["constrain"] for line in lines] == [True, True]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no split 'tets'; did you mean 'test'?", ["--config.split=tets"]),
        ("the field 'slotz' is not known; did you mean 'slots'?", ["--config=slotz.py"]),
        ("slots must be at least 1", ["--config.slots=0"]),
        ("there must be at least one scene", ["--config.counts.read=0", "--config.counts.shape=0"]),
        ("no field 'constrain'", ["--config=train.py"]),
        ("eval.py is a file", ["--workdir=eval.py"]),
        ("no model 'none'", ["--model=none"]),
        ("required: --model", []),
    ],
)
def test_what_eval_refuses(refused, config, base, tmp_path, words, arguments):
    (tmp_path / "train.py").write_text("from configs.tiny_sft import get_config")
    (tmp_path / "slotz.py").write_text(EVAL.replace('"slots": 2', '"slots": 2, "slotz": 3'))
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = [config, "--workdir=new"] + ([f"--model={base}"] if arguments else [])
    refused(words, "eval", *[option for option in defaults if option.partition("=")[0] not in given], *arguments)


def test_data_build_and_audit(run, refused):
    one = ("--count=1", "--family=read", "--workers=0")
    assert run("data", "build", "--out=ds", "--split=val", "--split=test", *one)[:2] == (0, "ds\n")
    status, out, _ = run("data", "audit", "ds")
    assert status == 0 and json.loads(out)["media"] == {"val": 1, "test": 1}
    refused("another --seed", "data", "build", "--out=ds", "--split=val", "--seed=1", *one)
    # The same scene in two splits is what the audit is for.
    shutil.rmtree("ds/val")
    shutil.copytree("ds/test", "ds/val")
    status, out, _ = run("data", "audit", "ds")
    assert status == 1 and json.loads(out)["pairs"][0]["near_duplicates"]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("at least one scene", ["build", "--out=new", "--count=0"]),
        ("did you mean 'read'?", ["build", "--out=new", "--family=reed"]),
        ("invalid choice", ["build", "--out=new", "--split=none"]),
        ("workers must be 0 or more", ["build", "--out=new", "--workers=-1"]),
        ("--seed must lie in", ["build", "--out=new", "--seed=-1"]),
        ("file is not a directory", ["build", "--out=file"]),
        ("holds files but no build.json", ["build", "--out=.", "--count=1"]),
        ("other/build.json cannot be read", ["build", "--out=other", "--count=1"]),
        ("binary/build.json cannot be read", ["build", "--out=binary", "--count=1"]),
        ("built with another --seed", ["build", "--out=list", "--count=1"]),
        ("required: --out", ["build"]),
        ("no such directory: none", ["audit", "none"]),
        ("needs at least two; built are: none", ["audit", "."]),
    ],
)
def test_what_data_refuses(refused, tmp_path, words, arguments):
    (tmp_path / "file").write_text("")
    for name, content in (("other", b"{"), ("binary", b"\xff\xfe"), ("list", b"[0]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "build.json").write_bytes(content)
    refused(words, "data", *arguments)


def test_demo_refuses(refused, tmp_path, monkeypatch):
    refused("--steps must be at least 1", "demo", "--steps=0")
    refused("--iterations must be at least 1", "demo", "--iterations=0")
    refused("--queries must be at least 1", "demo", "--queries=0")
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "none")
    refused("no model 'tiny_base'", "demo", "--steps=1")


@pytest.mark.slow
@pytest.mark.timeout(900)  # all phases, twice: 270 s were seen beside other work
def test_demo_runs_to_its_report_and_guards_its_directory(run, base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "weights" / "tiny_base")
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "weights")
    small = ("--scenes=1", "--steps=2", "--iterations=1", "--queries=1", "--questions=1")
    status, out, err = run("demo", *small)
    assert (status, err) == (0, "") and Path("demo/report.html").exists() and "demo/report.html: " in out
    table = [line for line in out.splitlines() if "%  " in line]
    both = [f"{phase}, {tools} tools" for phase in ("sft", "ccrft") for tools in ("without", "with")]
    shifted = [f"{phase}-shift, with tools" for phase in ("ccrft", "ttrl")]
    assert [line.split("  ")[0] for line in table] == ["tiny_base, without tools", *both, *shifted]
    written = json.loads(Path("demo/results.json").read_text())
    assert set(written["results"]) == {"tiny_base", "sft", "ccrft", "ccrft-shift", "ttrl-shift"} and written["last_start_s"] > 0
    assert written["results"]["sft"]["with_tools"]["n"] == 9
    assert run("demo", *small)[0] == 0
    status, _, err = run("demo", *small[:4], "--questions=2")
    assert status == 2 and "questions (1 -> 2)" in err
