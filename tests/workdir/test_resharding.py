"""A training state that one mesh saved, on another mesh and on a single device: the same bits, placed as asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("resharded_state.py")
ROOT = SCRIPT.parents[2]

# Of the tiny policy's matrices and of AdamW's moments, by hand from sharding.RULES: (vocab, embed) is (96, 128), split by
# (tensor, fsdp); (embed, mlp) is (128, 384), split by (fsdp, tensor).
PARTS = {
    "cube": {"embedding": [48, 64], "up_proj/kernel": [64, 192]},
    "fsdp": {"embedding": [96, 16], "up_proj/kernel": [16, 384]},
    "one": {"embedding": [96, 128], "up_proj/kernel": [128, 384]},
}


def run(action: str, directory: Path, step: int, mesh: dict[str, int], devices: int) -> dict:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(SCRIPT), action, str(directory), str(step), json.dumps(mesh)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Saved on 2 x 2 x 2 devices, restored on 8 x 1, from there on one device, and from there on 2 x 2 x 2 again."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    cube = {"data": 2, "fsdp": 2, "tensor": 2}
    return {
        "saved": run("save", directory, 1, cube, devices=8),
        "fsdp": run("restore", directory, 1, {"fsdp": 8}, devices=8),
        "one": run("restore", directory, 2, {}, devices=1),
        "cube": run("restore", directory, 3, cube, devices=8),
    }


@pytest.mark.slow
def test_no_bit_changes_on_the_way(chain: dict[str, dict]) -> None:
    def content(name: str) -> dict[str, tuple]:
        return {path: (array["bits"], array["dtype"], array["shape"]) for path, array in chain[name]["arrays"].items()}

    saved = content("saved")
    assert {dtype for _, dtype, _ in saved.values()} >= {"bfloat16", "float32", "int32", "uint32"}
    assert {path.partition("/")[0] for path in saved} == {"params", "heads", "opt_state", "rng"}
    for name in ("fsdp", "one", "cube"):
        assert content(name) == saved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube", "fsdp", "one"])
def test_every_array_lies_where_it_was_asked_for(chain: dict[str, dict], name: str) -> None:
    arrays = chain[name]["arrays"]
    assert chain[name]["as_asked"]
    assert {array["devices"] for array in arrays.values()} == {1 if name == "one" else 8}
    for matrix, part in PARTS[name].items():
        found = {path: array["part"] for path, array in arrays.items() if path.endswith(f"{matrix}")}
        # The parameter and its two moments.
        assert {path.partition("/")[0] for path in found} == {"params", "opt_state"} and len(found) == 3
        assert all(array == part for array in found.values()), found
    split = sum(array["part"] != array["shape"] for array in arrays.values())
    assert split == 0 if name == "one" else split > 60, split


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "one"])
def test_a_wrong_template_is_refused_in_one_line(chain: dict[str, dict], name: str) -> None:
    """That nothing else is printed, `run` has checked: Orbax, asked for it, would leave tracebacks of its threads."""
    refused = chain[name]["refused"]
    assert not any("\n" in message for message in refused.values())
    assert "/params does not fit: decoder/embedding has shape (96, 128), expected (96, 256); " in refused["wider"]
    assert refused["wider"].endswith(" more)") and " more)" in refused["deeper"]
    assert "decoder/layers/1/attn/k_norm/scale is missing" in refused["deeper"]
    assert "/heads does not fit: heads/box/bias is not expected; " in refused["without heads"]
