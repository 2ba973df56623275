"""The policy against transformers: same weights, same inputs, logits within 1e-5; and mutations that must be caught."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelis_jax import policy
from pixelis_jax.policy import layers, processing, rotary, vision, weights
from pixelis_jax.policy import model as model_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BOUND = 1e-5
VOCAB = 96
IMAGE, VIDEO, START, END = 90, 91, 92, 93


def _config(*, vision_heads: int, vision_head_dim: int, depth: int, taps: tuple[int, ...], tied: bool, theta: float):
    text = policy.TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=theta,
        mrope_section=(6, 5, 5),
    )
    tower = policy.VisionConfig(
        depth=depth,
        hidden_size=vision_heads * vision_head_dim,
        num_heads=vision_heads,
        intermediate_size=112,
        out_hidden_size=64,
        deepstack_visual_indexes=taps,
        num_position_embeddings=64,
        patch_size=4,
    )
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return policy.Qwen3VLConfig(text=text, vision=tower, tie_word_embeddings=tied, eos_token_id=94, **ids)


CONFIGS = {
    "tiny_tied": _config(vision_heads=3, vision_head_dim=32, depth=3, taps=(0, 1), tied=True, theta=1e4),
    "head64_untied": _config(vision_heads=2, vision_head_dim=64, depth=4, taps=(0, 1, 2), tied=False, theta=5e6),
    "head72_tied": _config(vision_heads=2, vision_head_dim=72, depth=4, taps=(0, 1, 3), tied=True, theta=5e6),
}

IMAGE_A, IMAGE_B, IMAGE_C, CLIP = ("image", (1, 4, 6)), ("image", (1, 8, 4)), ("image", (1, 2, 2)), ("video", (3, 4, 6))
CASES = {
    "text": [12],
    "image": [3, IMAGE_A, 8],
    "three_images": [2, IMAGE_A, 3, IMAGE_B, 1, IMAGE_C, 6],
    "video": [4, CLIP, 5],
    "image_and_video": [2, IMAGE_B, 4, CLIP, 1, IMAGE_A, 5],
}


@dataclasses.dataclass
class Row:
    """One sequence: ids, patches of all media in order, and their grids."""

    ids: np.ndarray
    media: list[tuple[str, tuple[int, int, int], np.ndarray]]

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [grid for _, grid, _ in self.media]


def _row(parts, config, seed: int) -> Row:
    """A number stands for so many random text tokens; each frame of a video gets its own start, pads and end."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    media = []
    for part in parts:
        if isinstance(part, int):
            ids += random.integers(0, IMAGE, part).tolist()
            continue
        kind, (t, h, w) = part
        pads = [{"image": IMAGE, "video": VIDEO}[kind]] * (h * w // 4)
        for _ in range(t):
            ids += [int(random.integers(0, IMAGE)), START, *pads, END]
        media.append((kind, (t, h, w), random.normal(size=(t * h * w, config.vision.patch_dim)).astype(np.float32)))
    return Row(np.asarray(ids), media)


def _randomise(reference) -> None:
    """Random values everywhere, norms and biases too, with logits of std 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(noise * 1.1 / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
        reference.model.visual.pos_embed.weight.mul_(8)


@functools.cache
def _reference(name: str):
    config = transformers.Qwen3VLConfig.from_dict(CONFIGS[name].to_json())
    config._attn_implementation = "eager"
    reference = transformers.Qwen3VLForConditionalGeneration(config).eval()
    _randomise(reference)
    return reference


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Returns config name -> our model with the weights of the reference, through the published files."""

    @functools.cache
    def loader(name: str) -> policy.Qwen3VL:
        directory = tmp_path_factory.mktemp(name)
        _reference(name).save_pretrained(directory)
        return weights.load(directory)

    return loader


def _pad(rows: list[Row], side: str) -> list[slice]:
    longest = max(len(row.ids) for row in rows)
    if side == "left":
        return [slice(longest - len(row.ids), longest) for row in rows]
    return [slice(0, len(row.ids)) for row in rows]


def _expected(name: str, rows: list[Row], side: str) -> list[np.ndarray]:
    places = _pad(rows, side)
    ids = np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int64)
    mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
    for row, place, out_ids, out_mask, out_kinds in zip(rows, places, ids, mask, kinds, strict=True):
        out_ids[place], out_mask[place] = row.ids, 1
        out_kinds[place] = np.where(row.ids == IMAGE, 1, np.where(row.ids == VIDEO, 2, 0))
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [medium for row in rows for medium in row.media if medium[0] == kind]
        if chosen:
            inputs[pixels] = np.concatenate([medium[2] for medium in chosen])
            inputs[grid] = np.asarray([medium[1] for medium in chosen])
    with torch.no_grad():
        logits = _reference(name)(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    return [row[place] for row, place in zip(logits, places, strict=True)]


@dataclasses.dataclass
class Batch:
    """Arrays of our model's call."""

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    inputs: policy.VisionInputs | None


def _batch(rows: list[Row], side: str, config, bucket: int = 40) -> Batch:
    shape = (len(rows), max(len(row.ids) for row in rows))
    batch = Batch(np.zeros(shape, np.int32), np.zeros((*shape, 3), np.int32), np.zeros(shape, bool), np.full(shape, -1), None)
    frames = max(sum(grid[0] for grid in row.grids) for row in rows)
    packed = []
    for number, (row, place) in enumerate(zip(rows, _pad(rows, side), strict=True)):
        batch.ids[number, place], batch.mask[number, place] = row.ids, True
        batch.positions[number, place] = rotary.mrope_positions(row.ids, row.grids, config)[0]
        batch.index[number, place] = rotary.visual_index(row.ids, row.grids, config, bucket=bucket)
        if frames:
            media = [(patches, grid) for _, grid, patches in row.media]
            options = {"frames": frames, "bucket": bucket, "patch_dim": config.vision.patch_dim}
            packed.append(processing.pack_frames(media, **options))
    if frames:
        patches, grid = map(np.stack, zip(*packed, strict=True))
        batch.inputs = policy.VisionInputs(patches=patches, grid=grid)
    return batch


def _logits(model: policy.Qwen3VL, batch: Batch) -> np.ndarray:
    @jax.jit
    def forward(state, inputs, ids, positions, index, mask):
        merged = nnx.merge(graph, state)
        visual = None if inputs is None else merged.encode_vision(inputs)
        hidden, _ = merged(ids, positions, visual=visual, visual_index=index, attention_mask=mask)
        return merged.unembed(hidden)

    graph, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(state, batch.inputs, batch.ids, batch.positions, batch.index, batch.mask))


