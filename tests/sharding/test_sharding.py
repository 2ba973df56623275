"""The same step on one device and on meshes of eight; the rule table by hand."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from pixelis_jax import policy, sharding


@pytest.fixture(scope="module")
def mesh() -> AbstractMesh:
    return AbstractMesh((2, 2, 2, 1, 1), tuple(sharding.MESH_AXES))


def test_one_device_and_eight_give_the_same_step():
    script = pathlib.Path(__file__).with_name("sharded_step.py")
    root = script.parents[2]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 2
    for result in results:
        assert result["loss"] < 1e-5, result
        assert result["gradients"] < 1e-5, result
        assert (result["split"] > 0) == (result["mesh"] != {"data": 8}), result


def test_rules_place_named_axes(mesh):
    assert sharding.partition_spec(("embed", "mlp"), (128, 384), mesh) == PartitionSpec(("fsdp",), ("tensor",))
    assert sharding.partition_spec(("vocab", "embed"), (96, 128), mesh) == PartitionSpec(("tensor",), ("fsdp",))
    assert sharding.partition_spec((None,), (128,), mesh) == PartitionSpec(None)
    assert sharding.partition_spec(("batch", None), (8, 4), mesh) == PartitionSpec(("data", "fsdp"), None)


def test_a_dimension_that_does_not_divide_stays_whole(mesh):
    assert sharding.partition_spec(("vocab", "embed"), (97, 128), mesh) == PartitionSpec(None, ("fsdp",))


def test_a_mesh_axis_is_used_once(mesh):
    assert sharding.partition_spec(("vision_mlp", "vision_heads"), (64, 64), mesh) == PartitionSpec(("tensor",), None)


def test_an_unknown_name_is_refused(mesh):
    with pytest.raises(ValueError, match="no sharding rule .*'embedd'"):
        sharding.partition_spec(("embedd",), (8,), mesh)
    with pytest.raises(ValueError, match="2 logical axes"):
        sharding.partition_spec(("embed", "mlp"), (8,), mesh)


@pytest.mark.parametrize("preset", [policy.qwen3_vl_2b, policy.qwen3_vl_8b])
def test_every_matrix_of_a_released_model_is_split(preset, mesh):
    from pixelis_jax.policy import weights

    state = nnx.state(weights.abstract_model(preset()), nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        spec = sharding.parameter_sharding(parameter, mesh).spec
        if parameter.ndim > 1:
            assert any(spec), path


def test_a_mesh_must_cover_the_devices():
    with pytest.raises(ValueError, match="does not cover"):
        sharding.create_mesh(data=3, fsdp=7)
    mesh = sharding.create_mesh()
    assert mesh.axis_names == tuple(sharding.MESH_AXES)
    assert mesh.size == jax.device_count()


def test_optimizer_state_follows_its_parameters():
    optax = pytest.importorskip("optax")
    model = nnx.eval_shape(lambda: policy.Qwen3VL(policy.tiny(vocab_size=64), rngs=nnx.Rngs(0)))
    optimizer = nnx.eval_shape(lambda: nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param))
    mesh = AbstractMesh((1, 2, 2, 1, 1), tuple(sharding.MESH_AXES))
    placed = sharding.state_shardings(nnx.state(optimizer), mesh)
    specs = [leaf.spec for leaf in jax.tree.leaves(placed)]
    parameters = [leaf.spec for leaf in jax.tree.leaves(sharding.state_shardings(nnx.state(model), mesh))]
    split = sum(any(spec) for spec in specs)
    assert split == 2 * sum(any(spec) for spec in parameters) > 0
    assert np.all([isinstance(spec, PartitionSpec) for spec in specs])
