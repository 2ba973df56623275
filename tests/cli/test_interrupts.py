"""Ctrl-C as a terminal sends it, to every process of a command: status 130, no word, and nothing left running."""

import os
import signal
import subprocess
import sys
import time

import pytest

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}

SWALLOWING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except BaseException:
    pass
"""


def start(*arguments, **options):
    command = [sys.executable, "-m", "pixelis_jax", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes, **{"env": ENVIRONMENT, **options})


def running(session):
    """Processes of a session that are not zombies: what is dead waits for init to notice."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, its_session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(name))
    return found


def wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_that_a_library_would_swallow_still_ends_the_command(tmp_path):
    (tmp_path / "swallowing_lab.py").write_text(SWALLOWING)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = start("tools", "list", "--imports=swallowing_lab", env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("presses", [1, 2])
def test_workers_that_build_scenes_end_with_the_command(tmp_path, presses):
    out = tmp_path / "scenes"
    process = start("data", "build", f"--out={out}", "--count=300", "--split=train", "--family=blink")
    wait(lambda: len(running(process.pid)) >= 3)  # the command, a worker and what tracks their resources, or two workers
    for _ in range(presses):
        time.sleep(0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    wait(lambda: not running(process.pid), seconds=20)
    assert not list(out.rglob("*.jsonl"))
