"""CC-RFT from the command line: what is refused, and one real run, killed and not."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from pixelis_jax.commands import models
from pixelis_jax.workdir import Workdir

CCRFT = """
from ml_collections import ConfigDict
from configs import tiny_ccrft

def get_config():
    config = tiny_ccrft.get_config()
    config.init_from = {base!r}
    config.scenes.counts = {{"read": 3, "blink": 3}}
    config.total_steps, config.prompts, config.samples, config.minibatches = 4, 2, 4, 2
    config.optimizer.warmup_steps = 1
    config.rollout.update({{"slots": 4, "max_steps": 2}})
    config.microbatch = ConfigDict({{"rows": 1, "tokens": 768, "frames": 16, "weighted": 384}})
    config.checkpoint_every_steps = 1
    config.save_trajectories_every = 2
    config.floors.update({{"valid_calls": 0.0, "rapr": 0.0, "entropy": 0.0}})
    config.patience = 99
    return config
"""


@pytest.fixture
def write(tmp_path):
    def make(base):
        path = tmp_path / "ccrft.py"
        path.write_text(CCRFT.format(base=str(base)))
        return f"--config={path}"

    return make


@pytest.mark.parametrize(
    ("words", "override"),
    [
        ("samples must be a whole number of at least 2, got 1", "samples=1"),
        ("rollout.slots must be a whole number of at least 1, got 0", "rollout.slots=0"),
        ("curiosity.variant must be one of ensemble, paper, got 'papers'", "curiosity.variant=papers"),
        ("advantage.credit must be one of trajectory, step, got 'turn'", "advantage.credit=turn"),
        ("minibatches is 9, more than the 8 episodes", "minibatches=9"),
        ("kl: set_point must lie between 0.001 and top = 0.1, not at 0.2", "kl.set_point=0.2"),
        ("kl.beta is 20.0, outside 0.0001 to 10.0", "kl.beta=20.0"),
        ("init_from is empty", "init_from="),
        ("warmup_steps (8) must be at least 0 and less than total_steps (4) times minibatches (2)", "optimizer.warmup_steps=8"),
        ("floors.rapr must be a share, 0 to 1, got 2.0", "floors.rapr=2.0"),
        ("has no field 'weights.curiosty'; did you mean 'weights.curiosity'?", "weights.curiosty=1"),
        ("no split 'tests'", "scenes.split=tests"),
    ],
)
def test_what_no_run_can_have_is_refused(refused, write, base, words, override):
    refused(words, "train", write(base), "--workdir=a", f"--config.{override}")


def parameters(name):
    return jax.tree.leaves(nnx.state(models.load(name).model))


@pytest.mark.slow
def test_a_real_run_killed_at_any_time_ends_the_same(run, write, tmp_path):
    config = write("tiny_sft_early")
    assert run("train", config, "--workdir=a")[0] == 0
    rows = Workdir("a").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(0 <= row["kl"] < 1 for row in rows)
    assert rows[-1]["compilations"] == rows[1]["compilations"]
    line = json.loads((tmp_path / "a" / "trajectories" / "iteration-0-4.jsonl").read_text().splitlines()[0])
    assert line["policy"]["step"] == 3 and "reward_total" in line["scores"]
    command = [sys.executable, "-m", "pixelis_jax", "train", config, "--workdir=b"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(8, 30)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert all(np.array_equal(x, y) for x, y in zip(parameters("a"), parameters("b"), strict=True))
