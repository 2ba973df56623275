"""Their side of the comparison of decoding: `generate` of transformers, eager."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from pixelis_jax.data.records import EncodedExample
from pixelis_jax.speed.work import Work

PACKAGES = ("torch", "transformers")


class Contestant:
    """Decodes greedily, all prompts together; attention by `scaled_dot_product_attention`."""

    def __init__(self, work: Work, directory: str, threads: int):
        """Loads the weights."""
        torch.set_num_threads(threads)
        self._work = work
        model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        )
        self._model: Any = model.eval()
        self._model.generation_config.eos_token_id = None

    def prepare(self, examples: Sequence[EncodedExample]) -> None:
        """Lays out the prompts."""
        self._ids = torch.from_numpy(np.stack([example["ids"] for example in examples]).astype(np.int64))

    def step(self) -> tuple[float, float]:
        """Generates; returns seconds of a decoding step, prefill and first token left out, and the mean id."""
        times: list[float] = []

        class Clock(transformers.StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                times.append(time.perf_counter())
                return torch.zeros(len(input_ids), dtype=torch.bool)

        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=self._ids,
                attention_mask=torch.ones_like(self._ids),
                max_new_tokens=self._work.new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
            )
        new = ids[:, self._ids.shape[1] :]
        return (times[-1] - times[0]) / (len(times) - 1), float(new.double().mean())

    def describe(self) -> dict[str, Any]:
        """Rows, and tokens that are decoded."""
        return {"rows": len(self._ids), "tokens": len(self._ids) * self._work.new_tokens}

    def roofline(self) -> dict[str, float]:
        """Nothing: ours measures the machine."""
        return {}
