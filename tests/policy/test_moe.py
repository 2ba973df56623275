"""A mixture of experts against the sum written out token by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy import moe

TEXT = dataclasses.replace(
    policy.tiny(vocab_size=64).text,
    hidden_size=8,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=6,
    initializer_range=0.7,
)


def _layer() -> moe.MixtureOfExperts:
    return moe.MixtureOfExperts(TEXT, precision=policy.Precision(), rngs=nnx.Rngs(0))


def _by_hand(layer, x: np.ndarray) -> np.ndarray:
    router, gate_up, down = (np.asarray(p[...]) for p in (layer.router, layer.gate_up, layer.down))
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        logits = x[place] @ router
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-probabilities)[:2]
        for expert in best:
            gate, up = x[place] @ gate_up[expert][:, 0], x[place] @ gate_up[expert][:, 1]
            said = (gate / (1 + np.exp(-gate)) * up) @ down[expert]
            out[place] += probabilities[expert] / probabilities[best].sum() * said
    return out


def test_equals_the_sum_written_out():
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(lambda x: _layer()(x))(x), _by_hand(_layer(), x), atol=1e-5)


def test_gradients_equal_finite_differences():
    x = np.random.default_rng(1).normal(size=(1, 3, 8)).astype(np.float32)
    layer, direction = _layer(), np.random.default_rng(2).normal(size=(1, 3, 8)).astype(np.float32)

    def loss(x):
        return (layer(x) ** 2).sum()

    slope = float((jax.grad(loss)(x) * direction).sum())
    step = 1e-2
    measured = float(loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert slope == pytest.approx(measured, rel=2e-2)


def test_experts_that_live_elsewhere_add_nothing_here():
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
    layer = _layer()
    weights, experts = layer.route(jnp.asarray(x))
    whole = moe.mix(x, weights, experts, layer.gate_up[...], layer.down[...])
    parts = [
        moe.mix(x, weights, experts - first, layer.gate_up[first:stop], layer.down[first:stop])
        for first, stop in ((0, 2), (2, 5))
    ]
    np.testing.assert_allclose(parts[0] + parts[1], whole, atol=1e-5)
    assert min(np.abs(part).max() for part in parts) > 1e-3


def test_a_mixture_round_trips_through_config_json():
    config = policy.qwen3_vl_30b_a3b()
    raw = config.to_json()
    assert raw["model_type"] == "qwen3_vl_moe" and raw["text_config"]["num_experts"] == 128
    assert policy.Qwen3VLConfig.from_json(raw) == config
    raw["text_config"] |= {"decoder_sparse_step": 2}
    with pytest.raises(policy.ConfigError, match="decoder_sparse_step is 2"):
        policy.Qwen3VLConfig.from_json(raw)


def test_thirty_billion_parameters_of_which_three_are_met():
    from pixelis_jax.policy import weights

    names = weights.published_names(policy.qwen3_vl_30b_a3b())
    total = sum(int(np.prod(shape)) for shape in names.values())
    experts = sum(int(np.prod(shape)) for name, shape in names.items() if ".experts." in name)
    assert 30e9 < total < 32e9
    assert 3e9 < total - experts * (1 - 8 / 128) < 4e9


@pytest.mark.parametrize("elsewhere", [0, 2])
def test_kernels_multiply_like_ragged_products(elsewhere, monkeypatch):
    monkeypatch.setattr(moe.megablox, "gmm", functools.partial(moe.megablox.gmm, interpret=True))
    layer, rng = _layer(), np.random.default_rng(3)
    x, target = (jnp.asarray(rng.normal(size=(2, 64, 8)), jnp.float32) for _ in range(2))  # 256 choices
    weights, experts = layer.route(x)
    experts = jnp.where(experts == 1, 3, experts) - elsewhere  # one expert that nobody chose; the first few live elsewhere

    def loss(x, gate_up, down, kernel):
        said = moe.mix(x, weights, experts, gate_up, down, kernel=kernel)
        return jnp.vdot(said, target), said

    here = (layer.gate_up[...][elsewhere:], layer.down[...][elsewhere:])
    graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    ((_, runs), by_runs), ((_, kernel), by_kernel) = (graded(x, *here, kernel) for kernel in (False, True))
    np.testing.assert_allclose(kernel, runs, atol=1e-5)
    for mine, theirs in zip(by_kernel, by_runs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        assert np.abs(theirs).max() > 1e-2
