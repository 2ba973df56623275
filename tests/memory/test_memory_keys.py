import dataclasses

import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.encoding import NEAR, frames_hash
from pixelis_jax.memory import KeyMaker
from pixelis_jax.memory.keys import join, masked_mean

TINY = policy.tiny(vocab_size=64)


def test_the_mean_is_over_what_is_there():
    features = np.array([[[1, 2], [3, 4], [100, 100]], [[5, 5], [5, 5], [5, 5]]], np.float32)
    mask = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(masked_mean(features, mask), [[2, 3], [0, 0]])


def test_a_key_by_hand():
    v, u = np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])
    np.testing.assert_allclose(join(v, u, 0.5), np.sqrt(0.5) * np.array([[0.6, 0.8, 0, 1]]), rtol=1e-6)
    np.testing.assert_allclose(join(v, u, 0.36), [[0.36, 0.48, 0, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(join(0 * v, u, 0.36), [[0, 0, 0, 1]])  # text alone
    np.testing.assert_array_equal(join(0 * v, 0 * u), np.zeros((1, 4)))


def test_the_cosine_of_two_keys_weighs_pixels_and_text_by_a_whatever_their_norms():
    random = np.random.default_rng(0)
    v, u = random.standard_normal((2, 6)), random.standard_normal((2, 9))
    left, right = np.asarray(join(1000 * v, u, 0.3))
    cosine = lambda x: x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1])  # noqa: E731
    assert left @ right == pytest.approx(0.3 * cosine(v) + 0.7 * cosine(u), abs=1e-5)


@pytest.fixture(scope="module")
def model() -> policy.Qwen3VL:
    return policy.Qwen3VL(TINY, rngs=nnx.Rngs(0))


@pytest.fixture
def queries() -> dict[str, np.ndarray]:
    """Two queries: frames of 4 x 4 and 2 x 4 patches in a bucket of 16, the second with one frame absent; 5 and 3 tokens."""
    random = np.random.default_rng(1)
    return {
        "ids": random.integers(10, 60, (2, 6)).astype(np.int32),
        "mask": np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]], bool),
        "patches": random.standard_normal((2, 2, 16, TINY.vision.patch_dim)).astype(np.float32),
        "grid": np.array([[[4, 4], [2, 4]], [[2, 4], [0, 0]]], np.int32),
    }


def test_keys_pool_the_merger_and_the_embeddings_of_what_is_there(model, queries):
    keys = KeyMaker(model)(**queries)
    tokens = np.asarray(model.encode_vision(policy.VisionInputs(patches=queries["patches"], grid=queries["grid"])).tokens)
    table = np.asarray(model.decoder.embedding[...])
    v = [np.concatenate([tokens[0, :4], tokens[0, 4:6]]).mean(axis=0), tokens[1, :2].mean(axis=0)]
    u = [table[queries["ids"][0, :5]].mean(axis=0), table[queries["ids"][1, 1:4]].mean(axis=0)]
    expected = [np.concatenate([a / np.linalg.norm(a), b / np.linalg.norm(b)]) / np.sqrt(2) for a, b in zip(v, u, strict=True)]
    assert keys.dtype == np.float32 and keys.shape == (2, 2 * TINY.text.hidden_size)
    np.testing.assert_allclose(keys, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-5)


def test_padding_changes_no_key_and_what_is_there_does(model, queries):
    make = KeyMaker(model)
    before = make(**queries)
    padded = {name: array.copy() for name, array in queries.items()}
    padded["ids"][~padded["mask"]] = 3
    padded["patches"][0, 1, 8:] = 7
    padded["patches"][1, 1] = 7
    np.testing.assert_allclose(make(**padded), before, atol=1e-6)
    for name, place in (("ids", (0, 2)), ("patches", (1, 0, 3))):
        changed = {key: array.copy() for key, array in queries.items()}
        changed[name][place] = 5
        assert abs(make(**changed) - before)[place[0]].max() > 1e-4


def test_a_question_without_pixels_and_one_without_anything(model, queries):
    bare = queries | {"patches": queries["patches"][:, :0], "grid": queries["grid"][:, :0]}
    keys = KeyMaker(model)(**bare)
    assert not keys[:, : TINY.text.hidden_size].any()
    with pytest.raises(ValueError, match="neither text nor pixels"):
        KeyMaker(model)(**bare | {"mask": np.zeros((2, 6), bool)})
    with pytest.raises(ValueError, match="share is 2"):
        KeyMaker(model, share=2)


def test_keys_are_those_of_the_policy_as_it_was(queries):
    model = policy.Qwen3VL(TINY, rngs=nnx.Rngs(0))
    make = KeyMaker(model)
    before = make(**queries)
    model.decoder.embedding[...] = 2 * model.decoder.embedding[...] + 1
    np.testing.assert_array_equal(make(**queries), before)
    assert abs(KeyMaker(model)(**queries) - before).max() > 0.01


def test_hashes_of_a_picture_seen_again_are_near_and_of_others_are_not():
    random = np.random.default_rng(0)
    pictures = np.kron(random.integers(0, 256, (6, 8, 8, 3)), np.ones((1, 12, 12, 1))).astype(np.uint8)
    again = np.clip(pictures[0].astype(int) + random.integers(-6, 7, pictures[0].shape), 0, 255).astype(np.uint8)
    first = frames_hash([pictures[0]])
    assert 0 <= first < 2**64
    assert (first ^ frames_hash([again])).bit_count() <= NEAR
    assert all((first ^ frames_hash([other])).bit_count() > NEAR for other in pictures[1:])
    assert frames_hash([pictures[0], pictures[1]]) != first


def test_the_configuration_is_that_of_the_algorithm():
    from pixelis_jax.memory import MemoryConfig

    assert dataclasses.asdict(MemoryConfig()) | {"capacity": None, "index": None, "widest": None} == {
        "capacity": None,
        "silent_below": 50,
        "near": 4,
        "value_aware": True,
        "decay": 0.9,
        "widest": None,
        "index": None,
    }
