"""Builds the records that the base model learns to look from: captions and plain questions of many scenes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.captions import KINDS, Kind, look_samples
from pixelis_jax.data.examples import encode_look
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.data.scenes import FAMILIES, Split, generate, reframe
from pixelis_jax.data.scenes.randomness import generator
from pixelis_jax.data.workers import chain_in_order
from pixelis_jax.encoding import Encoder, PromptConfig, TextTokenizer
from pixelis_jax.policy import processing, tiny

FIRST_INDEX = 1_000_000
"""Scenes of the base start here, so that none of them is one that a trace is made from."""

_CHUNK = 25
_VOCABULARY_MULTIPLE = 64
_CORPUS_SCENES = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Scenes `start` to `stop` of a family."""

    family: str
    start: int
    stop: int


def tiny_encoder(split: Split = "train") -> Encoder:
    """The encoder of a new tiny policy, with a tokenizer made from the families' wordings and from captions of some scenes."""
    texts = [text for family in FAMILIES.values() for text in (*family.wordings, *family.held_out)] * 50
    texts = [re.sub(r"\{\w+\}", "", text) for text in texts]
    for name in FAMILIES:
        for index in range(FIRST_INDEX, FIRST_INDEX + _CORPUS_SCENES):
            samples = look_samples(generate(name, split, index), np.random.default_rng(index), video_frames=8, step=20)
            texts += [text for sample in samples for text in (sample.question, sample.turn)]
    tokenizer = TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(texts)))
    return encoder_of(tokenizer)


def encoder_of(tokenizer: TextTokenizer) -> Encoder:
    """The tiny policy's settings around a tokenizer."""
    ids = {
        "eos_token_id": tokenizer.id("<|im_end|>"),
        "vision_start_token_id": tokenizer.id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.id("<|vision_end|>"),
        "image_token_id": tokenizer.id("<|image_pad|>"),
        "video_token_id": tokenizer.id("<|video_pad|>"),
    }
    rows = -(-tokenizer.size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    return Encoder(
        model=tiny(vocab_size=rows, **ids),
        tokenizer=tokenizer,
        processing=processing.ProcessingConfig.tiny(),
        prompt=PromptConfig(
            tools="names",
            style="compact",
            boxes_in_text=False,
            video_frames=8,
            patch_bucket=64,
            coordinate_step=tiny_tokenizer.COORDINATE_STEP,
            context=768,
        ),
    )


def look_examples(
    counts: Mapping[str, int],
    encoder: Encoder,
    *,
    kinds: Collection[Kind] = KINDS,
    asked_share: float = 0.25,
    reframed: float = 0.0,
    split: Split = "train",
    workers: int = 2,
    seed: int = 0,
) -> Iterator[EncodedExample]:
    """Draws scenes and encodes their samples, in an order that does not depend on the number of workers.

    Args:
      counts: Scenes by family.
      encoder: Of the policy that will be trained.
      kinds: Of the samples to keep.
      asked_share: Share of the scenes' own questions to keep: most of them cannot be answered from a thumbnail.
      reframed: Share of the scenes that are made narrower or lower, or cut down to a close-up (`scenes.reframe`).
      split: Where the scenes come from.
      workers: Processes; 0 works in this one.
      seed: Of the scenes and of everything that is chosen.
    """
    chunks = [
        _Chunk(family=family, start=start, stop=min(start + _CHUNK, FIRST_INDEX + count))
        for family, count in counts.items()
        for start in range(FIRST_INDEX, FIRST_INDEX + count, _CHUNK)
    ]
    work = functools.partial(
        _encode_chunk,
        encoder=encoder,
        kinds=frozenset(kinds),
        asked_share=asked_share,
        reframed=reframed,
        split=split,
        seed=seed,
    )
    yield from chain_in_order(work, chunks, workers)


def _encode_chunk(
    chunk: _Chunk, *, encoder: Encoder, kinds: Collection[Kind], asked_share: float, reframed: float, split: Split, seed: int
) -> Sequence[EncodedExample]:
    examples = []
    for index in range(chunk.start, chunk.stop):
        rng = generator(f"{chunk.family}/look", split, index, seed)
        frame = generator(f"{chunk.family}/reframed", split, index, seed)
        scene = reframe(generate(chunk.family, split, index, seed), reframed, frame)
        prompt = encoder.prompt
        for sample in look_samples(scene, rng, video_frames=prompt.video_frames, step=prompt.coordinate_step):
            if sample.kind in kinds and (sample.kind != "asked" or rng.random() < asked_share):
                examples.append(encode_look(sample, encoder))
    return examples
