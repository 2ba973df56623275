"""What is compared with transformers: families of models x modalities, one table for the tests and for `parity_table.py`.

A family is a small model with the shape features of some released ones. A modality is a kind of sequence, or a way of running all
of them. Weights are random everywhere and reach our model through the published files.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from pixelis_jax import policy
from pixelis_jax.policy import processing, rotary, weights

BOUND = 1e-5
"""Largest absolute difference of any logit in float32, for logits of standard deviation 1 to 3."""

VOCAB = 160
TEXT = 128  # ids below are ASCII, so that timestamps are the text that the model reads
EOS, START, END, IMAGE, VIDEO = 150, 151, 152, 153, 154
BUCKET = 40  # patches that our model pads a frame to

PREFILL = 17
"""Tokens of the first chunk of "prefill + decode"; ends inside an image of some rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A small model that stands for released ones.

    Attributes:
      stands_for: the released models that it shares its shape features with.
      published: its config.json.
      bfloat16_ratio: in bfloat16, our divergence from float32 may be this many times that of transformers.
      bfloat16_draws: of the weights, over which both divergences are averaged.
    """

    stands_for: str
    published: dict[str, Any]
    bfloat16_ratio: float = 1.25
    bfloat16_draws: int = 1


def _published(
    *,
    tied: bool,
    vision_heads: int,
    vision_head_dim: int,
    taps: tuple[int, ...] = (0, 1, 2),
    head_dim: int = 128,
    section: tuple[int, int, int] = (24, 20, 20),
    theta: float = 5e6,
    experts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A config.json in the published layout; `experts` makes it a mixture of experts."""
    kind = "qwen3_vl" if experts is None else "qwen3_vl_moe"
    text = {
        "model_type": f"{kind}_text",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "eos_token_id": EOS,
        "tie_word_embeddings": tied,
        "rope_theta": theta,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(section)},
    }
    vision = {
        "model_type": kind,
        "depth": 4,
        "hidden_size": vision_heads * vision_head_dim,
        "num_heads": vision_heads,
        "intermediate_size": 112,
        "hidden_act": "gelu_pytorch_tanh",
        "out_hidden_size": 64,
        "deepstack_visual_indexes": list(taps),
        "num_position_embeddings": 64,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "initializer_range": 0.02,
    }
    names = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return {
        "architectures": [names[kind]],
        "model_type": kind,
        "tie_word_embeddings": tied,
        "text_config": text | (experts or {}),
        "vision_config": vision,
    } | ids


FAMILIES = {
    "dense tied": Family(
        stands_for="2B, 4B: vision heads of 64",
        published=_published(tied=True, vision_heads=2, vision_head_dim=64),
    ),
    "dense untied": Family(
        stands_for="8B, 32B: vision heads of 72",
        published=_published(tied=False, vision_heads=2, vision_head_dim=72, taps=(0, 1, 3)),
    ),
    "MoE untied": Family(
        stands_for="30B-A3B: experts in every layer, vision heads of 72",
        published=_published(
            tied=False,
            vision_heads=2,
            vision_head_dim=72,
            experts={
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "norm_topk_prob": True,
            },
        ),
        # Rounding turns the choice of a few tokens' experts over, in either implementation and on each processor others: of one
        # draw of weights the ratio was 0.7 to 2.3.
        bfloat16_ratio=2.0,
        bfloat16_draws=6,
    ),
    "tiny": Family(
        stands_for="the tiny policy: heads of 32, theta 10,000",
        published=_published(
            tied=True, vision_heads=3, vision_head_dim=32, taps=(0, 1), head_dim=32, section=(6, 5, 5), theta=1e4
        ),
    ),
}

Medium = tuple[str, tuple[int, int, int]]
IMAGE_A: Medium = ("image", (1, 4, 6))
IMAGE_B: Medium = ("image", (1, 8, 4))
IMAGE_C: Medium = ("image", (1, 2, 2))
CLIP: Medium = ("video", (3, 4, 6))

