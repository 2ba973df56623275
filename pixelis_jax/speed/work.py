"""What the two implementations are asked to do: models, examples and goals."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pixelis_jax import policy
from pixelis_jax.data import packing
from pixelis_jax.data.pipeline import Batch, make_batch
from pixelis_jax.data.records import MERGE_UNIT, EncodedExample
from pixelis_jax.policy import Qwen3VLConfig, TextConfig, VisionConfig, rotary
from pixelis_jax.policy.weights import published_names
from pixelis_jax.trajectory import Role

PATCH = 16
REAL_VOCABULARY = 151_936
SMALL_VOCABULARY = 8192
LEARNING_RATE = 1e-4
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One comparison.

    Attributes:
      title: for the table.
      task: ``train``: forward, backward, clipping and AdamW; ``prefill``: forward into a key-value cache, and the logits of the
        last token; ``decode``: one greedy token of each example behind its prompt, the mean of `new_tokens`.
      model: architecture of both.
      lengths: tokens of each example.
      grids: (height, width) in patches of each example's images.
      weighted: share of each example's tokens, its last ones, that are imitated; 1: all.
      packed: ours packs examples into rows; theirs is padded, one example a row.
      new_tokens: decoded behind each prompt.
      at_least: the goal: theirs' time over ours.
      at_most_memory: the goal: our peak memory over theirs.
    """

    title: str
    task: str
    model: Qwen3VLConfig
    lengths: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]
    weighted: float = 1.0
    packed: bool = False
    new_tokens: int = 0
    at_least: float
    at_most_memory: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all examples, without padding; of a decoding step, one an example."""
        return len(self.lengths) if self.task == "decode" else sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens of a batch with one example a row."""
        return len(self.lengths) * max(self.lengths)


def make_examples(work: Work, seed: int = 0) -> list[EncodedExample]:
    """Draws the examples of a work: an image or several among text, then the imitated part."""
    random = np.random.default_rng(seed)
    return [_example(work, length, grids, random) for length, grids in zip(work.lengths, work.grids, strict=True)]


def make_our_batch(work: Work, examples: Sequence[EncodedExample]) -> Batch:
    """Lays examples out for our policy: packed into rows as long as the longest example, or one a row."""
    rows = [[example] for example in examples]
    if work.packed:
        frames = np.array([len(example["grid"]) for example in examples])
        most = int(frames.max() + np.median(frames))  # so that no row is mostly padded frames
        plan = packing.plan_rows(np.stack([np.array(work.lengths), frames], axis=1), (max(work.lengths), most))
        rows = [[examples[number] for number in row] for row in plan]
        return packing.make_packed_batch(rows, packing.packed_bucket(rows), PATCH)
    return make_batch(examples, packing.packed_bucket(rows), PATCH)


def count_parameters(model: Qwen3VLConfig) -> int:
    """Numbers in a model's weights."""
    return sum(math.prod(shape) for shape in published_names(model).values())


def _example(work: Work, length: int, grids: Sequence[Grid], random: np.random.Generator) -> EncodedExample:
    config = work.model
    visual = [h * w // MERGE_UNIT for h, w in grids]
    # Text ids stay below the special ones.
    ids = random.integers(0, config.eos_token_id, length).astype(np.int32)
    index = np.full(length, -1, np.int32)
    place = 4
    for number, count in enumerate(visual):
        ids[place], ids[place + count + 1] = config.vision_start_token_id, config.vision_end_token_id
        ids[place + 1 : place + 1 + count] = config.image_token_id
        index[place + 1 : place + 1 + count] = sum(visual[:number]) + np.arange(count)
        place += count + 3
    imitated = min(length - 1, round(length * work.weighted))
    if place > length - imitated and work.weighted < 1:
        raise ValueError(f"{length} tokens do not hold images of {visual} tokens and {imitated} imitated ones")
    weights = np.zeros(length, np.float32)
    weights[length - imitated :] = 1
    h, w = np.asarray(grids, int).reshape(-1, 2).max(axis=0, initial=2)
    thumbs = np.zeros((len(grids), 2, h * PATCH, w * PATCH, 3), np.uint8)
    for frame, (height, width) in zip(thumbs, grids, strict=True):
        shown = random.integers(0, 256, (height * PATCH, width * PATCH, 3), dtype=np.uint8)
        frame[:, : height * PATCH, : width * PATCH] = shown  # a still image is one frame twice
    none = {name: np.zeros((0, *shape), np.float32) for name, shape in (("box", (4,)), ("point", (2,)), ("span", (2,)))}
    return {
        "ids": ids,
        "roles": np.where(weights > 0, Role.ANSWER, Role.PROMPT).astype(np.int8),
        "weights": weights,
        "positions": rotary.mrope_positions(ids, [(1, h, w) for h, w in grids], config)[0],
        "visual_index": index,
        "thumbs": thumbs,
        "grid": np.asarray(grids, np.int32).reshape(-1, 2),
        "op_position": np.zeros(0, np.int32),
        "op_id": np.zeros(0, np.int32),
        **none,
        **{f"{name}_valid": np.zeros(0, bool) for name in none},
    }


def _model(*, vocab: int, hidden: int, layers: int, mlp: int, vision: int, depth: int, taps: tuple[int, ...]) -> Qwen3VLConfig:
    text = TextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        rope_theta=5e6,
        mrope_section=(12, 10, 10),
    )
    tower = VisionConfig(
        depth=depth,
        hidden_size=vision,
        num_heads=vision // 64,
        intermediate_size=4 * vision,
        out_hidden_size=hidden,
        deepstack_visual_indexes=taps,
        patch_size=PATCH,
    )
    # The released ids where the vocabulary has them.
    ids = {} if vocab == REAL_VOCABULARY else {
        "image_token_id": vocab - 1, "video_token_id": vocab - 2, "vision_start_token_id": vocab - 3,
        "vision_end_token_id": vocab - 4, "eos_token_id": vocab - 5,
    }  # fmt: skip
    return Qwen3VLConfig(text=text, vision=tower, tie_word_embeddings=True, **ids)


