"""Our side of the comparison: the loss and the update of supervised fine-tuning, and a prefill."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pixelis_jax import sharding
from pixelis_jax.data.pipeline import Batch
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.policy import AuxiliaryHeads, KVCache, VisionInputs, weights
from pixelis_jax.speed.work import CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, Work, make_our_batch
from pixelis_jax.training import loop, sft
from pixelis_jax.training.optimizer import create_optimizer
from pixelis_jax.training.state import create_state

PACKAGES = ("jax", "jaxlib", "flax", "optax")

_CONFIG = ConfigDict(
    {
        "loss": {
            "heads_weight": 0.0,
            "patches_weight": 0.0,
            "beta": 0.1,
            "iou_weight": 0.5,
            "chunk": 128,
            "vocab_chunk": 40_000,
        },
        "pixels": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "optimizer": {
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "final_ratio": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": WEIGHT_DECAY,
            "clip_norm": CLIP_NORM,
        },
    }
)


class Contestant:
    """Runs a work with our policy."""

    def __init__(self, work: Work, directory: str, threads: int):
        """Loads the weights.

        Args:
          work: what to do.
          directory: published files.
          threads: not used: XLA takes as many as this process may run on, which the caller sees to.
        """
        del threads
        self._work = work
        self._model: Any = weights.load(directory)

    def prepare(self, examples: Sequence[EncodedExample]) -> None:
        """Lays out the batch and builds what runs on it."""
        batch = make_our_batch(self._work, examples)
        graph, params = nnx.split(self._model)
        self._model = None  # what follows holds a copy
        self._graph, self._mesh = graph, sharding.create_mesh()
        self._rows, self._tokens = batch.ids.shape
        self._batch = loop.place_batch(batch, self._mesh)
        self._vision = VisionInputs(patches=jnp.asarray(normalise(batch.patches)), grid=jnp.asarray(batch.grid))
        if self._work.task == "prefill":
            self._params = params
            self._prefill = jax.jit(functools.partial(prefill, graph))
        else:
            self._prepare_training(params)

    def _prepare_training(self, params: nnx.State) -> None:
        heads = AuxiliaryHeads(self._work.model.text.hidden_size, rngs=nnx.Rngs(0))
        heads_graph, head_params = nnx.split(heads)
        self._loss = sft.make_loss(self._graph, heads_graph, _CONFIG, np.zeros(self._work.model.text.vocab_size, bool))
        optimizer = create_optimizer(_CONFIG.optimizer, total_steps=1 << 30)
        shardings = {
            "params": nnx.to_pure_dict(sharding.state_shardings(params, self._mesh)),
            "heads": nnx.to_pure_dict(sharding.state_shardings(head_params, self._mesh)),
        }
        trees = nnx.to_pure_dict(params), nnx.to_pure_dict(head_params)
        self._state = create_state(*trees, optimizer, jax.random.key(0), shardings)
        self._update = loop.make_update(self._loss, optimizer, self._state)

    def step(self) -> float:
        """Does the work once; returns the loss, or the sum of the prefill's logits."""
        if self._work.task == "prefill":
            logits, _ = jax.block_until_ready(self._prefill(self._params, self._batch, self._vision))
            return float(logits.sum())
        self._state, metrics = jax.block_until_ready(self._update(self._state, self._batch))
        return float(metrics["loss"].total / metrics["loss"].count)

    def describe(self) -> dict[str, Any]:
        """Rows and tokens of the batch, padding included."""
        return {"rows": self._rows, "tokens": self._rows * self._tokens}

    def stages(self) -> dict[str, Callable[[], Any]]:
        """Growing parts of a step of training: the difference of two is what the second adds."""

        def vision(params: Any, heads: Any, inputs: VisionInputs, batch: Batch) -> Any:
            return nnx.merge(self._graph, nnx.State(params)).encode_vision(inputs)

        def hidden(params: Any, heads: Any, inputs: VisionInputs, batch: Batch) -> Any:
            return sft.encode(nnx.merge(self._graph, nnx.State(params)), batch, _CONFIG.pixels)[0]

        def forward(params: Any, heads: Any, inputs: VisionInputs, batch: Batch) -> Any:
            return self._loss(params, heads, batch, jax.random.key(0))[0]

        def run(function: Callable[..., Any]) -> Any:
            # The state is new after each step, which donates the old one.
            return jax.block_until_ready(function(self._state.params, self._state.heads, self._vision, self._batch))

        jitted = {"vision": vision, "hidden states": hidden, "loss": forward, "gradient": jax.grad(forward)}
        return {name: functools.partial(run, jax.jit(stage)) for name, stage in jitted.items()} | {"step": self.step}


def prefill(graph: Any, params: nnx.State, batch: Batch, vision: VisionInputs) -> tuple[jax.Array, KVCache]:
    """Fills a cache with a batch.

    Args:
      graph: structure of the policy.
      params: its parameters.
      batch: B rows of T tokens.
      vision: frames of the batch.

    Returns:
      Logits of the token that follows each row, ``[B, V]``, and the cache.
    """
    model = nnx.merge(graph, params)
    rows, tokens = batch.ids.shape
    hidden, cache = model(
        batch.ids,
        batch.positions,
        visual=model.encode_vision(vision),
        visual_index=batch.visual_index,
        attention_mask=batch.valid,
        cache=KVCache.create(model.config, rows, tokens),
    )
    return model.unembed(hidden[:, -1]), cache


def normalise(patches: np.ndarray) -> np.ndarray:
    """Pixels from 0..255 to -1..1, float32."""
    return (patches.astype(np.float32) / 255 - 0.5) / 0.5
