"""Mistakes of a port that the comparison must see: each moves some logit by at least `FACTOR` times the bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases
import pytest
from flax import nnx
from parity_cases import END, SEQUENCES, Batch, Pair, row

from pixelis_jax import policy
from pixelis_jax.policy import layers, moe, text, vision, weights
from pixelis_jax.policy import model as model_module

FACTOR = 100

Patch = pytest.MonkeyPatch
Model = policy.Qwen3VL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mistake.

    Attributes:
      apply: makes it in the model, the batch or, by patching, the code; returns the model.
      sequence: shows it; None for all of them packed into one row.
      family: has what it breaks.
    """

    apply: Callable[[Pair, Model, Batch, Patch], Model]
    sequence: str | None = "three images"
    family: str = "dense untied"

    def error(self) -> float:
        """Largest absolute difference of any logit from transformers with the mistake made."""
        pair = parity_cases.pair(self.family)
        model: Model = nnx.merge(*nnx.split(pair.model))  # a copy: some mistakes set its attributes
        rows = [row(name) for name in ([self.sequence] if self.sequence else SEQUENCES)]
        if self.sequence:
            batch = parity_cases.padded_batch(rows, "right", model.config)
        else:
            batch = parity_cases.packed_batch(rows, model.config)
        with pytest.MonkeyPatch.context() as patch:
            model = self.apply(pair, model, batch, patch)
            ours = parity_cases.unpack(parity_cases.logits(model, batch), rows)
        return parity_cases.difference(ours, [pair.expected([one])[0] for one in rows])


def _nothing(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    return model


def _without_deepstack(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    place = model_module._place_visual
    patch.setattr(model_module, "_place_visual", lambda *args: (place(*args)[0], None))
    return model


def _tap_off_by_one(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    config = model.config.vision
    later = tuple(tap + 1 for tap in config.deepstack_visual_indexes)
    patch.setattr(model.visual, "config", dataclasses.replace(config, deepstack_visual_indexes=later))
    return model


def _height_and_width_swapped(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    batch.positions = batch.positions[..., [0, 2, 1]]
    return model


def _gelus_exchanged(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    tanh, exact = layers.gelu_tanh, layers.gelu_exact
    patch.setattr(layers, "gelu_tanh", exact)
    patch.setattr(layers, "gelu_exact", tanh)
    return model


def _frames_attend_to_each_other(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    attend = vision.VisionAttention.__call__

    def joined(self: Any, x: Any, tables: Any, bias: Any) -> Any:
        frames, count = x.shape[:2]
        one = lambda array: array.reshape(1, frames * count, -1)  # noqa: E731
        bias = bias.reshape(1, 1, 1, -1)
        return attend(self, one(x), (one(tables[0]), one(tables[1])), bias).reshape(x.shape)

    patch.setattr(vision.VisionAttention, "__call__", joined)
    return model


def _padding_patches_seen(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    attend = vision.VisionAttention.__call__
    patch.setattr(vision.VisionAttention, "__call__", lambda self, x, tables, bias: attend(self, x, tables, 0 * bias))
    return model


def _class_default_theta(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    patch.setattr(model.decoder, "config", dataclasses.replace(model.config.text, rope_theta=5e5))
    return model


def _head_norms_after_rotation(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    # The head norms hand their input on together with themselves, and the rotation applies them to its result.
    normalise, rotate = layers.RMSNorm.__call__, text.rotate
    width = model.config.text.head_dim
    assert width != model.config.text.hidden_size  # so that the other norms are told apart

    def defer(self: Any, x: Any) -> Any:
        return (self, x) if x.shape[-1] == width else normalise(self, x)

    patch.setattr(layers.RMSNorm, "__call__", defer)
    patch.setattr(text, "rotate", lambda deferred, cos, sin: normalise(deferred[0], rotate(deferred[1], cos, sin)))
    return model


def _second_image_flattened(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    ids = batch.ids[0]
    start = int(np.flatnonzero(ids == END)[0])
    following = batch.positions[0, start, 0]
    batch.positions[0, start:] = (following + np.arange(len(ids) - start))[:, None]
    return model


def _segments_not_told_apart(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    batch.mask = batch.mask != 0
    return model


def _frames_of_the_row_before(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    one_frame = parity_cases.BUCKET // model.config.vision.merge_unit
    batch.index = np.where(batch.index >= 0, np.maximum(batch.index - one_frame, 0), -1)
    return model


def _one_expert_fewer(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    experts = pair.published["text_config"]["num_experts_per_tok"]
    fewer = pair.published | {"text_config": pair.published["text_config"] | {"num_experts_per_tok": experts - 1}}
    return weights.load(pair.directory, policy.Qwen3VLConfig.from_json(fewer))


def _experts_not_renormalised(pair: Pair, model: Model, batch: Batch, patch: Patch) -> Model:
    route = moe.MixtureOfExperts.route

    def raw(self: Any, x: Any) -> Any:
        weights, experts = route(self, x)
        shares = jax.nn.softmax(x @ self.router[...], axis=-1)
        return jnp.take_along_axis(shares, experts, axis=-1).astype(weights.dtype), experts

    patch.setattr(moe.MixtureOfExperts, "route", raw)
    return model


CONTROL = Mutation(apply=_nothing)
"""No mistake: below the bound by the same code."""

MUTATIONS = {
    "DeepStack dropped": Mutation(apply=_without_deepstack),
    "tap off by one": Mutation(apply=_tap_off_by_one, family="dense tied"),
    "H and W swapped": Mutation(apply=_height_and_width_swapped),
    # The two differ by 5e-4 at most: of all mistakes the one that is hardest to see.
    "GELUs exchanged": Mutation(apply=_gelus_exchanged, sequence="image + video", family="dense tied"),
    "per-frame mask dropped": Mutation(apply=_frames_attend_to_each_other, sequence="video"),
    "padding patches seen": Mutation(apply=_padding_patches_seen),
    "theta 500k": Mutation(apply=_class_default_theta),
    "q/k norm after RoPE": Mutation(apply=_head_norms_after_rotation),
    "second image flattened": Mutation(apply=_second_image_flattened),
    "segments not told apart": Mutation(apply=_segments_not_told_apart, sequence=None),
    "one frame too early": Mutation(apply=_frames_of_the_row_before, sequence=None),
    "one expert fewer": Mutation(apply=_one_expert_fewer, family="MoE untied"),
    "experts not renormalised": Mutation(apply=_experts_not_renormalised, family="MoE untied"),
}
