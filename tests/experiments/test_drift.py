"""How far a policy is from the start: nothing from itself, something from another; what was measured is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def drift(tmp_path, *models):
    command = [
        sys.executable,
        "experiments/drift.py",
        f"--data={tmp_path / 'data'}",
        f"--json={tmp_path / 'drift.json'}",
        *models,
    ]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_a_model_that_is_not_there_is_one_line_and_exit_2(tmp_path):
    result = drift(tmp_path, "a=no_such_model")
    assert result.returncode == 2
    assert "no_such_model" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_divergences_are_added_to_those_of_before(tmp_path):
    assert drift(tmp_path, "start=tiny_sft_early").returncode == 0
    assert json.loads((tmp_path / "drift.json").read_text())["divergence"] == {"start": 0.0}
    second = drift(tmp_path, "start=no_longer_read", "other=tiny_sft")
    assert second.returncode == 2  # a name that is wrong is found before anything is measured
    assert drift(tmp_path, "start=tiny_sft", "other=tiny_sft").returncode == 0
    found = json.loads((tmp_path / "drift.json").read_text())["divergence"]
    assert found["start"] == 0.0
    assert found["other"] > 0.05
