"""The loop of CC-RFT over a scripted sampler: what it logs, where it goes on, and when it ends itself."""

import dataclasses
import json
import os
import threading

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import tiny_ccrft
from pixelis_jax import sharding
from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.look import encoder_of
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Episode, Request
from pixelis_jax.training import ccrft
from pixelis_jax.training.collecting import Collected, Group
from pixelis_jax.training.watch import CollapseError
from pixelis_jax.trajectory import Example, Final, Role, Source, Step, TokenRecord, Trajectory
from pixelis_jax.trajectory.io import read_trajectories
from pixelis_jax.workdir import Workdir
from tools_host.protocol import Media, Observation, ToolCall, ToolError

P, S, T, F, C, A = Role.PROMPT, Role.OBSERVATION, Role.THOUGHT, Role.FORMAT, Role.OPERATION, Role.ANSWER
TURN, END = [T, C, F], [A, F]
MEDIUM = Media(id=1, kind="image", uri="a.png", sha256="", width=100, height=100)


@pytest.fixture(scope="module")
def encoder():
    encoder = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["What is on the red card?"]))))
    text = dataclasses.replace(encoder.model.text, num_hidden_layers=1)
    vision = dataclasses.replace(encoder.model.vision, depth=1, deepstack_visual_indexes=(0,))
    return dataclasses.replace(encoder, model=dataclasses.replace(encoder.model, text=text, vision=vision))


@pytest.fixture(scope="module")
def model(encoder):
    return Qwen3VL(encoder.model, rngs=nnx.Rngs(0))


def make_config(**changes):
    config = tiny_ccrft.get_config()
    config.total_steps, config.prompts, config.samples, config.minibatches = 4, 2, 3, 2
    config.optimizer.warmup_steps = 0
    config.rollout.max_steps = 3
    config.microbatch = ConfigDict({"rows": 1, "tokens": 64, "frames": 1, "weighted": 48})
    config.curiosity.update({"hidden": 8, "steps": 2})
    config.kl.warm_up = 2
    config.floors = ConfigDict({"valid_calls": 0.0, "rapr": 0.0, "entropy": 0.0})
    config.checkpoint_every_steps, config.save_trajectories_every = 1, 2
    config.unlock()
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return config


def step(number, *, box, error=None):
    call = ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": box})
    observation = Observation(ok=error is None, text="", error=error and ToolError(code=error, message="", hint=""))
    return Step(raw="", thought="", call=call, observation=observation)


class Sampler:
    """Episodes that follow from the iteration alone."""

    def __init__(self, vocab, *, answers=True, invalid=False, stop=None, before=lambda iteration: None):
        self._vocab, self._answers, self._invalid, self._stop, self._before = vocab, answers, invalid, stop, before
        self.asked, self.versions = [], []

    def collect(self, model, version, first):
        self._before(version)
        self.asked.append(first)
        self.versions.append((version, float(jax.tree.leaves(nnx.state(model))[0].sum())))
        groups = tuple(self._group(version, first + number) for number in range(2))
        return Collected(groups=groups, asked=2, refilled=0, seconds=0.1)

    def _group(self, version, number):
        example = Example(id=f"q{number}", question="?", media=(), verifier="exact", truth="", source=Source(dataset="d"))
        return Group(example, tuple(self._episode(example, version, number, sample) for sample in range(3)))

    def _episode(self, example, version, number, sample):
        rng = np.random.default_rng([version, number, sample])
        calls = int(rng.integers(0, 3))
        roles = [P, P, P, *([*TURN, S, S] * calls), *END]
        boxes = [sorted(rng.integers(0, 500, 2).tolist()) + sorted(rng.integers(500, 1000, 2).tolist()) for _ in range(calls)]
        error = "timeout" if sample == 2 and number % 2 else "bad_box" if self._invalid else None
        steps = tuple(step(n, box=box, error=error) for n, box in enumerate(boxes))
        trajectory = Trajectory(
            id=f"{example.id}-{version}-{sample}", example=example.id, question="?", media=(MEDIUM,), steps=steps,
            final=Final(raw="", thought=""), answer="x" if self._answers else None, stopped="answer", source=example.source,
            sample=sample, scores={"task": float(rng.integers(0, 2))},
        )  # fmt: skip
        count = len(roles)
        tokens = TokenRecord(
            ids=rng.integers(10, self._vocab - 20, count).astype(np.int32), roles=np.array(roles, np.int8),
            log_probs=np.where(np.array(roles) > 1, -7.0, 0).astype(np.float32), forced=np.zeros(count, bool),
            policy_step=np.where(np.array(roles) > 1, version, -1).astype(np.int32), media_spans=np.zeros((0, 4), np.int32),
        )  # fmt: skip
        request = Request(example=example, sample=sample)
        return Episode(request=request, trajectory=trajectory, tokens=tokens, thumbnails={})


