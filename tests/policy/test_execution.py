"""Ways to compute one function: scanned layers, recomputation, stacked caches, published files in and out of stacks."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy import stack, weights

SCANNED = policy.Execution(scan_layers=True, remat="full")


def _config(**text) -> policy.Qwen3VLConfig:
    """Two taps, so that two decoder layers are unrolled and two scanned; a vision block before, between and behind the taps."""
    tiny = policy.tiny(vocab_size=64)
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    tower = dataclasses.replace(
        tiny.vision,
        depth=5,
        hidden_size=32,
        num_heads=1,
        intermediate_size=48,
        out_hidden_size=32,
        deepstack_visual_indexes=(1, 3),
    )
    return dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, **(small | text)), vision=tower)


CONFIG = _config()
MIXTURE = _config(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


def _inputs(config, rows: int = 1):
    ids = np.random.default_rng(0).integers(0, 50, (rows, 12)).astype(np.int32)
    ids[:, 2:6] = config.image_token_id
    positions = policy.mrope_positions(ids[0], [(1, 4, 4)], config)[0]
    index = policy.visual_index(ids[0], [(1, 4, 4)], config, bucket=16)
    patches = np.random.default_rng(1).normal(size=(rows, 1, 16, config.vision.patch_dim)).astype(np.float32)
    vision = policy.VisionInputs(patches=patches, grid=np.full((rows, 1, 2), 4, np.int32))
    return ids, np.stack([positions] * rows), np.stack([index] * rows), vision


def _loss(model):
    ids, positions, index, vision = _inputs(model.config)
    hidden, _ = model(ids, positions, visual=model.encode_vision(vision), visual_index=index)
    return jax.nn.logsumexp(model.unembed(hidden)[..., ::2], axis=-1).sum()


def _published(model, directory) -> dict[str, np.ndarray]:
    """All tensors of a model as it would be published."""
    from safetensors.numpy import load_file

    weights.save(model, directory)
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("config", [CONFIG, MIXTURE], ids=["dense", "mixture"])
def test_scanned_layers_have_the_loss_and_gradients_of_unrolled_ones(config, tmp_path):
    plain = policy.Qwen3VL(config, rngs=nnx.Rngs(0))
    scanned = policy.Qwen3VL(config, execution=SCANNED, rngs=nnx.Rngs(0))
    step = nnx.jit(nnx.value_and_grad(_loss))
    (loss, gradients), (scanned_loss, scanned_gradients) = step(plain), step(scanned)
    np.testing.assert_allclose(scanned_loss, loss, rtol=1e-6)
    # Compared tensor by tensor as they would be published, where both forms have the same names.
    nnx.update(plain, gradients)
    nnx.update(scanned, scanned_gradients)
    expected, found = _published(plain, tmp_path / "plain"), _published(scanned, tmp_path / "scanned")
    assert expected.keys() == found.keys() and len(expected) > 60
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("config", [CONFIG, MIXTURE], ids=["dense", "mixture"])
def test_files_of_either_form_load_as_the_other_with_the_same_bytes(config, tmp_path):
    plain = policy.Qwen3VL(config, rngs=nnx.Rngs(0))
    tensors = _published(plain, tmp_path / "plain")
    scanned = weights.load(tmp_path / "plain", execution=SCANNED)
    assert scanned.decoder.stacked.attn.q_proj.kernel.shape == (2, 32, 64)
    again = _published(scanned, tmp_path / "scanned")
    assert tensors.keys() == again.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    if config is MIXTURE:
        assert tensors["model.language_model.layers.3.mlp.experts.gate_up_proj"].shape == (4, 32, 48)


def test_a_stack_fills_its_cache_like_single_layers():
    ids, positions, index, vision = _inputs(CONFIG, rows=2)
    run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))
    outputs = []
    for execution in (policy.Execution(), policy.Execution(scan_layers=True)):
        model = policy.Qwen3VL(CONFIG, execution=execution, rngs=nnx.Rngs(0))
        cache = policy.KVCache.create(CONFIG, 2, 16, execution=execution)
        visual = model.encode_vision(vision)
        for start, stop in ((0, 7), (7, 12)):
            part = slice(start, stop)
            valid = np.arange(start, stop)[None] < np.asarray([[12], [10]])  # the second row is shorter
            hidden, cache = run(
                model,
                ids[:, part],
                positions[:, part],
                visual=visual,
                visual_index=index[:, part],
                attention_mask=valid,
                cache=cache,
            )
        outputs.append(np.asarray(hidden))
        assert cache.length.tolist() == [12, 10]
        back = cache.copy_row(1, 0, 9)
        assert back.length.tolist() == [9, 10]
        keys = back.layers[0][0] if execution.scan_layers is False else back.stacked[0][0]
        np.testing.assert_array_equal(keys[0], keys[1])
    np.testing.assert_allclose(outputs[1][:, :3], outputs[0][:, :3], atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_of_a_cache_and_a_tail_give_what_a_whole_row_gives(scan_layers):
    execution = policy.Execution(scan_layers=scan_layers)
    model = policy.Qwen3VL(CONFIG, execution=execution, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(8, 40, (1, 20))
    positions = np.broadcast_to(np.arange(20)[None, :, None], (1, 20, 3))
    expected = np.asarray(model(ids, positions)[0])[0]
    # Three rows of pages of 4 tokens; row 1 works, row 5 is out of range.
    cache = policy.KVCache.create(CONFIG, 3, 30, execution=execution, page=4)
    two = [np.concatenate([x[:, :9]] * 2) for x in (ids, positions)]
    before = jax.tree.leaves(cache)
    hidden, cache = model(*two, cache=cache.at(np.asarray([1, 5]), empty=np.asarray([True, True])))
    np.testing.assert_allclose(hidden[0], expected[:9], atol=1e-5)
    cache = cache.at(None)
    assert cache.length.tolist() == [0, 9, 0] and len(jax.tree.leaves(cache)) == len(before)
    tail = policy.Tail.create(CONFIG, 3, 8, execution=execution)
    for step in range(9, 13):
        hidden, tail = model.decode(np.full(3, ids[0, step]), np.full(3, step), cache, tail)
        np.testing.assert_allclose(hidden[1], expected[step], atol=1e-5)
    cache = cache.merge(tail, np.asarray([0, 4, 2])).copy_row(1, 2, 13)
    rest = [np.concatenate([x[:, 13:]] * 2) for x in (ids, positions)]
    hidden, cache = model(*rest, cache=cache.at(np.asarray([2, 1])))
    np.testing.assert_allclose(hidden, [expected[13:]] * 2, atol=1e-5)
    assert cache.length.tolist() == [0, 20, 20]


def test_a_stack_keeps_names_and_gains_an_axis():
    layers = [nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in range(4)]
    stacked = stack.stack(layers)
    assert stacked.kernel.shape == (4, 2, 3) and stacked.kernel.get_metadata()["logical_axes"] == ("layers", None, None)
    x = np.ones(2, np.float32)
    _, found = stack.scan(stacked, lambda layer, carry, _: (carry, layer(x)), None)
    np.testing.assert_allclose(found, [layer(x) for layer in layers], rtol=1e-6)
    _, middle = stack.scan(stacked, lambda layer, carry, _: (carry, layer(x)), None, start=1, stop=3)
    np.testing.assert_array_equal(middle, found[1:3])


def test_unknown_options_are_refused():
    with pytest.raises(policy.ConfigError, match="execution.remat is 'some', known are none, full, dots"):
        policy.Execution(remat="some")
    with pytest.raises(policy.ConfigError, match="execution.attention"):
        policy.Execution(attention="flash")
