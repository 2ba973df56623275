"""A writer that is killed loses nothing that it acknowledged (`experiments/memory_checks.py kills`, in a process of its own)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "memory_checks.py"


def kills(folder: Path, *options: str) -> dict:
    command = [sys.executable, str(SCRIPT), "kills", f"--json={folder / 'kills.json'}", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return json.loads((folder / "kills.json").read_text())


def test_killed_at_a_few_moments(tmp_path):
    result = kills(tmp_path, "--points=6", "--records=300")
    assert result["held"] and result["acknowledged"] >= 3  # every other writer is killed after its first
    assert result["lost"] == result["wrong"] == result["index_differs"] == 0


def test_the_check_finds_what_is_acknowledged_too_early(tmp_path):
    result = kills(tmp_path, "--points=6", "--records=300", "--early")
    assert not result["held"] and result["lost"] == 6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_many_moments(tmp_path):
    """Of a store of the size that the script is run with; its 200 moments are in experiments/results/memory/kills.json."""
    result = kills(tmp_path, "--points=20", "--records=1000")
    assert result["held"] and result["points"] == 20 and result["acknowledged"] > 100
