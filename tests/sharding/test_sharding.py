"""The same step on one device and on meshes of eight; the rule table by hand."""

import json
import os
import pathlib
import socket
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


SCRIPT = pathlib.Path(__file__).with_name("sharded_step.py")


def _environment(devices: int, **more: str) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        **more,
    }


def _rows(*arguments: str, environments: list[dict[str, str]], timeout: int) -> list[dict]:
    """Runs the script once an environment, all together, and returns the rows of the first."""
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for environment in environments
    ]
    done = [process.communicate(timeout=timeout) for process in started]
    for process, (_, errors) in zip(started, done, strict=True):
        assert process.returncode == 0, errors
        assert "Involuntary full rematerialization" not in errors, errors
    return [json.loads(line) for line in done[0][0].splitlines() if line.startswith("{")]


def _check(results: list[dict], count: int) -> None:
    assert len(results) == count
    for result in results:
        assert result["loss"] < 1e-5, result
        assert result["gradients"] < 1e-5, result
        assert (result["split"] > 0) == (result["mesh"] != {"data": 8}), result


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_step():
    _check(_rows("--few", environments=[_environment(8)], timeout=280), 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mesh_gives_the_same_step():
    _check(_rows(environments=[_environment(8)], timeout=850), 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_of_four_devices_give_the_same_step():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    group = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environments = [_environment(4, **group, JAX_PROCESS_ID=str(number)) for number in range(2)]
    results = _rows("--few", environments=environments, timeout=850)
    _check(results, 2)
    assert {result["processes"] for result in results} == {2}


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
