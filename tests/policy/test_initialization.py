"""Initial weights of a policy that is trained from nothing."""

import jax
import numpy as np
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy.initialization import POSITION_STD, RESIDUAL, scale_by_fan_in

CONFIG = policy.tiny(vocab_size=256)


def test_kernels_keep_the_scale_of_their_input() -> None:
    model = policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0))
    before = {path: parameter[...] for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    scale_by_fan_in(model)
    after = {path: parameter[...] for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    rng = np.random.default_rng(0)
    kernels = 0
    for path, value in after.items():
        if len(path) > 3 and any(name in path for name in RESIDUAL) and "merger" not in str(path):
            assert not np.any(value), path  # what a block adds to its input
        elif path[-1] == "kernel" and value.ndim == 2:
            out = rng.normal(size=(512, value.shape[0])) @ np.asarray(value)
            assert 0.9 < out.std() < 1.1, path
            kernels += 1
        elif before[path].std() == 0:
            np.testing.assert_array_equal(value, before[path])
    assert kernels > 20
    assert abs(float(np.std(after["decoder", "embedding"])) - CONFIG.text.hidden_size**-0.5) < 1e-3
    assert abs(float(np.std(after["visual", "positions", "table"])) - POSITION_STD) < 1e-3


def test_blocks_add_nothing_at_first() -> None:
    model = policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0))
    ids = jax.numpy.arange(8)[None]
    positions = jax.numpy.broadcast_to(jax.numpy.arange(8)[None, :, None], (1, 8, 3))
    scale_by_fan_in(model)
    hidden, _ = model(ids, positions)
    np.testing.assert_allclose(hidden, model.decoder.norm(model.decoder.embed(ids)), rtol=1e-6)