# A number stands for so many random text tokens.
SEQUENCES: dict[str, list[int | Medium]] = {
    "text": [24],
    "one image": [3, IMAGE_A, 8],
    "three images": [2, IMAGE_A, 3, IMAGE_B, 1, IMAGE_C, 6],
    "video": [4, CLIP, 5],
    "image + video": [2, IMAGE_B, 4, CLIP, 1, IMAGE_A, 5],
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence: ids, patches of all media in order, and their grids."""

    ids: np.ndarray
    media: list[tuple[str, tuple[int, int, int], np.ndarray]]

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """(t, h, w) in patches of each medium."""
        return [grid for _, grid, _ in self.media]

    @property
    def kinds(self) -> np.ndarray:
        """0 for text, 1 for an image, 2 for a video, a token."""
        return np.where(self.ids == IMAGE, 1, np.where(self.ids == VIDEO, 2, 0))


@functools.cache
def row(sequence: str) -> Row:
    """The row of a name in `SEQUENCES`. Each frame of a video follows its time, as in the published template."""
    random = np.random.default_rng(list(SEQUENCES).index(sequence))
    ids: list[int] = []
    media = []
    for part in SEQUENCES[sequence]:
        if isinstance(part, int):
            ids += random.integers(0, TEXT, part).tolist()
            continue
        kind, (t, h, w) = part
        for frame in range(t):
            if kind == "video":
                ids += f"<{0.25 + frame:.1f} seconds>".encode("ascii")
            ids += [START, *[{"image": IMAGE, "video": VIDEO}[kind]] * (h * w // 4), END]
        patches = random.normal(size=(t * h * w, 3 * 2 * 4 * 4)).astype(np.float32)
        media.append((kind, (t, h, w), patches))
    return Row(np.asarray(ids), media)


@dataclasses.dataclass
class Batch:
    """Arrays of our model's call; `mask` is validity or segment ids."""

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    inputs: policy.VisionInputs | None


def places(rows: Sequence[Row], side: str) -> list[slice]:
    """Where each row stands in a batch that is padded on one side."""
    longest = max(len(row.ids) for row in rows)
    if side == "left":
        return [slice(longest - len(row.ids), longest) for row in rows]
    return [slice(0, len(row.ids)) for row in rows]


def padded_batch(rows: Sequence[Row], side: str, config: policy.Qwen3VLConfig) -> Batch:
    """Our arrays of a batch with one sequence a row."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    batch = Batch(np.zeros(shape, np.int32), np.zeros((*shape, 3), np.int32), np.zeros(shape, bool), np.full(shape, -1), None)
    for number, (row, place) in enumerate(zip(rows, places(rows, side), strict=True)):
        batch.ids[number, place], batch.mask[number, place] = row.ids, True
        batch.positions[number, place] = rotary.mrope_positions(row.ids, row.grids, config)[0]
        batch.index[number, place] = rotary.visual_index(row.ids, row.grids, config, bucket=BUCKET)
    batch.inputs = _vision_inputs([row.media for row in rows], config)
    return batch


def packed_batch(rows: Sequence[Row], config: policy.Qwen3VLConfig) -> Batch:
    """Our arrays of all sequences behind each other in one row, told apart by segment ids; positions restart."""
    positions, index, frames = [], [], 0
    for row in rows:
        positions.append(rotary.mrope_positions(row.ids, row.grids, config)[0])
        index.append(rotary.visual_index(row.ids, row.grids, config, bucket=BUCKET, first_frame=frames))
        frames += sum(grid[0] for grid in row.grids)
    segments = [np.full(len(row.ids), number, np.int32) for number, row in enumerate(rows, start=1)]
    one = [np.concatenate(parts)[None] for parts in ([row.ids for row in rows], positions, segments, index)]
    return Batch(*one, _vision_inputs([[medium for row in rows for medium in row.media]], config))


def _vision_inputs(media: Sequence[Sequence[Any]], config: policy.Qwen3VLConfig) -> policy.VisionInputs | None:
    frames = max(sum(grid[0] for _, grid, _ in row) for row in media)
    if not frames:
        return None
    options = {"frames": frames, "bucket": BUCKET, "patch_dim": config.vision.patch_dim}
    packed = [processing.pack_frames([(patches, grid) for _, grid, patches in row], **options) for row in media]
    patches, grid = map(np.stack, zip(*packed, strict=True))
    return policy.VisionInputs(patches=patches, grid=grid)


def logits(model: policy.Qwen3VL, batch: Batch) -> np.ndarray:
    """Our logits ``[B, T, V]``."""
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state: Any, inputs: Any, ids: Any, positions: Any, index: Any, mask: Any) -> jax.Array:
        merged = nnx.merge(graph, state)
        visual = None if inputs is None else merged.encode_vision(inputs)
        hidden, _ = merged(ids, positions, visual=visual, visual_index=index, attention_mask=mask)
        return merged.unembed(hidden)

    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(state, batch.inputs, batch.ids, batch.positions, batch.index, batch.mask))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A family's model in both implementations, with the same weights.

    Attributes:
      directory: the published files that both were made from.
    """

    reference: Any
    model: policy.Qwen3VL
    directory: Path
    published: dict[str, Any]

    def expected(self, rows: Sequence[Row], side: str = "right", reference: Any = None) -> list[np.ndarray]:
        """Logits ``[T, V]`` of each row by transformers, padded to one batch on `side`."""
        slots = places(rows, side)
        ids = np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int64)
        mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
        for row, place, out_ids, out_mask, out_kinds in zip(rows, slots, ids, mask, kinds, strict=True):
            out_ids[place], out_mask[place], out_kinds[place] = row.ids, 1, row.kinds
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
        for kind, pixels, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            chosen = [medium for row in rows for medium in row.media if medium[0] == kind]
            if chosen:
                inputs[pixels] = np.concatenate([medium[2] for medium in chosen])
                inputs[grid] = np.asarray([medium[1] for medium in chosen])
        reference = self.reference if reference is None else reference
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        tensors = {name: x.to(reference.dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        with torch.no_grad():
            out = reference(**tensors).logits
        result = [row[place] for row, place in zip(out.to(torch.float64).numpy(), slots, strict=True)]
        spread = float(np.std(np.concatenate(result)))
        if not 1 < spread < 3:
            raise AssertionError(f"the logits' standard deviation is {spread:.2f}: the bound is for 1 to 3")
        return result

    def alone(self, reference: Any = None) -> list[np.ndarray]:
        """Logits of each sequence of `SEQUENCES` in a call of its own."""
        return [self.expected([row(name)], reference=reference)[0] for name in SEQUENCES]


def pair(family: str) -> Pair:
    """Makes a family's published files with random weights, and loads them into both implementations."""
    return pair_of_draw(family, 0)


@functools.cache
def pair_of_draw(family: str, draw: int) -> Pair:
    """`pair`, with one of many draws of the weights."""
    published = FAMILIES[family].published
    kind = getattr(transformers, published["architectures"][0])
    drawn = kind(transformers.AutoConfig.for_model(**published))
    _randomise(drawn, draw)
    directory = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    drawn.save_pretrained(directory)
    _as_published(directory, published)
    reference = kind.from_pretrained(directory, attn_implementation="eager", experts_implementation="eager").eval()
    for name, tensor in drawn.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name
    return Pair(reference=reference, model=weights.load(directory), directory=directory, published=published)


def _as_published(directory: Path, published: dict[str, Any]) -> None:
    """Turns what transformers writes of a new model into the layout of released files, which differs for experts."""
    (directory / "config.json").write_text(json.dumps(published))
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if ".experts." in name:  # [experts, out, in] in the model, [experts, in, out] in released files
            tensors[name] = np.ascontiguousarray(np.swapaxes(tensor, 1, 2))
    save_file(tensors, file, metadata={"format": "pt"})


# What the decoder's random branches add is scaled down, as in a trained network: at 1 they amplify rounding so much that two
# float32 models, each 9e-6 from the float64 one, are 1.2e-5 apart.
_BRANCH = 0.25
_BRANCH_ENDS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


def _randomise(reference: Any, draw: int) -> None:
    """Draws every parameter, norms and biases too; logits get a standard deviation a little above 1."""
    generator = torch.Generator().manual_seed(draw)
    width = reference.config.text_config.hidden_size
    unembedding = "embed_tokens.weight" if reference.config.tie_word_embeddings else "lm_head.weight"
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif name.endswith(unembedding):
                parameter.copy_(1.1 * noise / width**0.5)
            elif name.endswith("embed_tokens.weight"):
                parameter.copy_(3 * noise / width**0.5)
            elif "experts" in name:  # [experts, out, in]
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:  # [out, in, ...]
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            if name.endswith(_BRANCH_ENDS):
                parameter.mul_(_BRANCH)
        reference.model.visual.pos_embed.weight.mul_(8)


@functools.cache
def rounding(family: str) -> float:
    """Largest absolute difference between transformers in float32 and in float64: how exact a float32 model can be."""
    one = pair(family)
    exact = type(one.reference)(one.reference.config).eval()
    exact.load_state_dict(one.reference.state_dict())
    return difference(one.alone(), one.alone(exact.to(torch.float64)))


def difference(ours: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest absolute difference over rows of equal shapes."""
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True))


def _alone(sequence: str, pair: Pair) -> float:
    rows = [row(sequence)]
    return difference(logits(pair.model, padded_batch(rows, "right", pair.model.config)), pair.expected(rows))


def _padded(side: str, pair: Pair) -> float:
    rows = [row(sequence) for sequence in SEQUENCES]
    ours = logits(pair.model, padded_batch(rows, side, pair.model.config))
    return difference([out[place] for out, place in zip(ours, places(rows, side), strict=True)], pair.expected(rows, side))


def unpack(packed: np.ndarray, rows: Sequence[Row]) -> list[np.ndarray]:
    """Cuts the one row of `packed_batch`'s logits ``[1, T, V]`` into its sequences."""
    return np.split(packed[0], np.cumsum([len(row.ids) for row in rows])[:-1])


def _packed(pair: Pair, model: policy.Qwen3VL | None = None) -> float:
    rows, model = [row(sequence) for sequence in SEQUENCES], model or pair.model
    return difference(unpack(logits(model, packed_batch(rows, model.config)), rows), pair.alone())


def _packed_and_scanned(pair: Pair) -> float:
    return _packed(pair, weights.load(pair.directory, execution=policy.Execution(scan_layers=True)))


def _decoded(pair: Pair) -> float:
    rows = [row(sequence) for sequence in SEQUENCES]
    batch = padded_batch(rows, "right", pair.model.config)
    step = nnx.jit(lambda model, *args, **options: model(*args, **options))
    count = batch.ids.shape[1]
    with jax.default_matmul_precision("highest"):
        visual = pair.model.encode_vision(batch.inputs)
        cache = policy.KVCache.create(pair.model.config, len(rows), count)
        hidden = []
        for chunk in [slice(0, PREFILL), *(slice(t, t + 1) for t in range(PREFILL, count))]:
            arrays = batch.ids[:, chunk], batch.positions[:, chunk]
            options = {"visual_index": batch.index[:, chunk], "attention_mask": batch.mask[:, chunk]}
            out, cache = step(pair.model, *arrays, visual=visual, **options, cache=cache)
            hidden.append(out)
        ours = np.asarray(pair.model.unembed(jnp.concatenate(hidden, axis=1)))
    np.testing.assert_array_equal(cache.length, [len(row.ids) for row in rows])
    return difference([out[: len(row.ids)] for out, row in zip(ours, rows, strict=True)], pair.alone())


MODALITIES: dict[str, Callable[[Pair], float]] = {
    **{sequence: functools.partial(_alone, sequence) for sequence in SEQUENCES},
    "left padding": functools.partial(_padded, "left"),
    "right padding": functools.partial(_padded, "right"),
    "packed": _packed,
    "packed, scanned layers": _packed_and_scanned,
    "prefill + decode": _decoded,
}
"""Name -> worst absolute difference of any logit. The last five hold all of `SEQUENCES` at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Mean Kullback-Leibler divergence a token from transformers in float32, in nats.

    Attributes:
      ours: of our model in bfloat16.
      theirs: of transformers in bfloat16.
    """

    ours: float
    theirs: float


def bfloat16(family: str) -> Divergence:
    """What rounding weights and activations to bfloat16 costs either implementation, averaged over the family's draws."""
    draws = [_rounded(pair_of_draw(family, draw)) for draw in range(FAMILIES[family].bfloat16_draws)]
    return Divergence(ours=float(np.mean([draw.ours for draw in draws])), theirs=float(np.mean([draw.theirs for draw in draws])))


def _rounded(pair: Pair) -> Divergence:
    expected = np.concatenate(pair.alone())
    rows = [row(sequence) for sequence in SEQUENCES]
    rounded = weights.load(pair.directory, dtype=jnp.bfloat16)
    ours = unpack(logits(rounded, packed_batch(rows, rounded.config)), rows)
    config = pair.reference.config
    with torch.no_grad():
        reference = type(pair.reference)(config).eval()
        reference.load_state_dict(pair.reference.state_dict())
        theirs = pair.alone(reference.to(torch.bfloat16))
    return Divergence(ours=_divergence(expected, np.concatenate(ours)), theirs=_divergence(expected, np.concatenate(theirs)))


def _divergence(expected: np.ndarray, other: np.ndarray) -> float:
    p, q = (np.asarray(jax.nn.log_softmax(np.asarray(x, np.float32), axis=-1), np.float64) for x in (expected, other))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
