"""Training in several processes, as on the hosts of a pod: the same run as in one process with as many devices."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pixelis_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]

CONFIG = """
from configs import tiny_sft

def get_config():
    config = tiny_sft.get_config()
    config.init_from = {base!r}
    config.scenes.counts = {{"read": 4, "shape": 4}}
    config.scenes.styles = {{"direct": 1.0}}
    config.scenes.workers = 0
    config.total_steps = 4
    config.optimizer.warmup_steps = 1
    config.buckets.tokens = (128,)
    config.buckets.frames = (1,)
    config.buckets.tokens_per_batch = 256
    config.log_every = 1
    config.mesh.data = 1
    config.mesh.fsdp = 2
    return config
"""


def launch(folder: Path, workdir: str, processes: int, *more: str) -> subprocess.CompletedProcess:
    """Two devices in all."""
    devices = f"--xla_force_host_platform_device_count={2 // processes}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / f"cache{processes}")}
    environment = os.environ | cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": devices}
    command = [sys.executable, str(ROOT / "experiments" / "launch.py"), "--config=two.py", f"--workdir={workdir}", *more]
    command.append(f"--processes={processes}")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)


def weights(workdir: Path) -> dict[str, np.ndarray]:
    (file,) = (workdir / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_are_one_run(base, tmp_path):
    """Parameters are split over both; one builds the data and writes the model. A run of two goes on as a run of one."""
    (tmp_path / "two.py").write_text(CONFIG.format(base=str(base)))
    alone = launch(tmp_path, "alone", 1)
    assert alone.returncode == 0, alone.stderr
    stopped = launch(tmp_path, "together", 2, "--sweep=max_minutes=0.0")
    assert stopped.returncode == 3 and "stopped at step 1" in stopped.stdout, stopped.stderr
    shutil.copytree(tmp_path / "together", tmp_path / "moved")
    gone_on = launch(tmp_path, "together", 2)
    assert gone_on.returncode == 0 and gone_on.stdout.count("going on from step 1") == 2, gone_on.stderr

    rows = Workdir(tmp_path / "together").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 1, 2, 3, 4]  # one shard a process
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "together")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)
    (start,) = base.glob("*.safetensors")
    assert any(not np.array_equal(one[name], value) for name, value in load_file(start).items())

    moved = launch(tmp_path, "moved", 1)
    assert moved.returncode == 0 and "going on from step 1" in moved.stdout, moved.stderr
    for name, value in weights(tmp_path / "moved").items():
        np.testing.assert_allclose(value, one[name], rtol=1e-4, atol=1e-6, err_msg=name)
