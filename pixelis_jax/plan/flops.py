"""Operations that a step needs, from the architecture alone.

The rules are MaxText's: two operations a multiply-add of a matrix product, causal attention halved, nothing for what
rematerialisation computes again, the vision tower counted; the backward pass of a product costs twice the forward pass. Norms,
activations, softmax, rotations and the interpolation of the position table are left out. Padding counts: it is computed.
"""

import dataclasses

from pixelis_jax.policy import Lora, Qwen3VLConfig, TextConfig, VisionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step computes.

    Attributes:
      rows: sequences.
      tokens: new tokens a row.
      cached: earlier tokens that each new one also sees.
      frames: frames a row.
      patches: patches a frame.
      scored: positions a row that get logits.
      decoder_passes: forward passes that the matrix products of the decoder cost: 1 without a gradient, 3 with one, 2 where the
        weights are frozen but the gradient passes through.
      adapter_passes: likewise for its adapters.
      vision_passes: likewise for the vision tower; 1 where no gradient reaches it.
      turns: how often all of this is done (decoding token after token).
    """

    rows: int
    tokens: int
    cached: int = 0
    frames: int = 0
    patches: int = 0
    scored: int
    decoder_passes: int = 1
    adapter_passes: int = 1
    vision_passes: int = 1
    turns: int = 1


def step_flops(model: Qwen3VLConfig, work: Work, lora: Lora | None = None) -> dict[str, int]:
    """Counts the operations of one step over all chips.

    Args:
      model: architecture.
      work: the step.
      lora: adapters of the decoder.

    Returns:
      By part: ``vision``, ``attention`` (scores and mixing, all layers), ``layers`` (their matrix products), ``unembedding``.
    """
    # A gradient reaches scores and values whether or not the weights learn.
    attention_passes = 1 if work.decoder_passes == 1 else 3
    layers, tokens = model.text.num_hidden_layers, work.rows * work.tokens
    layer = work.decoder_passes * layer_flops(model.text)
    if lora:
        layer += work.adapter_passes * adapter_flops(model.text, lora)
    parts = {
        "vision": work.vision_passes * work.rows * work.frames * frame_flops(model.vision, work.patches),
        "attention": attention_passes * layers * work.rows * attention_flops(model.text, work.tokens, work.cached),
        "layers": layers * tokens * layer,
        "unembedding": work.decoder_passes * work.rows * work.scored * 2 * model.text.hidden_size * model.text.vocab_size,
    }
    return {part: work.turns * count for part, count in parts.items()}


def layer_flops(text: TextConfig) -> int:
    """Forward matrix products of one decoder layer for one token: q, k, v, o, and SwiGLU or the router and its chosen experts."""
    sizes = [size for name, size in _projections(text).items() if not (text.num_experts and name in _MLP)]
    products = sum(rows * columns for rows, columns in sizes)
    if text.num_experts:
        products += text.hidden_size * (text.num_experts + 3 * text.num_experts_per_tok * text.moe_intermediate_size)
    return 2 * products


def adapter_flops(text: TextConfig, lora: Lora) -> int:
    """Forward matrix products of the adapters of one decoder layer for one token; experts have none."""
    sizes = [
        size for name, size in _projections(text).items() if not (text.num_experts and name in _MLP) and name in lora.targets
    ]
    return 2 * lora.rank * sum(rows + columns for rows, columns in sizes)


_MLP = ("gate_proj", "up_proj", "down_proj")


def _projections(text: TextConfig) -> dict[str, tuple[int, int]]:
    size, wide = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return {
        "q_proj": (size, queries),
        "k_proj": (size, keys),
        "v_proj": (size, keys),
        "o_proj": (queries, size),
        "gate_proj": (size, wide),
        "up_proj": (size, wide),
        "down_proj": (wide, size),
    }


def attention_flops(text: TextConfig, tokens: int, cached: int) -> int:
    """Forward scores and mixing of one decoder layer for one row: all of the cache, half of the chunk itself."""
    return 2 * text.num_attention_heads * text.head_dim * tokens * (2 * cached + tokens)


def frame_flops(vision: VisionConfig, patches: int) -> int:
    """Forward pass of the vision tower over one frame, its mergers included."""
    width, folded = vision.hidden_size, vision.hidden_size * vision.merge_unit
    block = patches * 2 * width * (4 * width + 2 * vision.intermediate_size) + 4 * patches**2 * width
    merger = patches // vision.merge_unit * 2 * folded * (folded + vision.out_hidden_size)
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return patches * 2 * vision.patch_dim * width + vision.depth * block + mergers * merger
