"""Our side of the comparison of decoding: the rollout engine."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixelis_jax.data.records import EncodedExample
from pixelis_jax.encoding import Chunk
from pixelis_jax.policy import weights
from pixelis_jax.rollout.engine import Engine, SlotOptions
from pixelis_jax.speed.work import Work, count_parameters

PACKAGES = ("jax", "jaxlib", "flax")


class Contestant:
    """Decodes greedily, all prompts together."""

    def __init__(self, work: Work, directory: str, threads: int):
        """Loads the weights; XLA takes as many threads as this process may run on."""
        del threads
        self._work, self._model = work, weights.load(directory)

    def prepare(self, examples: Sequence[EncodedExample]) -> None:
        """Lays out the prompts and compiles."""
        config, work = self._model.config, self._work
        # No token ends a turn: the last one of the vocabulary is banned.
        last = config.text.vocab_size - 1
        self._engine = Engine(
            self._model,
            slots=len(examples),
            capacity=max(work.lengths) + work.new_tokens,
            stop=[[last]],
            banned_ids=[last],
            tool_open_id=last,
            patch_bucket=4,
            block=work.new_tokens,
            prefill_rows=min(16, len(examples)),
            buckets=((max(work.lengths), 0), (max(work.lengths), 1)),
        )
        self._prompts = [Chunk.of_text(example["ids"], config, patch_bucket=4) for example in examples]
        self._options = SlotOptions(key=np.zeros(2, np.uint32), temperature=0.0, max_turn_tokens=work.new_tokens)
        self._engine.warm_up()

    def step(self) -> tuple[float, float]:
        """Prefills and decodes; returns seconds of the decoding, and the mean id."""
        engine = self._engine
        slots = [engine.submit(prompt, self._options) for prompt in self._prompts]
        engine.prefill()
        begin = time.perf_counter()
        ids = []
        while engine.busy:
            ids += [result.ids for result in engine.step()]
        seconds = time.perf_counter() - begin
        for slot in slots:
            engine.release(slot)
        return seconds / self._work.new_tokens, float(np.mean(ids))

    def describe(self) -> dict[str, Any]:
        """Rows, and tokens that are decoded, as the other side."""
        return {"rows": len(self._prompts), "tokens": len(self._prompts) * self._work.new_tokens}

    def roofline(self) -> dict[str, float]:
        """Seconds that a decoding step takes at least: by the speed of a matrix product, and of reading so many bytes."""
        parameters, rows = count_parameters(self._work.model), len(self._prompts)
        read = 4 * parameters + self._engine.cache_bytes
        return {"compute": 2 * parameters * rows / _matmul_speed(), "memory": read / _read_speed(read)}


def _matmul_speed() -> float:
    """Operations a second of the product of two large matrices: the best of a few."""
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / _best(lambda: jax.block_until_ready(product(x)))


def _read_speed(size: int) -> float:
    """Bytes a second of reading `size` bytes again and again: from a cache if they fit into one."""
    x = jnp.ones(size // 4, jnp.float32)
    total = jax.jit(lambda x: x.sum())
    return size / _best(lambda: jax.block_until_ready(total(x)))


def _best(run: Any) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
