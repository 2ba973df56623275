"""How worker processes end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from pixelis_jax.data.workers import chain_in_order, process_pool

SCRIPT = """
import multiprocessing, time
from pixelis_jax.data.workers import process_pool
if __name__ == "__main__":
    with process_pool(1) as executor:
        executor.submit(time.sleep, 0).result()
        executor.submit(time.sleep, 600)
        print(multiprocessing.active_children()[0].pid, flush=True)
        time.sleep(600)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_results_come_in_order_and_interrupts_never_reach_a_worker():
    assert list(chain_in_order(str, [12, 3, 456], 2)) == list("123456")
    with process_pool(1) as executor:
        blocked = executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_block_that_fails_does_not_wait_for_its_workers():
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), process_pool(1) as executor:
        executor.submit(time.sleep, 0).result()
        executor.submit(time.sleep, 600)
        (worker,) = multiprocessing.active_children()
        raise ZeroDivisionError
    worker.join(30)
    assert not worker.is_alive() and time.monotonic() - began < 60


def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
    worker = int(process.stdout.readline())
    assert alive(worker)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
