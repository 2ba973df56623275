"""Supervised fine-tuning of adapters beside a base in few bits: what it costs, what it learns, and what it leaves alone."""

import contextlib
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import tiny_sft
from pixelis_jax import policy
from pixelis_jax.commands import models
from pixelis_jax.commands.train import build_data
from pixelis_jax.data import pipeline, records
from pixelis_jax.policy import adapters, weights
from pixelis_jax.training import sft
from pixelis_jax.workdir import Checkpoints, Workdir

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASES = ("int8", "int4")


def lora(base: str) -> policy.Lora:
    return policy.Lora(rank=4, alpha=8.0, targets=TARGETS, base=base)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.array_record"
    records.write_records(path, micro.make_examples(24))
    return path


@pytest.fixture(scope="module")
def full(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of the same run over the base as it is."""
    path = tmp_path_factory.mktemp("full") / "run"
    sft.train(micro.make_config(data, trainable="adapters"), path, weights.restack(micro.make_model(), lora=lora("")))
    return Workdir(path).metrics()


@pytest.mark.parametrize("base", BASES)
def test_adapters_learn_and_the_base_keeps_its_bits(base: str, data: Path, full: list[dict], tmp_path: Path) -> None:
    model = weights.restack(micro.make_model(), lora=lora(base))
    before = {path: node[...] for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    trained, result = sft.train(micro.make_config(data, trainable="adapters"), tmp_path / "run", model)
    assert result.finished
    rows = Workdir(tmp_path / "run").metrics()
    assert rows[-1]["loss"] < 0.95 * rows[0]["loss"]
    for row, expected in zip(rows, full, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.01)
    for path, node in nnx.iter_graph(trained):
        if isinstance(node, nnx.Param):
            assert node.dtype == before[path].dtype
            assert np.array_equal(node[...], before[path]) != adapters.is_adapter(path), path
    with contextlib.closing(Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)) as checkpoints:
        stored = checkpoints.stored(120, "params")
    assert {name.rpartition("/")[2] for name in stored} == {"lora_a", "lora_b"}


@pytest.mark.parametrize("trainable", ["all", "decoder"])
def test_more_than_adapters_is_refused(trainable: str, data: Path, tmp_path: Path) -> None:
    model = weights.restack(micro.make_model(), lora=lora("int8"))
    words = f"lora.base is 'int8', but trainable is '{trainable}'"
    with pytest.raises(policy.ConfigError, match=words):
        sft.train(micro.make_config(data, trainable=trainable), tmp_path / "run", model)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_shipped_policy_hardly_loses_by_it(tmp_path: Path) -> None:
    """Imitation loss of `tiny_sft` on new scenes, with its kernels as they are and in few bits."""
    config = tiny_sft.get_config()
    config.scenes.update({"split": "val", "workers": 0})
    config.scenes.counts, config.scenes.styles = ConfigDict({"read": 8, "shape": 8}), ConfigDict({"direct": 1.0})
    path = build_data(config, tmp_path, models.load("tiny_sft"))
    found = imitation_losses(path, config)
    assert found[""] < 3  # of 6.9 by chance
    assert abs(found["int8"] - found[""]) < 0.005
    assert abs(found["int4"] - found[""]) < 0.05


def imitation_losses(path: Path, config: ConfigDict, count: int = 24) -> dict[str, float]:
    """Mean negative log-probability of the first examples in a file, by base."""
    source = records.RecordSource(path)
    numbers = range(min(count, len(source)))
    tokens, frames = source.sizes[: len(numbers), :2].max(axis=0)
    sizes = source.sizes[: len(numbers)]
    bucket = pipeline.Bucket(
        rows=len(numbers),
        tokens=int(tokens),
        frames=int(frames),
        patches=int(sizes[:, 2].max()),
        calls=max(1, int(sizes[:, 4].max())),
        weighted=int(sizes[:, 3].max()),
    )
    batch = pipeline.make_batch(source.read(numbers), bucket, models.load("tiny_sft").model.config.vision.patch_size)
    losses: dict[str, float] = {}
    for base in ("", *BASES):
        model = models.load("tiny_sft", lora=lora(base)).model
        banned = np.zeros(model.config.text.vocab_size, bool)

        @jax.jit
        def imitation(batch, model=model, banned=banned):
            hidden, _ = sft.encode(model, batch, config.pixels)
            return sft.imitate(model, hidden, batch, banned, config.loss)[0]

        losses[base] = float(imitation(batch))
    return losses