def _errors(model, name: str, rows: list[Row], side: str, batch: Batch) -> list[float]:
    """Largest difference of any logit, one a row."""
    ours = _logits(model, batch)
    expected = _expected(name, rows, side)
    assert 1 < np.std(np.concatenate(expected)) < 3
    return [
        float(np.abs(logits[place] - reference).max())
        for logits, place, reference in zip(ours, _pad(rows, side), expected, strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, side, load):
    # One batch holds every case, so all but the longest are padded.
    model = load(name)
    rows = [_row(parts, model.config, seed) for seed, parts in enumerate(CASES.values())]
    errors = dict(zip(CASES, _errors(model, name, rows, side, _batch(rows, side, model.config)), strict=True))
    print({case: f"{error:.1e}" for case, error in errors.items()})
    assert max(errors.values()) < BOUND, errors


def test_positions_equal_transformers():
    config = CONFIGS["tiny_tied"]
    row = _row(CASES["image_and_video"], config, seed=3)
    images = [grid for kind, grid, _ in row.media if kind == "image"]
    videos = [grid for kind, grid, _ in row.media if kind == "video"]
    kinds = np.where(row.ids == IMAGE, 1, np.where(row.ids == VIDEO, 2, 0))[None]
    expected, delta = _reference("tiny_tied").model.get_rope_index(
        torch.from_numpy(row.ids[None]),
        torch.from_numpy(kinds),
        image_grid_thw=torch.tensor(images),
        video_grid_thw=torch.tensor(videos),
    )
    positions, following = rotary.mrope_positions(row.ids, row.grids, config)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy().T)
    assert following == len(row.ids) + int(delta)


