"""Where a decoding step's time goes: kernels by what the compiled program says of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import decode_profile
import pytest

ROOT = Path(__file__).parents[2]

STEP = "jit(decode)/while/body"


def kernel(name, shape, operation):
    return f'  %{name} = f32[{shape}]{{1,0}} fusion(%a, %b), kind=kCustom, calls=%c, metadata={{op_name="{operation}"}}'


def test_kernels_are_told_apart_by_operation_and_shape():
    program = "\n".join(
        [
            kernel("fusion.1", "64,4,2,192", f"{STEP}/reduce_max"),
            kernel("fusion.2", "64,1,256", f"{STEP}/dot_general"),
            kernel("fusion.3", "64,4,2,32", f"{STEP}/reduce_sum"),
            kernel("fusion.4", "64,768", f"{STEP}/dot_general"),
            kernel("fusion.5", "64,2048", f"{STEP}/...d,vd->...v/dot_general"),
            kernel("fusion.6", "64,4,32,192", f"{STEP}/dynamic_update_slice"),
            kernel("fusion.7", "64,4,2", f"{STEP}/reduce_sum"),
            kernel("fusion.8", "64,768", f"{STEP}/mul"),
            "  %parameter.1 = f32[64,256]{1,0} parameter(0)",
        ]
    )
    assert decode_profile.kinds(program) == {
        "fusion.1": "scores",
        "fusion.2": "mixture",
        "fusion.3": "mixture",
        "fusion.4": "products",
        "fusion.5": "products",
        "fusion.6": "writes",
        "fusion.7": "rest",
        "fusion.8": "rest",
    }


@pytest.mark.slow
def test_a_real_block_has_every_kind(tmp_path):
    path = tmp_path / "profile.json"
    command = [sys.executable, "experiments/decode_profile.py", "--work=decode_1m_16", f"--json={path}"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    spent = json.loads(path.read_text())["milliseconds"]["decode_1m_16"]
    assert all(spent[kind] > 0 for kind in decode_profile.KINDS)
    assert sum(spent[kind] for kind in decode_profile.KINDS) > 0.3 * spent["step"]
