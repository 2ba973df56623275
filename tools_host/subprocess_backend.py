"""Back-ends in a user's own Python environment: one JSON object a line over the child's stdin and stdout.

Some engines (PaddleOCR, SAM) pin packages that break ours. A user writes a small script for their interpreter; an
adapter back-end starts it with `SubprocessBackend(python, script)`. The protocol is described in `docs/tools.md`.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools_host.protocol import ToolFailure

ARRAY_KEY = "__array__"
"""Marks an array in a message: `{"__array__": base64 of the C-ordered bytes, "dtype": "uint8", "shape": [2, 3]}`."""


class SubprocessBackend:
    """Runs a script in another interpreter and asks it one question after another.

    The script writes `{"ready": true}` once its model is loaded, then answers each line `{"id", "method", "params"}`
    with `{"id", "result"}` or `{"id", "error"}`. It must print nothing else on stdout.

    Args:
      python: The other interpreter.
      script: The user's script.
      arguments: Its command line.
      start_timeout_s: Limit for loading its model.
      timeout_s: Limit for one answer.

    Raises:
      FileNotFoundError: If the interpreter or the script does not exist.
    """

    def __init__(
        self,
        python: str,
        script: str,
        *,
        arguments: Sequence[str] = (),
        start_timeout_s: float = 120.0,
        timeout_s: float = 25.0,
    ) -> None:
        for path in (python, script):
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{path}: no such file (the back-end needs an interpreter and a script)")
        # -u: an answer must not wait in the child's buffer.
        self._command = [python, "-u", script, *arguments]
        self._start_timeout_s, self._timeout_s = start_timeout_s, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._calls = 0

    def call(self, method: str, **params: Any) -> Any:
        """Asks the script; it is started on the first call, and again after it was lost.

        Args:
          method: What to do.
          **params: JSON values and numpy arrays, nested as you like.

        Returns:
          The script's result, with arrays decoded.

        Raises:
          ToolFailure: `timeout` if it was too slow (it is then killed), `worker_lost` if it ended, broke the protocol,
            or answered with an error.
        """
        process = self._running()
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": encode_arrays(params)}
        deadline = time.monotonic() + self._timeout_s
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise self._lost(f"ended with exit code {process.poll()}") from error
        answer = self._answer(process, deadline, f"did not answer within {self._timeout_s:g} s")
        if answer.get("id") != self._calls:
            raise self._lost(f"answered call {answer.get('id')} instead of {self._calls}")
        if "error" in answer:
            raise ToolFailure("worker_lost", f"the back-end's script failed: {answer['error']}")
        return decode_arrays(answer.get("result"))

    def close(self) -> None:
        """Ends the script."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._process = None
        self._pending = b""

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        deadline = time.monotonic() + self._start_timeout_s
        hello = self._answer(self._process, deadline, f"was not ready within {self._start_timeout_s:g} s")
        if hello.get("ready") is not True:
            raise self._lost(f"began with {hello!r} instead of {{'ready': true}}")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], deadline: float, late: str) -> Mapping[str, Any]:
        line = self._line(process, deadline, late)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._lost(f"wrote {line[:80]!r}, which is not JSON") from error
        if not isinstance(answer, dict):
            raise self._lost(f"wrote {line[:80]!r}, which is not a JSON object")
        return answer

    def _line(self, process: subprocess.Popen[bytes], deadline: float, late: str) -> bytes:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.close()
                    raise ToolFailure("timeout", f"the back-end's script {late}")
                chunk = os.read(process.stdout.fileno(), 2**20)
                if not chunk:
                    raise self._lost(f"ended with exit code {process.wait()}")
                self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    def _lost(self, what: str) -> ToolFailure:
        self.close()
        return ToolFailure("worker_lost", f"the back-end's script {what}")


def encode_arrays(value: Any) -> Any:
    """JSON form of nested values: arrays become objects under `ARRAY_KEY`, numpy scalars plain numbers."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {ARRAY_KEY: data, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: encode_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_arrays(item) for item in value]
    return value


def decode_arrays(value: Any) -> Any:
    """Inverse of `encode_arrays` (tuples come back as lists)."""
    if isinstance(value, Mapping) and ARRAY_KEY in value:
        flat = np.frombuffer(base64.b64decode(value[ARRAY_KEY]), dtype=np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    if isinstance(value, Mapping):
        return {key: decode_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_arrays(item) for item in value]
    return value
