"""The chunked divergence on a mesh of eight against one device, in a process of its own (forced host devices).

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/losses/divergence_mesh.py

Rows are split over two devices and the vocabulary over four; prints the largest differences as JSON.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from pixelis_jax import losses


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = ((4, 6, 5), (32, 5), (4, 6, 3), (32, 3))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    # A shard whose tokens are all banned has nothing to sum.
    banned = (np.arange(32) < 8) | (np.arange(32) == 20)
    weights = rng.random((4, 6)).astype(np.float32)
    function = functools.partial(losses.token_kl, temperature=0.8, chunk=4, vocab_chunk=4)

    mesh = jax.make_mesh((2, 4), ("rows", "vocab"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, vocab = jax.P("rows"), jax.P("vocab")
    split = jax.shard_map(
        lambda h, u, g, w, ban: function(h, u, g, w, banned=ban, vocab_axis="vocab"),
        mesh=mesh,
        in_specs=(rows, vocab, rows, vocab, vocab),
        out_specs=rows,
        check_vma=False,
    )

    def results(kl):
        def loss(*arrays):
            return jnp.sum(weights * kl(*arrays))

        return jax.jit(kl)(*arrays), jax.jit(jax.grad(loss, (0, 1)))(*arrays)

    expected = results(functools.partial(function, banned=jnp.asarray(banned)))
    got = results(lambda *arrays: split(*arrays, jnp.asarray(banned)))
    differences = [
        np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in zip(*map(jax.tree.leaves, (expected, got)), strict=True)
    ]
    print(
        json.dumps(
            {
                "devices": len(jax.devices()),
                "kl": float(differences[0]),
                "gradients": float(max(differences[1:])),
                "largest": float(np.max(expected[0])),
            }
        )
    )


if __name__ == "__main__":
    main()
