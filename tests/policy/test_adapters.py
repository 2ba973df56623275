"""Low-rank adapters: nothing at first, something once trained, and gone again when they are merged."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy import adapters, weights

TINY = policy.tiny(vocab_size=64)
CONFIG = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_hidden_layers=4))
LORA = policy.Lora(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
IDS = np.random.default_rng(0).integers(0, 50, (2, 9)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(9, dtype=np.int32)[:, None], (2, 9, 3))


@nnx.jit
def _hidden(model):
    return model(IDS, POSITIONS)[0]


def _load(tmp_path, **options):
    if not (tmp_path / "model").exists():
        weights.save(policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0)), tmp_path / "model")
    return weights.load(tmp_path / "model", **options)


@pytest.mark.parametrize("execution", [policy.Execution(), policy.Execution(scan_layers=True)], ids=["unrolled", "scanned"])
def test_adapters_change_nothing_until_they_are_trained_and_merge_into_the_weights(execution, tmp_path):
    plain = _load(tmp_path, execution=execution)
    adapted = _load(tmp_path, execution=execution, lora=LORA)
    np.testing.assert_array_equal(_hidden(adapted), _hidden(plain))
    trained = 0
    for path, node in nnx.iter_graph(adapted):
        if isinstance(node, nnx.Param) and path[-1] == "lora_b":
            node.set_value(0.1 * jax.random.normal(jax.random.key(trained), node.shape))
            trained += node.shape[0] if "stacked" in path else 1
    changed = _hidden(adapted)
    assert np.abs(changed - _hidden(plain)).max() > 1e-2
    merged = adapters.merge_adapters(adapted)
    np.testing.assert_allclose(_hidden(merged), changed, atol=1e-4)
    names = {path[-1] for path, node in nnx.iter_graph(merged) if isinstance(node, nnx.Param)}
    assert "lora_a" not in names
    weights.save(merged, tmp_path / "merged")
    np.testing.assert_allclose(_hidden(weights.load(tmp_path / "merged")), changed, atol=1e-4)


def test_only_the_targets_have_adapters(tmp_path):
    model = policy.Qwen3VL(CONFIG, lora=LORA, rngs=nnx.Rngs(0))
    found = {path[-2] for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param) and adapters.is_adapter(path)}
    assert found == {"q_proj", "down_proj"}


def test_an_unknown_target_is_refused():
    with pytest.raises(policy.ConfigError, match="no projection qkv"):
        policy.Lora(rank=4, alpha=8.0, targets=("qkv",))
