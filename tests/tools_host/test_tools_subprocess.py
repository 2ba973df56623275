"""A back-end in another interpreter: the protocol against a user's script, good and bad."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_host.protocol import ToolFailure
from tools_host.subprocess_backend import SubprocessBackend, decode_arrays, encode_arrays

# Without our package, as in a user's own environment: only the standard library.
SCRIPT = """
import base64, json, os, sys, time
print(json.dumps({"ready": True}))
for line in sys.stdin:
    call = json.loads(line)
    method, params = call["method"], call["params"]
    answer = {"id": call["id"]}
    if method == "brightest":
        image = params["image"]
        values = base64.b64decode(image["__array__"])
        answer["result"] = {"level": max(values), "shape": image["shape"], "pid": os.getpid(), "echo": image}
    elif method == "fail":
        answer["error"] = "no such model"
    elif method == "sleep":
        time.sleep(60)
    elif method == "die":
        sys.exit(3)
    elif method == "chatter":
        print("loading model ...")
    elif method == "wrong_id":
        answer["id"] = 99
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "user_script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_arrays_go_there_and_back(script: str) -> None:
    backend = SubprocessBackend(sys.executable, script)
    image = np.random.default_rng(0).integers(0, 200, (30, 40, 3), dtype=np.uint8)
    image[3, 4] = 250
    answer = backend.call("brightest", image=image, side=np.int64(3))
    assert answer["level"] == 250 and answer["shape"] == [30, 40, 3]
    assert np.array_equal(answer["echo"], image)
    assert backend.call("brightest", image=image)["pid"] == answer["pid"]  # the model stays loaded
    backend.close()


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("fail", "worker_lost", "no such model"),
        ("sleep", "timeout", "did not answer within 1 s"),
        ("die", "worker_lost", "ended with exit code 3"),
        ("chatter", "worker_lost", "which is not JSON"),
        ("wrong_id", "worker_lost", "answered call 99 instead of 1"),
    ],
)
def test_a_script_that_misbehaves_is_told_and_started_again(method: str, code: str, message: str, script: str) -> None:
    backend = SubprocessBackend(sys.executable, script, timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(ToolFailure, match=message) as caught:
        backend.call(method)
    assert caught.value.error.code == code and time.monotonic() - began < 20
    assert backend.call("brightest", image=np.ones((1, 1), dtype=np.uint8))["level"] == 1
    backend.close()


def test_a_script_that_is_never_ready(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    (tmp_path / "wrong.py").write_text("print('{}')")
    with pytest.raises(ToolFailure, match="not ready within 0.5 s"):
        SubprocessBackend(sys.executable, str(tmp_path / "slow.py"), start_timeout_s=0.5).call("x")
    with pytest.raises(ToolFailure, match="instead of"):
        SubprocessBackend(sys.executable, str(tmp_path / "wrong.py")).call("x")


def test_a_missing_interpreter_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        SubprocessBackend(str(tmp_path / "python"), __file__)


def test_the_script_ends_with_its_worker(script: str) -> None:
    backend = SubprocessBackend(sys.executable, script)
    backend.call("brightest", image=np.ones((1, 1), dtype=np.uint8))
    process: Any = backend._process
    del backend
    assert process.wait(timeout=10) is not None


@given(st.sampled_from(["uint8", "float32", "bool", "int64"]), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99))
def test_every_array_survives_json(dtype: str, shape: list[int], seed: int) -> None:
    import json

    array = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    back = decode_arrays(json.loads(json.dumps(encode_arrays({"a": [array]}))))["a"][0]
    assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)
