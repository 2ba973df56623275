"""Files that are a model, and files that are not. Equality with transformers is shown in tests/oracle."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from pixelis_jax import policy, sharding
from pixelis_jax.policy import weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights") / "model"
    extra = directory.parent / "tokenizer.json"
    extra.write_text("{}")
    model = policy.Qwen3VL(policy.tiny(vocab_size=64), rngs=nnx.Rngs(0))
    weights.save(model, directory, max_shard_bytes=2**20, extra_files=[extra])
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_round_trip_and_layout(saved):
    names = {file.name for file in saved.iterdir()}
    assert {"config.json", "tokenizer.json", weights.INDEX} < names
    assert not list(saved.parent.glob(".*partial*"))
    shards = [load_file(file) for file in saved.glob("*.safetensors")]
    assert len(shards) > 3
    assert all(sum(x.nbytes for x in shard.values()) <= 2**20 or len(shard) == 1 for shard in shards)
    model = policy.Qwen3VL(policy.tiny(vocab_size=64), rngs=nnx.Rngs(0))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(weights.load(saved)))


def test_loading_onto_a_mesh(saved):
    mesh = sharding.create_mesh()
    model = weights.load(saved, mesh=mesh)
    assert all(value.sharding.mesh == mesh for value in jax.tree.leaves(nnx.state(model)))


def test_one_file_without_index_is_read(copy):
    tensors = {name: x for file in copy.glob("*.safetensors") for name, x in load_file(file).items()}
    for file in [*copy.glob("*.safetensors"), copy / weights.INDEX]:
        file.unlink()
    save_file(tensors, copy / "model.safetensors")
    weights.load(copy)


def _edit(directory, change) -> None:
    index = directory / weights.INDEX
    file = directory / json.loads(index.read_text())["weight_map"]["model.language_model.norm.weight"]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    other = {name: f.name for f in directory.glob("*.safetensors") for name in load_file(f)}
    index.write_text(json.dumps({"weight_map": other}))


def test_missing_and_unused_tensors_are_all_named(copy):
    def change(tensors):
        tensors["model.extra.a"] = tensors["model.extra.b"] = np.zeros(1, np.float32)
        del tensors["model.language_model.norm.weight"]

    _edit(copy, change)
    message = "missing: model.language_model.norm.weight; unused: model.extra.a, model.extra.b"
    with pytest.raises(weights.WeightsError, match=message):
        weights.load(copy)


def test_a_wrong_shape_is_named(copy):
    _edit(copy, lambda tensors: tensors.update({"model.language_model.norm.weight": np.zeros(3, np.float32)}))
    with pytest.raises(weights.WeightsError, match=r"norm.weight has shape \(3,\), config.json says \(128,\)"):
        weights.load(copy)


@pytest.mark.parametrize("damage", ["no config", "no weights", "truncated", "shard gone", "bad index", "empty"])
def test_a_directory_that_is_no_model(copy, damage):
    shard = min(copy.glob("*.safetensors"))
    if damage == "no config":
        (copy / "config.json").unlink()
    elif damage == "no weights":
        (copy / weights.INDEX).unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "bad index":
        (copy / weights.INDEX).write_text("[]")
    else:
        copy = copy / "nothing"
    with pytest.raises(weights.WeightsError) as caught:
        weights.load(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_saving_is_all_or_nothing(saved, tmp_path):
    model = weights.load(saved)
    with pytest.raises(weights.WeightsError, match="already exists"):
        weights.save(model, saved)
    with pytest.raises(FileNotFoundError):
        weights.save(model, tmp_path / "new", extra_files=[tmp_path / "absent.json"])
    assert not list(tmp_path.iterdir())
