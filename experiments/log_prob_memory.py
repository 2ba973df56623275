"""Memory of the log-probabilities of a long row, in chunks and as written in a textbook, from the TPU compiler.

    python experiments/log_prob_memory.py

Forward and backward pass of the last step of Qwen3-VL-8B's loss on one chip: 8,192 hidden states, 151,936 tokens of vocabulary,
bfloat16. Parameters and gradients are arguments and results; what is compared is everything else. Needs libtpu; nothing runs.
"""

import functools
import json
import os
from pathlib import Path

from pixelis_jax.commands.plan import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import jax  # noqa: E402  # the environment is read when it is imported
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from pixelis_jax import losses, policy  # noqa: E402
from pixelis_jax.plan.topologies import topology  # noqa: E402

TOPOLOGY, TOKENS, CHUNK, VOCAB_CHUNK = "v6e-1", 8192, 1024, 20_000
RESULT = Path(__file__).parent / "results" / "plan" / "log_probs.json"


def textbook(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array) -> jax.Array:
    """All logits at once, float32 ``[N, V]``."""
    logits = jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=-1)[:, 0]


def temporaries(log_probs: object) -> int:
    """Bytes that the compiler sets aside for the gradient of the mean of `log_probs`, arguments and results left out."""
    slice_ = topology(TOPOLOGY)
    options = slice_.libtpu_options
    device = topologies.get_topology_desc(platform="tpu", topology_name=slice_.libtpu_name, **options).devices[0]
    text = policy.qwen3_vl_8b().text
    place = SingleDeviceSharding(device)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for shape, dtype in (
            ((TOKENS, text.hidden_size), jnp.bfloat16),
            ((text.vocab_size, text.hidden_size), jnp.bfloat16),
            ((TOKENS,), jnp.int32),
        )
    ]
    gradient = jax.value_and_grad(lambda *args: log_probs(*args).mean(), argnums=(0, 1))  # type: ignore[operator]
    return jax.jit(gradient).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    """Compiles both and writes the result."""
    chunked = functools.partial(losses.token_log_probs, chunk=CHUNK, vocab_chunk=VOCAB_CHUNK)
    sizes = {"textbook": temporaries(textbook), "chunked": temporaries(chunked)}
    result = {
        "topology": TOPOLOGY,
        "tokens": TOKENS,
        "chunk": CHUNK,
        "vocab_chunk": VOCAB_CHUNK,
        "jax": jax.__version__,
        "temporary_bytes": sizes,
        "ratio": sizes["textbook"] / sizes["chunked"],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
