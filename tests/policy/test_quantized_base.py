"""Adapters beside kernels in few bits: how they round, and that nothing else about the model changes."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax import policy
from pixelis_jax.policy import adapters, quantization, weights
from pixelis_jax.training.state import join_parameters, split_parameters
from pixelis_jax.workdir import Checkpoints

TINY = policy.tiny(vocab_size=64)
CONFIG = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_hidden_layers=4))
IDS = np.random.default_rng(0).integers(0, 50, (2, 9)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(9, dtype=np.int32)[:, None], (2, 9, 3))
SCANNED = policy.Execution(scan_layers=True)
BASES = list(quantization.FORMATS)


def lora(base: str) -> policy.Lora:
    return policy.Lora(rank=4, alpha=8.0, targets=("q_proj", "down_proj"), base=base)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model that is sure of something: kernels keep the scale of their input, and logits differ."""
    model = policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0))
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param) and path[-1] in ("kernel", "embedding"):
            node.set_value(node[...] * (4 if path[-1] == "kernel" else 10))
    path = tmp_path_factory.mktemp("published") / "model"
    weights.save(model, path)
    return path


@nnx.jit
def hidden(model):
    return model(IDS, POSITIONS)[0]


def train_adapters(model):
    """Gives adapters values, so that they do something; the same ones in every layer, stacked or not."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param) and adapters.is_adapter(path):
            value = 0.1 * jax.random.normal(jax.random.key(path[-1] == "lora_b"), node.shape[-2:])
            node.set_value(jnp.broadcast_to(value, node.shape))
    return model


def parameters(model):
    return {path: node[...] for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}


def quantised(model):
    return [node for _, node in nnx.iter_graph(model) if getattr(node, "kernel_scale", None) is not None]


def with_plain_kernels(model):
    """The same function without any quantisation: kernels as floats, adapters beside them."""
    plain = nnx.clone(model)
    for linear in quantised(plain):
        linear.kernel.set_value(quantization.dequantize(linear.kernel[...], linear.kernel_scale[...]))
        linear.kernel_scale = None
    return plain


def loss_and_gradients(model):
    """Loss, and its gradients by what is trained, as a training step takes them."""
    graph, state = nnx.split(model)
    trained, frozen = split_parameters(nnx.to_pure_dict(state), adapters.is_adapter)

    @jax.jit
    def step(trained, frozen):
        def loss(trained):
            model = nnx.merge(graph, nnx.State(join_parameters(trained, frozen)))
            log_probs = jax.nn.log_softmax(model.unembed(model(IDS, POSITIONS)[0][:, :-1]))
            return -jnp.take_along_axis(log_probs, IDS[:, 1:, None], axis=-1).mean()

        return jax.value_and_grad(loss)(trained)

    return step(trained, frozen)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.sampled_from([8, 48, 64, 128]),
    size=st.floats(1e-6, 1e4),
    base=st.sampled_from(BASES),
)
def test_rounding_is_at_most_half_a_step(seed, rows, size, base):
    kernel = size * np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    kernel[:, 0] = 0
    values, scale = quantization.quantize(kernel, base)
    tile = quantization.FORMATS[base].tile_of(rows)
    assert values.shape == (rows, 16) and scale.shape == (rows // tile, 16) and scale.dtype == jnp.float32
    wide = np.repeat(scale, tile, axis=0)
    np.testing.assert_array_less(np.abs(quantization.dequantize(values, scale) - kernel), 0.5001 * wide)
    # A step is the largest number of its tile over half the number of steps.
    largest = np.abs(kernel.reshape(-1, tile, 16)).max(axis=1)
    steps = {"int8": 127.5, "int4": 7.5}[base]
    np.testing.assert_allclose(scale[:, 1:], largest[:, 1:] / steps, rtol=1e-6)


def test_int8_by_hand():
    # The largest number of a column is 127.5 steps: 255 gives steps of 2, 51 of 0.4.
    values, scale = quantization.quantize(jnp.array([[255.0, -51.0], [3.1, 10.0], [-100.0, 0.0]]), "int8")
    np.testing.assert_allclose(scale, [[2.0, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(values, [[127, -127], [2, 25], [-50, 0]])


@pytest.mark.parametrize("base", BASES)
def test_loss_and_gradients_are_those_of_the_dequantised_kernels(base, published):
    model = train_adapters(weights.load(published, lora=lora(base)))
    assert len(quantised(model)) == 2 * CONFIG.text.num_hidden_layers
    loss, gradients = loss_and_gradients(model)
    chex.assert_trees_all_close((loss, gradients), loss_and_gradients(with_plain_kernels(model)), rtol=1e-4, atol=1e-6)
    paths = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(gradients)}
    assert paths == {"lora_a", "lora_b"} and all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))

    for linear in quantised(model):  # the scale dropped
        linear.kernel_scale.set_value(jnp.ones_like(linear.kernel_scale[...]))
    assert abs(loss_and_gradients(model)[0] - loss) > 0.1


def test_no_gradient_reaches_the_scale_and_forward_is_as_without_the_rule():
    values, scale = quantization.quantize(jax.random.normal(jax.random.key(0), (32, 16)), "int8")
    x = jax.random.normal(jax.random.key(1), (5, 32))
    to_x, to_scale = jax.grad(lambda x, scale: quantization.matmul(x, values, scale).sum(), argnums=(0, 1))(x, scale)
    np.testing.assert_allclose(to_x, jnp.ones((5, 16)) @ quantization.dequantize(values, scale).T, rtol=1e-5)
    assert not np.any(to_scale)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("execution", [policy.Execution(), SCANNED], ids=["unrolled", "scanned"])
def test_loading_is_quantising_what_was_loaded(execution, base, published):
    for dtype in (jnp.float32, jnp.bfloat16):
        streamed = weights.load(published, dtype=dtype, execution=execution, lora=lora(base))
        after = weights.restack(weights.load(published, dtype=dtype), execution, lora(base))
        chex.assert_trees_all_equal(parameters(streamed), parameters(after))
        assert {linear.kernel.dtype for linear in quantised(streamed)} == {jnp.dtype(base)}
        assert {linear.kernel_scale.dtype for linear in quantised(streamed)} == {jnp.dtype("float32")}


def test_adapters_begin_the_same_beside_any_base(published):
    first, *others = (parameters(weights.load(published, lora=lora(base))) for base in ("", *BASES))
    drawn = [path for path in first if path[-1] == "lora_a"]
    assert len(drawn) == 2 * CONFIG.text.num_hidden_layers
    for other in others:
        chex.assert_trees_all_equal([other[path] for path in drawn], [first[path] for path in drawn])


@pytest.mark.parametrize("base", BASES)
def test_scanned_layers_compute_the_same(base, published):
    executions = policy.Execution(), SCANNED
    unrolled, scanned = (train_adapters(weights.load(published, execution=e, lora=lora(base))) for e in executions)
    np.testing.assert_allclose(hidden(scanned), hidden(unrolled), atol=1e-5)
    _, gradients = loss_and_gradients(scanned)
    _, expected = loss_and_gradients(unrolled)
    for name in ("q_proj", "down_proj"):
        part = "attn" if name == "q_proj" else "mlp"
        stacked = gradients["decoder"]["stacked"][part][name]["lora_b"]
        layers = [expected["decoder"]["layers"][index][part][name]["lora_b"] for index in range(4)]
        np.testing.assert_allclose(stacked, np.stack(layers[-len(stacked) :]), atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_scan_keeps_no_dequantised_kernel_for_its_backward_pass(remat, published):
    """What a loop returns is what it keeps: with layers in floats, that would be the whole model."""
    execution = policy.Execution(scan_layers=True, remat=remat)

    def kept(model):
        graph, state = nnx.split(model)
        trained, frozen = split_parameters(nnx.to_pure_dict(state), adapters.is_adapter)

        def loss(trained):
            return nnx.merge(graph, nnx.State(join_parameters(trained, frozen)))(IDS, POSITIONS)[0].sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss))(trained)
        scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        assert len(scans) >= 2
        return {tuple(out.aval.shape) for eqn in scans for out in eqn.outvars if out.aval.dtype == jnp.float32}

    model = weights.load(published, execution=execution, lora=lora("int8"))
    stacked = model.decoder.stacked
    shapes = {tuple(linear.kernel.shape) for linear in (stacked.attn.q_proj, stacked.mlp.down_proj)}
    assert all(len(shape) == 3 for shape in shapes) and not shapes & kept(model)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("execution", [policy.Execution(), SCANNED], ids=["unrolled", "scanned"])
def test_merging_dequantises_and_gives_a_model_that_can_be_saved(execution, base, published, tmp_path):
    model = train_adapters(weights.load(published, execution=execution, lora=lora(base)))
    with pytest.raises(weights.WeightsError, match=f"base is in {base}"):
        weights.save(model, tmp_path / "model")
    with pytest.raises(weights.WeightsError, match=f"base is in {base}"):
        weights.restack(model)
    assert not (tmp_path / "model").exists()
    merged = adapters.merge_adapters(model)
    assert {str(value.dtype) for value in parameters(merged).values()} == {"float32"}
    np.testing.assert_allclose(hidden(merged), hidden(model), atol=1e-4)
    weights.save(merged, tmp_path / "model")
    np.testing.assert_allclose(hidden(weights.load(tmp_path / "model")), hidden(model), atol=1e-4)


def test_a_checkpoint_keeps_every_bit(published, tmp_path):
    state = nnx.to_pure_dict(nnx.state(weights.load(published, execution=SCANNED, lora=lora("int8"))))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(1, arrays={"params": state})
        restored, _ = checkpoints.restore(1, arrays={"params": jax.eval_shape(lambda: state)})
    chex.assert_trees_all_equal(restored["params"], state)
    chex.assert_trees_all_equal_dtypes(restored["params"], state)


def test_how_many_bits_a_number_takes(published):
    # A scale of 32 bits for each column of 128 or 384 numbers, or for each block of 64.
    for base, bits in {"int8": {8 + 32 / 128, 8 + 32 / 384}, "int4": {4 + 32 / 64}}.items():
        model = weights.abstract_model(CONFIG, lora=lora(base))
        taken = set()
        for linear in quantised(model):
            kernel, scale = linear.kernel, linear.kernel_scale
            stored = kernel.size * jax.dtypes.itemsize_bits(kernel.dtype) + 32 * scale.size
            taken.add(stored / kernel.size)
        assert taken == bits


def test_an_unknown_base_is_refused():
    with pytest.raises(policy.ConfigError, match="lora.base is 'nf3', known are int8, int4"):
        policy.Lora(rank=4, alpha=8.0, base="nf3")


@pytest.mark.parametrize("base", [BASES[0], *(pytest.param(base, marks=pytest.mark.slow) for base in BASES[1:])])
def test_two_devices_compute_what_one_does(base, published):
    script = pathlib.Path(__file__).with_name("quantized_mesh.py")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(script.parents[2]),
    }
    command = [sys.executable, script, published, base]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        row = json.loads(line)
        assert row["loss"] < 1e-5 and row["gradients"] < 1e-5 and row["split"] > 0, row