def run(config, path, model, encoder, sampler=None):
    sampler = sampler or Sampler(encoder.tokenizer.size)
    mesh = sharding.create_mesh(**config.mesh)
    trained, result = ccrft.run(config, path, model, encoder, sampler, banned_ids=[0, 1], mesh=mesh)
    return jax.tree.leaves(nnx.state(trained)), result, sampler


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def undisturbed(model, encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    return (path, *run(make_config(), path, model, encoder))


def test_iterations_sample_from_the_policy_that_they_made(undisturbed, model):
    path, params, result, sampler = undisturbed
    assert result.finished and int(result.state.step) == 8 and not same(params, jax.tree.leaves(nnx.state(model)))
    assert sampler.asked == [0, 2, 4, 6] and [version for version, _ in sampler.versions] == [0, 1, 2, 3]
    assert len({total for _, total in sampler.versions}) == 4
    assert sampler.versions[0][1] == float(jax.tree.leaves(nnx.state(model))[0].sum())


def test_what_is_logged_adds_up(undisturbed):
    rows = Workdir(undisturbed[0]).metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        weighted = [row[f"reward/weighted_{name}"] for name in ("task", "curiosity", "coherence", "penalty", "usage")]
        assert sum(weighted) == pytest.approx(row["reward/total"], abs=1e-12)
        assert row["rollout/accuracy"] == row["reward/task"] and 0 <= row["rollout/masked"] <= 0.5
        assert row["kl"] >= 0 and row["entropy"] > 0 and 1e-4 <= row["beta"] <= 10
    assert rows[0]["kl"] < 1e-5 < rows[3]["kl"]  # it starts at its reference, and leaves it
    # Once the shapes have been met nothing compiles.
    assert rows[3]["compilations"] == rows[1]["compilations"]
    assert any(row["rollout/masked"] > 0 for row in rows)


def test_trajectories_are_kept_with_what_they_earned(undisturbed):
    files = sorted(path.name for path in (undisturbed[0] / "trajectories").iterdir())
    assert files == ["iteration-0-2.jsonl", "iteration-0-4.jsonl"]
    for trajectory in read_trajectories(undisturbed[0] / "trajectories" / files[0]):
        parts = [value for name, value in trajectory.scores.items() if name.startswith("reward_weighted")]
        assert len(parts) == 5 and sum(parts) == trajectory.scores["reward_total"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_that_dies_ends_with_the_same_parameters(undisturbed, model, encoder, tmp_path, at):
    class Dead(Exception):
        pass

    def die(iteration):
        if iteration == at:
            raise Dead

    with pytest.raises(Dead):
        run(make_config(), tmp_path / "a", model, encoder, Sampler(encoder.tokenizer.size, before=die))
    params, result, sampler = run(make_config(), tmp_path / "a", model, encoder)
    assert [version for version, _ in sampler.versions] == list(range(at, 4)) and result.finished
    assert same(params, undisturbed[1])
    rows, expected = (Workdir(path).metrics() for path in (tmp_path / "a", undisturbed[0]))
    varying = ("time", "compilations")
    for row, other in zip(rows, expected, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith(varying)} == {
            k: v for k, v in other.items() if not k.startswith(varying)
        }


def test_an_asynchronous_run_samples_one_iteration_ahead(model, encoder, tmp_path, undisturbed):
    params, result, sampler = run(make_config(asynchronous=True), tmp_path / "a", model, encoder)
    assert result.finished and sampler.asked == [0, 2, 4, 6]
    totals = [total for _, total in sampler.versions]
    assert totals[0] == totals[1] and len(set(totals[1:])) == 3  # the second iteration is sampled before the first is learnt
    assert same(params, undisturbed[1])  # this sampler does not look at the policy


def test_a_collapse_ends_the_run_and_names_the_last_good_checkpoint(model, encoder, tmp_path):
    turned = threading.Event()
    sampler = Sampler(encoder.tokenizer.size, before=lambda iteration: turned.set() if iteration >= 2 else None)
    episode = sampler._episode

    def worse(*about):
        sampler._invalid = turned.is_set()
        return episode(*about)

    sampler._episode = worse
    config = make_config(**{"floors.valid_calls": 0.6, "patience": 2})
    config.total_steps = 6
    with pytest.raises(CollapseError, match=r"rollout/valid_calls under 0.6 for 2 iterations; the last good .*checkpoints/2$"):
        run(config, tmp_path / "a", model, encoder, sampler)
    assert sorted(int(path.name) for path in (tmp_path / "a" / "checkpoints").iterdir() if path.name.isdigit()) == [1, 2]


@pytest.mark.parametrize(
    "changes", [{"advantage.credit": "step"}, {"curiosity.variant": "paper"}, {"curriculum.on": True}, {"weights.usage": 0.5}]
)
def test_variants_train_to_something_else(model, encoder, tmp_path, undisturbed, changes):
    params, result, _ = run(make_config(**changes), tmp_path / "a", model, encoder)
    assert result.finished and not same(params, undisturbed[1])
    state = json.loads(next((tmp_path / "a" / "checkpoints" / "4").glob("rewards/*")).read_text())
    assert (state["curriculum"] is not None) == ("curriculum.on" in changes)
    assert os.listdir(tmp_path / "a" / "trajectories")
