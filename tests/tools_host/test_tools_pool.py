"""Worker processes under injected faults: late, killed, greedy and buggy calls, a full queue; no JAX in any worker."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools_host.config import ToolsConfig
from tools_host.pool import InlinePool, WorkerPool
from tools_host.protocol import ToolError, ToolOutput, ToolPool, ToolRequest

_nonces = itertools.count()


def request(tool: str = "lab_fault", *, key: str = "", **arguments: Any) -> ToolRequest:
    """A checked call; without `key` it has one of its own."""
    return ToolRequest(tool=tool, backend="builtin", arguments=arguments, key=key or f"{next(_nonces):064x}")


@pytest.fixture(scope="module")
def pool(lab_config: ToolsConfig) -> Iterator[WorkerPool]:
    with WorkerPool(lab_config, workers=1, timeout_s=1.0, memory_limit_bytes=8 * 2**30, queue_size=2) as pool:
        yield pool


def run(pool: ToolPool, tool: str = "lab_fault", **arguments: Any) -> ToolOutput | ToolError:
    return pool.submit(request(tool, **arguments)).result(timeout=60)


def code(result: ToolOutput | ToolError) -> str:
    assert isinstance(result, ToolError), result
    return result.code


def data(result: ToolOutput | ToolError) -> dict[str, Any]:
    assert isinstance(result, ToolOutput), result
    return dict(result.data)


def test_no_jax_in_a_worker_started_by_pytest(pool: WorkerPool) -> None:
    modules = data(run(pool, how="modules"))["modules"]
    assert "lab_tools" in modules and not {"jax", "flax", "torch", "transformers"} & set(modules)


def test_a_worker_has_one_thread(pool: WorkerPool) -> None:
    assert data(run(pool, how="threads")) == {"cv2": 1, "omp": "1"}


@pytest.mark.parametrize(("how", "expected"), [("sleep", "timeout"), ("kill", "worker_lost"), ("hog", "out_of_memory")])
def test_a_fault_costs_one_call_and_no_more(pool: WorkerPool, how: str, expected: str) -> None:
    began = time.monotonic()
    assert code(run(pool, how=how)) == expected
    assert time.monotonic() - began < 20
    assert "pid" in data(run(pool, how="pid"))


def test_an_idle_worker_that_dies_costs_nothing(pool: WorkerPool) -> None:
    pid = data(run(pool, how="pid"))["pid"]
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        replaced = data(run(pool, how="pid"))["pid"]
        assert replaced != pid
        pid = replaced


def test_what_asks_the_whole_group_to_stop_leaves_workers_at_their_work(lab_config: ToolsConfig) -> None:
    """A training run finishes its iteration at SIGTERM: a call that is lost meanwhile would be in its checkpoint."""
    heard = []
    before, group = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM")), os.getpgrp()
    alone = os.getsid(0) == os.getpid()  # a session's first process has a group of its own, and cannot leave it
    try:
        if not alone:
            os.setpgrp()  # the signal is for no other process of this session
        with WorkerPool(lab_config, workers=1) as pool:
            pid = data(run(pool, how="pid"))["pid"]
            os.killpg(os.getpgrp(), signal.SIGTERM)
            assert data(run(pool, how="pid"))["pid"] == pid
    finally:
        if not alone:
            os.setpgid(0, group)
        signal.signal(signal.SIGTERM, before)
    assert heard == ["SIGTERM"]


def test_a_worker_never_gets_an_interrupt_not_even_one_that_replaced_another(pool: WorkerPool) -> None:
    for _ in range(2):
        pid = data(run(pool, how="pid"))["pid"]
        status = Path(f"/proc/{pid}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert blocked >> (signal.SIGINT - 1) & 1
        os.kill(pid, signal.SIGKILL)


def test_a_late_call_is_killed_with_its_worker(pool: WorkerPool) -> None:
    before = data(run(pool, how="pid"))["pid"]
    assert code(run(pool, how="sleep")) == "timeout"
    assert data(run(pool, how="pid"))["pid"] != before
    assert not Path(f"/proc/{before}").exists() or sys.platform != "linux"


def test_a_bug_and_a_refusal_keep_the_worker(pool: WorkerPool) -> None:
    before = data(run(pool, how="pid"))["pid"]
    assert code(run(pool, how="raise")) == "worker_lost"
    assert code(run(pool, how="refuse")) == "missing_argument"
    assert data(run(pool, how="pid"))["pid"] == before


def test_a_back_end_is_loaded_once_a_worker(pool: WorkerPool) -> None:
    counts = [data(run(pool, "lab_engine", nonce=nonce))["count"] for nonce in range(3)]
    assert counts == [1, 2, 3]


def test_results_are_remembered_but_outages_are_not(pool: WorkerPool) -> None:
    first = run(pool, "lab_engine", key="k" * 64, nonce=9)
    assert run(pool, "lab_engine", key="k" * 64, nonce=9) is first
    assert code(run(pool, key="s" * 64, how="kill")) == "worker_lost"
    assert "pid" in data(run(pool, key="s" * 64, how="pid"))


def test_equal_calls_under_way_share_one_future(pool: WorkerPool) -> None:
    futures = [pool.submit(request(key="e" * 64, how="pid")) for _ in range(3)]
    assert futures[0] is futures[1] is futures[2]
    assert futures[0].result(timeout=60) is futures[2].result(timeout=60)


def test_a_full_queue_holds_the_caller_back(pool: WorkerPool) -> None:
    run(pool, how="pid")  # the worker is there
    began = time.monotonic()
    futures = [pool.submit(request(how="sleep"))]
    futures += [pool.submit(request(how="pid", nonce=nonce)) for nonce in range(2)]
    assert time.monotonic() - began < 0.8  # one runs and two wait
    futures.append(pool.submit(request(how="pid", nonce=3)))
    assert time.monotonic() - began > 0.8  # the fourth came in only after the first was killed
    assert code(futures[0].result(timeout=60)) == "timeout"
    assert [data(future.result(timeout=60))["nonce"] for future in futures[1:]] == [0, 1, 3]


def test_results_come_as_completed(lab_config: ToolsConfig) -> None:
    with WorkerPool(lab_config, workers=2, timeout_s=2.0) as pool:
        slow = pool.submit(request(how="sleep"))
        assert "pid" in data(pool.submit(request(how="pid")).result(timeout=60))
        assert not slow.done()
        waiting = pool.submit(request(how="sleep"))
        pool.close()
        assert code(slow.result(timeout=10)) == code(waiting.result(timeout=10)) == "worker_lost"
        with pytest.raises(RuntimeError, match="closed"):
            pool.submit(request(how="pid"))


def test_many_threads_may_submit(pool: WorkerPool) -> None:
    results: list[ToolOutput | ToolError] = []

    def submit(nonce: int) -> None:
        results.append(run(pool, "lab_engine", key=f"many {nonce % 5}", nonce=nonce))

    threads = [threading.Thread(target=submit, args=(nonce,)) for nonce in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 20 and len({data(result)["count"] for result in results}) == 5


def test_a_wrong_config_is_told_before_any_worker_starts(lab_config: ToolsConfig) -> None:
    with pytest.raises(KeyError, match="did you mean"):
        WorkerPool(dataclasses.replace(lab_config, tools=("lab_crops",)))


def test_the_inline_pool_gives_the_same_answers(lab_config: ToolsConfig) -> None:
    pool = InlinePool(lab_config)
    assert code(run(pool, how="raise")) == "worker_lost" and code(run(pool, how="hog")) == "out_of_memory"
    assert data(run(pool, "lab_engine", nonce=0)) == {"count": 1}
    pool.close()


SCRIPT = """
import sys
import jax  # the parent has a device; its workers must not
sys.path.insert(0, {folder!r})
from tools_host.config import ToolsConfig
from tools_host.pool import WorkerPool
from tools_host.protocol import ToolRequest

def main():
    config = ToolsConfig(tools=("lab_fault",), imports=("lab_tools",))
    with WorkerPool(config, workers=1) as pool:
        call = ToolRequest(tool="lab_fault", backend="builtin", arguments={{"how": "modules"}}, key="0" * 64)
        modules = pool.submit(call).result(timeout=100).data["modules"]
    print("jax" in sys.modules, "jax" in modules, "lab_tools" in modules)

{start}
"""


@pytest.mark.parametrize("way", ["module", "notebook"])
def test_no_jax_in_a_worker_whose_parent_has_it(way: str, tmp_path: Path) -> None:
    """From `python -m` with JAX imported in the main function, and from a notebook, whose main module has no file."""
    script = SCRIPT.format(folder=str(Path(__file__).parent), start="main()")
    if way == "module":
        # As in the package's own commands, the main module imports nothing heavy by itself.
        body = script.replace("import jax  #", "#").replace("def main():", "def main():\n    import jax")
        (tmp_path / "lab_program.py").write_text(body.replace("\nmain()\n", '\nif __name__ == "__main__":\n    main()\n'))
        command = [sys.executable, "-m", "lab_program"]
    else:
        command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr[-2000:]