@pytest.mark.parametrize("name", ["tiny_tied", "head64_untied"])
def test_prefill_and_decode_equal_transformers(name, load):
    model = load(name)
    rows = [_row(CASES["image"], model.config, 0), _row(CASES["three_images"], model.config, 1)]
    batch = _batch(rows, "right", model.config)
    step = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))
    with jax.default_matmul_precision("highest"):
        visual = model.encode_vision(batch.inputs)
        cache = policy.KVCache.create(model.config, 2, 64)
        hidden = []
        for chunk in [slice(0, 17), *(slice(t, t + 1) for t in range(17, batch.ids.shape[1]))]:
            out, cache = step(
                model,
                batch.ids[:, chunk],
                batch.positions[:, chunk],
                visual=visual,
                visual_index=batch.index[:, chunk],
                attention_mask=batch.mask[:, chunk],
                cache=cache,
            )
            hidden.append(out)
        logits = np.asarray(model.unembed(jnp.concatenate(hidden, axis=1)))
    np.testing.assert_array_equal(cache.length, [len(row.ids) for row in rows])
    for ours, row, expected in zip(logits, rows, _expected(name, rows, "right"), strict=True):
        assert np.abs(ours[: len(row.ids)] - expected).max() < BOUND


NAME = "head64_untied"


def _nothing(model, batch, monkeypatch):
    """The control."""


def _without_deepstack(model, batch, monkeypatch):
    place = model_module._place_visual
    monkeypatch.setattr(model_module, "_place_visual", lambda *args: (place(*args)[0], None))


def _tap_off_by_one(model, batch, monkeypatch):
    shifted = dataclasses.replace(model.config.vision, deepstack_visual_indexes=(1, 2, 3))
    monkeypatch.setattr(model.visual, "config", shifted)


def _height_and_width_swapped(model, batch, monkeypatch):
    batch.positions = batch.positions[..., [0, 2, 1]]


def _gelus_exchanged(model, batch, monkeypatch):
    tanh, exact = layers.gelu_tanh, layers.gelu_exact
    monkeypatch.setattr(layers, "gelu_tanh", exact)
    monkeypatch.setattr(layers, "gelu_exact", tanh)


def _class_default_theta(model, batch, monkeypatch):
    monkeypatch.setattr(model.decoder, "config", dataclasses.replace(model.config.text, rope_theta=5e5))


def _second_image_flattened(model, batch, monkeypatch):
    ids = batch.ids[0]
    start = int(np.flatnonzero(ids == END)[0])
    following = batch.positions[0, start, 0]
    batch.positions[0, start:] = (following + np.arange(len(ids) - start))[:, None]


def _frames_attend_to_each_other(model, batch, monkeypatch):
    """All frames as one: the mutation of a port that forgets the segment mask."""
    attend = vision.VisionAttention.__call__

    def joined(self, x, tables, bias):
        frames, count = x.shape[:2]
        one = lambda array: array.reshape(1, frames * count, -1)  # noqa: E731
        bias = bias.reshape(1, 1, 1, -1)
        return attend(self, one(x), (one(tables[0]), one(tables[1])), bias).reshape(x.shape)

    monkeypatch.setattr(vision.VisionAttention, "__call__", joined)


def _padding_patches_seen(model, batch, monkeypatch):
    attend = vision.VisionAttention.__call__
    monkeypatch.setattr(vision.VisionAttention, "__call__", lambda self, x, tables, bias: attend(self, x, tables, 0 * bias))


@pytest.mark.parametrize(
    "mutate",
    [
        _nothing,
        _without_deepstack,
        _tap_off_by_one,
        _height_and_width_swapped,
        _gelus_exchanged,
        _class_default_theta,
        _second_image_flattened,
        _frames_attend_to_each_other,
        _padding_patches_seen,
    ],
)
def test_mutation_is_caught(mutate, load, monkeypatch):
    # A copy: some mutations set attributes of the model.
    model = nnx.merge(*nnx.split(load(NAME)))
    rows = [_row(CASES["three_images"], model.config, seed=1)]
    batch = _batch(rows, "right", model.config)
    mutate(model, batch, monkeypatch)
    (error,) = _errors(model, NAME, rows, "right", batch)
    print(f"{mutate.__name__}: {error:.2e}")
    assert error < BOUND if mutate is _nothing else error > 100 * BOUND
