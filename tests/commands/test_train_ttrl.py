"""Pixel TTRL from the command line: what is refused, and one real run with its report."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from pixelis_jax.commands import adapt, models
from pixelis_jax.memory import Memory
from pixelis_jax.trajectory import Example, Source
from pixelis_jax.trajectory.io import read_trajectories
from pixelis_jax.voting import vote_from_json
from pixelis_jax.workdir import Workdir

TTRL = """
from ml_collections import ConfigDict
from configs import tiny_ttrl

def get_config():
    config = tiny_ttrl.get_config()
    config.init_from = {base!r}
    config.scenes.counts = {{"read": 2, "shape": 2}}
    config.scenes.workers = 0
    config.total_steps, config.samples, config.probe = 3, 4, 3
    config.optimizer.warmup_steps = 0
    config.rollout.update({{"slots": 5, "max_steps": 2}})
    config.vote.update({{"votes": 1, "mass": 0.0, "margin": 0.0, "agree": 0.0}})
    config.memory.silent_below = 1
    config.microbatch = ConfigDict({{"rows": 1, "tokens": 768, "frames": 16, "weighted": 384}})
    config.checkpoint_every_steps = 2
    return config
"""


@pytest.fixture
def write(tmp_path):
    def make(base):
        path = tmp_path / "ttrl.py"
        path.write_text(TTRL.format(base=str(base)))
        return f"--config={path}"

    return make


@pytest.mark.parametrize(
    ("words", "override"),
    [
        ("samples must be a whole number of at least 1, got 0", "samples=0"),
        ("rate.queries must be a whole number of at least 1, got 0", "rate.queries=0"),
        ("probe must be a whole number of at least 1, got 0", "probe=0"),
        ("memory.silent_below must be a whole number of at least 0, got -1", "memory.silent_below=-1"),
        ("temperature must be a number above 0, got 0.0", "temperature=0.0"),
        ("ema.half_life must be a number above 0, got 0.0", "ema.half_life=0.0"),
        ("guard.limit must be a number above 0, got -1.0", "guard.limit=-1.0"),
        ("retrieved.weight must be a number of at least 0, got -0.5", "retrieved.weight=-0.5"),
        ("memory.share must be a share, 0 to 1, got 1.5", "memory.share=1.5"),
        ("poison must be a share, 0 to 1, got nan", "poison=nan"),
        ("vote.kind must be one of trajectories, answers, majority, process, got 'any'", "vote.kind=any"),
        ("exemplar must be one of short_faithful, random, got 'long'", "exemplar=long"),
        ("objective must be one of imitation, grpo, entropy, got 'clipped'", "objective=clipped"),
        ("control must be one of pid, fixed, none, got 'off'", "control=off"),
        ("kl: set_point must lie between 0.001 and top = 0.2, not at 0.3", "kl.set_point=0.3"),
        ("kl.beta is 20.0, outside 0.5 to 10.0", "kl.beta=20.0"),
        ("init_from is empty", "init_from="),
        ("total_steps is 5, but scenes.counts make a stream of 4 queries", "total_steps=5"),
        ("read: cannot make -1 scenes", "scenes.counts.read=-1"),
        ("optimizer.warmup_steps (3) must be at least 0 and less than total_steps (3)", "optimizer.warmup_steps=3"),
        ("has no field 'gaurd.on'; did you mean 'guard.on'?", "gaurd.on=False"),
        ("no split 'tests'", "scenes.split=tests"),
        ("vote.votes is 5, but only 4 samples vote: nothing would ever be learnt", "vote.votes=5"),
    ],
)
def test_what_no_run_can_have_is_refused(refused, write, base, words, override):
    refused(words, "train", write(base), "--workdir=a", f"--config.{override}")


def test_advantages_need_likenesses(refused, write, base):
    overrides = "--config.objective=grpo", "--config.vote.kind=majority"
    refused("objective grpo needs likenesses, which vote.kind majority does not", "train", write(base), "--workdir=a", *overrides)


def test_the_probe_set_is_drawn_from_every_family_and_none_of_the_stream():
    def some(family, count):
        source = Source(dataset="d")
        return [
            Example(id=f"{family}{n}", question="?", media=(), verifier="exact", truth="", source=source, family=family)
            for n in range(count)
        ]

    asked, probe = adapt._split([*some("read", 4), *some("shape", 5)], {"read": 2, "shape": 3})
    assert [example.id for example in asked] == ["read0", "read1", "shape0", "shape1", "shape2"]
    assert [example.id for example in probe] == ["read2", "shape3", "read3", "shape4"]


def parameters(name):
    return jax.tree.leaves(nnx.state(models.load(name).model))


@pytest.mark.slow
def test_a_real_run_and_its_report(run, write, tmp_path):
    status, _, err = run("train", write("tiny_sft_early"), "--workdir=a")
    assert status == 0, err
    lines = {
        name: [json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("answers", "votes", "updates")
    }
    votes = [vote_from_json(line) for line in lines["votes"]]
    rows = Workdir("a").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3] and len(lines["answers"]) == len(votes) == 3
    assert len({vote.query for vote in votes}) == 3  # of the four, shuffled
    learnt = [vote for vote in votes if vote.decision == "learn"]
    assert learnt and len(lines["updates"]) >= len(learnt) and rows[-1]["memory/records"] == len(learnt)
    assert all(0 <= vote.kl <= 0.25 for vote in learnt)
    shards = sorted((tmp_path / "a" / "trajectories").iterdir())
    assert [shard.name for shard in shards] == ["queries-0-2.jsonl", "queries-0-3.jsonl"]
    trajectories = [trajectory for shard in shards for trajectory in read_trajectories(shard)]
    assert len(trajectories) == len({trajectory.id for trajectory in trajectories}) == 15
    assert all(trajectory.scores["task"] in (0, 1) for trajectory in trajectories)
    assert not all(np.array_equal(x, y) for x, y in zip(parameters("a"), parameters("tiny_sft_early"), strict=True))
    status, out, err = run("report", "a")
    assert status == 0, err
    page = (tmp_path / "a" / "report.html").read_text()
    assert all(vote.query in page for vote in votes) and "accuracy/greedy" in page
    (tmp_path / "a" / "memory.sqlite").write_bytes(b"no memory" * 100)
    status, _, err = run("train", write("tiny_sft_early"), "--workdir=a")
    assert status == 2 and "a/memory.sqlite is no memory: it is not an SQLite database" in err and err.count("\n") == 1
    (tmp_path / "a" / "memory.sqlite").unlink()
    assert run("train", write("tiny_sft_early"), "--workdir=a")[0] == 0
    with Memory(tmp_path / "a" / "memory.sqlite", read_only=True) as memory:
        assert len(memory) == len(learnt)  # of the last snapshot
