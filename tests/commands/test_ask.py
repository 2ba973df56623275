"""Asking: the steps as they happen, the trace, and everything that is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from scripted_engine import ScriptedEngine

GOLDEN = Path(__file__).parent.parent / "golden"
ZOOM = 'Look. <tool_call>\n{"name": "zoom", "arguments": {"media": 1, "bbox_2d": [500, 140, 960, 440]}}\n</tool_call>'


@pytest.fixture
def image(tmp_path):
    (tmp_path / "photos").mkdir()
    return shutil.copy(GOLDEN / "scene.png", tmp_path / "photos" / "card.png")


@pytest.fixture
def script(monkeypatch):
    """Puts written turns in the place of the policy's."""

    def write(*turns):
        def make(model, encoder, *, slots, capacity, grammar, tracer):
            return ScriptedEngine(encoder, [turns], slots=slots, capacity=capacity)

        monkeypatch.setattr("pixelis_jax.rollout.agent.make_engine", make)

    return write


def test_steps_and_answer_are_shown_and_the_trace_replays(run, base, image, script, tmp_path):
    script(ZOOM, ZOOM.replace("zoom", "enhance"), "It says so. <answer>HK3V9</answer>")
    (tmp_path / "traces").mkdir()
    status, out, err = run("ask", image, "What is written?", f"--model={base}", "--trace=traces/t.jsonl")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["  Look.", '  > zoom{"media": 1, "bbox_2d": [500, 140, 960, 440]}']
    assert "unknown_tool" in out and lines[-1] == "HK3V9"
    trace = json.loads((tmp_path / "traces" / "t.jsonl").read_text())
    assert trace["media"][0]["uri"] == "../photos/card.png" and trace["policy"]["model"] == "base"
    (tmp_path / "elsewhere").mkdir()
    for name in ("photos", "traces"):
        shutil.move(name, tmp_path / "elsewhere" / name)
    status, out, _ = run("replay", "elsewhere/traces/t.jsonl")
    assert status == 0 and "card-0-0: identical (2 calls)" in out


def test_constraining_needs_llguidance_and_says_so(run, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    status, out, err = run("ask", image, "What is written?", "--constrain")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err == "pixelis: calls can be kept to a grammar only with llguidance: pip install 'pixelis-jax[grammar]'\n"


def test_json_is_the_trajectory_and_nothing_else(run, base, image, script):
    script(ZOOM, "<answer>HK3V9</answer>")
    status, out, _ = run("ask", image, "What is written?", f"--model={base}", "--json")
    trajectory = json.loads(out)
    assert status == 0 and trajectory["answer"] == "HK3V9" and len(trajectory["steps"]) == 1
    assert trajectory["media"][0]["uri"] == "photos/card.png"


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([""], "its last turn is empty"),
        ([("and then", "length")], "stopped by max_tokens"),
        (["The red lamp..3</answer>"], "the tags of its last turn do not match: The red lamp..3</answer>"),
        (["<answer>The red lamp"], "the tags of its last turn do not match: <answer>The red lamp"),
    ],
)
def test_no_answer_is_status_1(run, base, image, script, turns, words):
    script(*turns)
    assert run("ask", image, "What?", f"--model={base}") == (1, f"no answer: {words}\n", "")


def test_a_random_policy_ends_somehow(run, base, image):
    status, out, err = run("ask", image, "What?", f"--model={base}", "--temperature=1", "--json")
    assert status in (0, 1) and err == "" and json.loads(out)["sampling"]["temperature"] == 1.0


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("required: QUESTION", ["photos/card.png"]),
        ("the question is missing", ["photos/card.png", "photos/card.png"]),
        ("the question comes last, in quotes", ["What is it?", "photos/card.png"]),
        ("no such file: none.png", ["none.png", "What?"]),
        ("a directory, not an image", ["photos", "What?"]),
        ("not a readable image or video", ["notes.txt", "What?"]),
        ("the question is empty", ["photos/card.png", " "]),
        ("has 1 media", ["photos/card.png", "What is on <media 2>?"]),
        ("no such directory", ["photos/card.png", "What?", "--trace=none/t.jsonl"]),
        ("photos is a directory", ["photos/card.png", "What?", "--trace=photos"]),
        ("no ordinary file", ["photos/card.png", "What?", "--trace=pipe"]),
        ("--seed must lie in 0 .. 2^32 - 1", ["photos/card.png", "What?", f"--seed={2**32}"]),
        ("--temperature", ["photos/card.png", "What?", "--temperature=nan"]),
        ("--temperature", ["photos/card.png", "What?", "--temperature=-1"]),
        ("--seed", ["photos/card.png", "What?", "--seed=-1"]),
        ("no module 'none.tools'", ["photos/card.png", "What?", "--imports=none.tools"]),
        ("no module '.tools'", ["photos/card.png", "What?", "--imports=.tools"]),
        ("no model 'none'", ["photos/card.png", "What?", "--model=none"]),
        ("not a model directory", ["photos/card.png", "What?", "--model=photos"]),
        ("unrecognized arguments: --config.x=1", ["photos/card.png", "What?", "--config.x=1"]),
    ],
)
def test_what_is_refused(refused, base, image, tmp_path, words, arguments):
    (tmp_path / "notes.txt").write_text("no picture")
    os.mkfifo(tmp_path / "pipe")
    refused(words, "ask", *arguments, *([] if any("--model" in argument for argument in arguments) else [f"--model={base}"]))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", None, "config.json"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", ("<|im_end|>", "<|the_end|>"), "no token '<|im_end|>'"),
        ("tokenizer.json", ("{", ""), "no tokenizer that can be read"),
        ("pixelis.json", ('"style"', '"stile"'), "stile"),
        (
            "preprocessor_config.json",
            ('"patch_size": 8', '"patch_size": 16'),
            "and merge_size are (16",
        ),
        ("preprocessor_config.json", ('"patch_size": 8', '"patch_size": "8"'), "patch_size is '8', expected a positive integer"),
        ("model.safetensors.index.json", None, "holds neither"),
    ],
)
def test_a_damaged_model_is_refused(refused, base, image, tmp_path, file, change, words):
    shutil.copytree(base, tmp_path / "damaged")
    path = tmp_path / "damaged" / file
    text = path.read_text()
    path.unlink()
    if change is not None:
        path.write_text(text.replace(*change))
    refused(words, "ask", image, "What?", "--model=damaged")
