"""The model alone: masks, packing, cache, heads, gradients. Equality with transformers is shown in tests/oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy import attention

TINY = policy.tiny(vocab_size=64)
# As many layers as there are DeepStack taps: more of the same would only take longer to compile.
CONFIG = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_hidden_layers=2))
TEXT = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
LINE = np.broadcast_to(np.arange(12, dtype=np.int32)[:, None], (12, 3))


@functools.cache
def _model(**options) -> policy.Qwen3VL:
    return policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0), **options)


@nnx.jit
def _run(model, ids, positions, **options):
    hidden, cache = model(ids, positions, **options)
    return model.unembed(hidden), cache


def _lines(count: int) -> np.ndarray:
    return np.stack([LINE] * count)


def test_about_two_million_parameters():
    model = nnx.eval_shape(lambda: policy.Qwen3VL(TINY, rngs=nnx.Rngs(0)))
    count = sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 1_000_000 < count < 2_000_000


def test_packing_equals_separate_rows():
    apart, _ = _run(_model(), TEXT, _lines(2), attention_mask=np.ones((2, 12), bool))
    segments = np.repeat([[1, 2]], 12, axis=1)
    packed, _ = _run(_model(), TEXT.reshape(1, -1), np.concatenate(_lines(2))[None], attention_mask=segments)
    np.testing.assert_allclose(packed.reshape(apart.shape), apart, atol=1e-5)


def test_the_future_is_not_seen():
    changed = TEXT.copy()
    changed[:, 8:] += 1
    before, _ = _run(_model(), TEXT, _lines(2), attention_mask=np.ones((2, 12), bool))
    after, _ = _run(_model(), changed, _lines(2), attention_mask=np.ones((2, 12), bool))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-3


def test_ragged_chunks_through_the_cache_equal_one_forward():
    whole, _ = _run(_model(), TEXT, _lines(2), attention_mask=np.ones((2, 12), bool))
    cache = policy.KVCache.create(CONFIG, 2, 16)
    seen: list[list[np.ndarray]] = [[], []]
    while int(cache.length.min()) < 12:
        start = np.asarray(cache.length)
        valid = np.minimum([3, 2], 12 - start)  # rows move on at different speeds
        ids, positions = np.full((2, 3), 7, np.int32), np.zeros((2, 3, 3), np.int32)
        for row in range(2):
            chunk = slice(start[row], start[row] + valid[row])
            ids[row, : valid[row]], positions[row, : valid[row]] = TEXT[row, chunk], LINE[chunk]
        logits, cache = _run(_model(), ids, positions, attention_mask=np.arange(3) < valid[:, None], cache=cache)
        for row in range(2):
            seen[row].append(np.asarray(logits[row, : valid[row]]))
    for row in range(2):
        np.testing.assert_allclose(np.concatenate(seen[row]), whole[row], atol=1e-5)


def test_a_reset_row_forgets_and_the_other_does_not():
    cache = policy.KVCache.create(CONFIG, 2, 16)
    mask = np.ones((2, 12), bool)
    fresh, full = _run(_model(), TEXT, _lines(2), attention_mask=mask, cache=cache)
    full = full.at(np.asarray([0, 1]), empty=np.asarray([True, False]))
    again, cache = _run(_model(), TEXT, _lines(2), attention_mask=mask, cache=full)
    np.testing.assert_allclose(again[0], fresh[0], atol=1e-5)
    assert np.abs(again[1] - fresh[1]).max() > 1e-3
    assert cache.length.tolist() == [12, 16]  # the second row was full: what did not fit was dropped


def _vision(grid, patches=None) -> policy.VisionInputs:
    patches = np.random.default_rng(1).normal(size=(1, len(grid), 16, 384)) if patches is None else patches
    return policy.VisionInputs(patches=jnp.asarray(patches, jnp.float32), grid=jnp.asarray([grid], jnp.int32))


def test_a_frame_sees_neither_other_frames_nor_padding():
    encode = nnx.jit(lambda model, inputs: model.encode_vision(inputs))
    inputs = _vision([(2, 4), (4, 4), (0, 0)])
    before = encode(_model(), inputs)
    noise = inputs.patches.at[0, 0, 8:].add(5.0).at[0, 1].add(1.0).at[0, 2].add(9.0)
    after = encode(_model(), inputs.replace(patches=noise))
    np.testing.assert_array_equal(before.tokens[0, :2], after.tokens[0, :2])
    np.testing.assert_array_equal(before.deepstack[:, 0, :2], after.deepstack[:, 0, :2])
    assert np.abs(before.tokens[0, 4:8] - after.tokens[0, 4:8]).max() > 1e-4
    assert np.isfinite(after.tokens).all()


def test_gradients_reach_every_parameter_and_remat_changes_none():
    ids = np.asarray(TEXT[:1])
    ids[0, 2:6] = CONFIG.image_token_id
    positions = policy.mrope_positions(ids[0], [(1, 4, 4)], CONFIG)[0][None]
    index = policy.visual_index(ids[0], [(1, 4, 4)], CONFIG, bucket=16)[None]

    @nnx.jit
    def gradients(model):
        def loss(model):
            visual = model.encode_vision(_vision([(4, 4)]))
            hidden, _ = model(ids, positions, visual=visual, visual_index=index)
            return jax.nn.logsumexp(model.unembed(hidden)[..., ::2], axis=-1).sum()

        return nnx.grad(loss)(model)

    plain = gradients(_model())
    for path, gradient in jax.tree_util.tree_leaves_with_path(plain):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    again = gradients(_model(execution=policy.Execution(remat="full")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)


def test_bfloat16_stays_close_and_logits_are_float32():
    model = _model(precision=policy.Precision(params=jnp.bfloat16, compute=jnp.bfloat16))
    logits, _ = _run(model, TEXT, _lines(2))
    wide = nnx.clone(_model())
    nnx.update(wide, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
    expected, _ = _run(wide, TEXT, _lines(2))
    assert logits.dtype == jnp.float32
    assert np.abs(logits - expected).max() < 0.02


def test_heads_give_places_in_the_unit_square_and_logits():
    heads = policy.AuxiliaryHeads(128, operations=6, rngs=nnx.Rngs(0))
    out = heads(100 * jax.random.normal(jax.random.key(0), (5, 128)))
    assert [out.box.shape, out.point.shape, out.span.shape, out.operation.shape] == [(5, 4), (5, 2), (5, 2), (5, 6)]
    for place in (out.box, out.point, out.span):
        assert (place >= 0).all() and (place <= 1).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        _model()(TEXT, LINE)
    with pytest.raises(ValueError, match="visual_index"):
        _model()(TEXT, _lines(2), visual=policy.VisualFeatures(tokens=jnp.zeros((2, 4, 128)), deepstack=None))
    with pytest.raises(ValueError, match="bucket of 6"):
        _model().encode_vision(policy.VisionInputs(patches=jnp.zeros((1, 1, 6, 384)), grid=jnp.zeros((1, 1, 2), int)))


def test_tiles_of_queries_see_what_one_tile_sees(monkeypatch):
    """12 tokens by tiles of 5: packed and padded rows, with a cache of 7 tokens behind them or none, and the gradient."""
    segments = np.array([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3])

    def run(tile: int, tiles: int):
        monkeypatch.setattr(attention, "TILE", tile)
        monkeypatch.setattr(attention, "TILES", tiles)
        model = policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0))
        forward = nnx.jit(lambda model, ids, positions, **options: model(ids, positions, **options))
        _, cache = forward(model, TEXT[:, :7], _lines(2)[:, :7], cache=policy.KVCache.create(CONFIG, 2, 32))
        behind, _ = forward(model, TEXT, _lines(2) + 7, attention_mask=segments != 0, cache=cache)

        def loss(model):
            hidden, _ = model(TEXT, _lines(2), attention_mask=segments)
            return jnp.mean(hidden[segments != 0] ** 3), hidden

        (_, alone), gradient = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model)
        return [behind[segments != 0], alone[segments != 0], *jax.tree.leaves(gradient)]

    assert attention.tile_ends(12) == (12,)
    whole = run(100, 1)
    by_tiles = run(5, 4)
    assert attention.tile_ends(12) == (5, 10, 12)
    assert attention.tile_ends(100) == (25, 50, 75, 100)
    for ours, expected in zip(by_tiles, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