_TEN = _model(vocab=SMALL_VOCABULARY, hidden=256, layers=8, mlp=768, vision=128, depth=4, taps=(0, 2))
_HUNDRED = _model(vocab=SMALL_VOCABULARY, hidden=768, layers=12, mlp=2048, vision=384, depth=6, taps=(2,))
_REAL = _model(vocab=REAL_VOCABULARY, hidden=512, layers=8, mlp=1536, vision=256, depth=4, taps=(1,))

_DENSE_GRID: tuple[tuple[Grid, ...], ...] = (((16, 16),),)
# Many short, few long. Images have about 256 patches, the least that the published processor makes, in all shapes.
_RAGGED: tuple[tuple[int, tuple[Grid, ...]], ...] = (
    (256, ((16, 16), (12, 22))),
    (196, ((22, 12),)),
    (152, ((16, 16),)),
    (116, ((10, 26),)),
    (96, ((16, 16),)),
    (76, ()),
    (60, ()),
    (44, ()),
)


def _decoding(name: str, model: Qwen3VLConfig, rows: int, at_least: float) -> Work:
    return Work(
        title=f"decode, {name}, batch {rows}",
        task="decode",
        model=model,
        lengths=(128,) * rows,
        grids=((),) * rows,
        new_tokens=64,
        at_least=at_least,
    )


_ONE = policy.tiny(vocab_size=2048)
_SIX = dataclasses.replace(
    _ONE,
    text=dataclasses.replace(
        _ONE.text, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4
    ),
    vision=dataclasses.replace(_ONE.vision, out_hidden_size=256),
)

WORKS = {
    "train_10m": Work(
        title="train step, 10 M, equal dense work",
        task="train",
        model=_TEN,
        lengths=(256,) * 8,
        grids=_DENSE_GRID * 8,
        at_least=0.9,
    ),
    "train_100m": Work(
        title="train step, 100 M, equal dense work",
        task="train",
        model=_HUNDRED,
        lengths=(256,) * 4,
        grids=_DENSE_GRID * 4,
        at_least=0.9,
    ),
    "prefill_10m": Work(
        title="prefill, 10 M, equal dense work",
        task="prefill",
        model=_TEN,
        lengths=(512,) * 4,
        grids=_DENSE_GRID * 4,
        at_least=1.0,
    ),
    "prefill_100m": Work(
        title="prefill, 100 M, equal dense work",
        task="prefill",
        model=_HUNDRED,
        lengths=(512,) * 2,
        grids=_DENSE_GRID * 2,
        at_least=1.0,
    ),
    "useful": Work(
        title="train step, ragged, 151,936 tokens",
        task="train",
        model=_REAL,
        lengths=tuple(length for length, _ in _RAGGED),
        grids=tuple(grids for _, grids in _RAGGED),
        weighted=0.25,
        packed=True,
        at_least=1.3,
        at_most_memory=0.5,
    ),
}
"""Name -> comparison, of `pixelis bench policy`."""

DECODING = {
    f"decode_{size}_{rows}": _decoding(name, model, rows, at_least)
    for size, name, model in (("1m", "1.25 M", _ONE), ("6m", "6 M", _SIX))
    for rows, at_least in ((1, 5.0), (16, 2.5), (64, 2.0))
}
"""Name -> comparison, of `pixelis bench rollout`."""
