"""Their side of the comparison: transformers' model and PyTorch's optimiser, as their documentation uses them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from pixelis_jax.data.pipeline import patchify
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.speed.work import CLIP_NORM, LEARNING_RATE, PATCH, WEIGHT_DECAY, Work

PACKAGES = ("torch", "transformers")

_IGNORED = -100  # label of a token without a loss


class Contestant:
    """Runs a work with transformers: attention by `scaled_dot_product_attention`, one example a row, padded on the right."""

    def __init__(self, work: Work, directory: str, threads: int):
        """Loads the weights.

        Args:
          work: what to do.
          directory: published files.
          threads: of each operator.
        """
        torch.set_num_threads(threads)
        self._work = work
        model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        )
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # else it may be a view of the mapped file
        self._model: Any = model

    def prepare(self, examples: Sequence[EncodedExample]) -> None:
        """Lays out the batch and creates the optimiser."""
        self._inputs, self._labels = _inputs(self._work, examples)
        if self._work.task == "prefill":
            self._model.eval()
            return
        self._model.train()
        plain = [p for name, p in self._model.named_parameters() if "norm" in name or name.endswith("bias")]
        others = [p for name, p in self._model.named_parameters() if not ("norm" in name or name.endswith("bias"))]
        groups = [{"params": others, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def step(self) -> float:
        """Does the work once; returns the loss, or the sum of the prefill's logits."""
        if self._work.task == "prefill":
            with torch.inference_mode():
                return float(self._model(**self._inputs, use_cache=True, logits_to_keep=1).logits.sum())
        loss = self._gradient()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimizer.step()
        return float(loss)

    def describe(self) -> dict[str, Any]:
        """Rows and tokens of the batch, padding included."""
        rows, tokens = self._inputs["input_ids"].shape
        return {"rows": rows, "tokens": rows * tokens}

    def stages(self) -> dict[str, Callable[[], Any]]:
        """Growing parts of a step of training: the difference of two is what the second adds."""
        model, inputs = self._model, self._inputs

        def without_gradient(run: Callable[[], Any]) -> Any:
            with torch.no_grad():
                return run()

        forward = {
            "vision": lambda: model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]),
            "hidden states": lambda: model.model(**inputs),
            "loss": lambda: self._forward(),
        }
        parts = {name: functools.partial(without_gradient, run) for name, run in forward.items()}
        return parts | {"gradient": self._gradient, "step": self.step}

    def _forward(self) -> torch.Tensor:
        return self._model(**self._inputs, labels=self._labels, use_cache=False).loss

    def _gradient(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._forward()
        loss.backward()
        return loss.detach()


def _inputs(work: Work, examples: Sequence[EncodedExample]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    shape = (len(examples), max(work.lengths))
    ids, mask, kinds = (np.zeros(shape, np.int64) for _ in range(3))
    labels = np.full(shape, _IGNORED, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    pixels, grids = [], []
    for number, example in enumerate(examples):
        count = len(example["ids"])
        ids[number, :count], mask[number, :count] = example["ids"], 1
        kinds[number, :count] = example["visual_index"] >= 0
        labels[number, :count] = np.where(example["weights"] > 0, example["ids"], _IGNORED)
        positions[:, number, :count] = example["positions"].T
        for frame, (h, w) in zip(example["thumbs"], example["grid"], strict=True):
            patches = patchify(frame[None, :, : h * PATCH, : w * PATCH], PATCH)[0]
            pixels.append((patches.astype(np.float32) / 255 - 0.5) / 0.5)
            grids.append((1, h, w))
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": kinds,
        "position_ids": positions,
        "pixel_values": np.concatenate(pixels),
        "image_grid_thw": np.asarray(grids, np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, torch.from_numpy(labels)
