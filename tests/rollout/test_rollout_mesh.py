"""The engine sharded over eight forced host devices says what it says on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    script = Path(__file__).parent / "rollout_mesh.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    one = found.pop("one")
    assert len({tuple(ids) for ids in one}) == 8 and len(found) == 2
    for ids in found.values():
        assert ids == one
