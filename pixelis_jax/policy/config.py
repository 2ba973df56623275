"""Configuration of the policy: a Qwen3-VL, dense or a mixture of experts, read from and written to the published ``config.json``.

Reading is strict. A field that we do not know, or whose value would change the function that the network computes,
raises `ConfigError`; a file can therefore never be loaded as something that it is not.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike


class ConfigError(ValueError):
    """A configuration that is not a Qwen3-VL that we can run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Number formats. Norms, softmax, rotary angles and logits are always reduced in float32.

    Attributes:
      params: format in which parameters are stored.
      compute: format of activations and matrix products.
    """

    params: DTypeLike = jnp.float32
    compute: DTypeLike = jnp.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the network is computed. It changes speed, memory and compile time, never the function.

    Attributes:
      scan_layers: layers of one shape are one `jax.lax.scan` over stacked parameters (the first decoder layers, behind
        which DeepStack features are added, stay unrolled), so that compile time does not grow with depth. Checkpoints of the two
        forms are converted by `weights`.
      remat: what the backward pass computes again. ``none``: nothing; ``full``: all of a layer; ``dots``: everything but the
        results of matrix products with parameters.
      attention: ``xla``, or ``splash``: Pallas kernels of JAX for sequences without a cache (TPU only), of attention
        and of the products of experts.
    """

    scan_layers: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    attention: Literal["xla", "splash"] = "xla"

    def __post_init__(self) -> None:
        for name, known in (("remat", ("none", "full", "dots")), ("attention", ("xla", "splash"))):
            value = getattr(self, name)
            _check(value in known, f"execution.{name} is {value!r}, known are {', '.join(known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside the decoder's projections (Hu et al., https://arxiv.org/abs/2106.09685).

    Attributes:
      rank: width of an adapter.
      alpha: an adapter's output is scaled by ``alpha / rank``.
      targets: projections that get one.
      base: format of the kernels beside which adapters stand: that of the other parameters, or one of few bits (QLoRA,
        `quantization`), in which they cannot be trained.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    base: Literal["", "int8", "int4"] = ""

    def __post_init__(self) -> None:
        known = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        unknown = [name for name in self.targets if name not in known]
        _check(self.rank > 0, f"lora.rank must be positive, got {self.rank}")
        _check(not unknown, f"lora.targets: no projection {', '.join(unknown)} (known: {', '.join(known)})")
        _check(self.base in ("", "int8", "int4"), f"lora.base is {self.base!r}, known are int8, int4, and '' for none")

    def rank_of(self, name: str) -> int:
        """Rank of the adapter of a projection; 0 for none."""
        return self.rank if name in self.targets else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower; names as in the published ``vision_config``."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    num_position_embeddings: int = 2304
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        taps = self.deepstack_visual_indexes
        _check(self.hidden_size % self.num_heads == 0, "vision hidden_size must be a multiple of num_heads")
        _check(self.head_dim % 4 == 0, f"vision head_dim must be a multiple of 4, got {self.head_dim}")
        _check(self.position_side**2 == self.num_position_embeddings, "num_position_embeddings must be a square")
        _check(list(taps) == sorted(set(taps)), f"deepstack_visual_indexes must increase, got {taps}")
        inside = all(0 <= tap < self.depth for tap in taps)
        _check(inside, f"deepstack_visual_indexes outside depth {self.depth}: {taps}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x time x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches folded into one visual token."""
        return self.spatial_merge_size**2

    @property
    def position_side(self) -> int:
        """Side of the square learned position table."""
        return math.isqrt(self.num_position_embeddings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model; names as in the published ``text_config``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 262_144
    initializer_range: float = 0.02
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0

    def __post_init__(self) -> None:
        section, half = self.mrope_section, self.head_dim // 2
        if self.num_experts:
            chosen = 0 < self.num_experts_per_tok <= self.num_experts
            _check(chosen, f"num_experts_per_tok must be in 1..{self.num_experts}, got {self.num_experts_per_tok}")
            _check(self.moe_intermediate_size > 0, "a mixture of experts needs moe_intermediate_size")
        divides = self.num_attention_heads % self.num_key_value_heads == 0
        _check(divides, "num_key_value_heads must divide num_attention_heads")
        _check(len(section) == 3 and sum(section) == half, f"mrope_section {section} must be 3 parts of {half}")
        # Height takes frequencies 1, 4, 7, ..., width 2, 5, 8, ...: both must fit below head_dim / 2.
        _check(3 * max(section[1:]) <= half + 1, f"mrope_section {section} does not interleave over {half} frequencies")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig:
    """A whole Qwen3-VL; a mixture of experts where ``text.num_experts`` is not 0."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    eos_token_id: int = 151_645
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        taps, layers = len(self.vision.deepstack_visual_indexes), self.text.num_hidden_layers
        same_width = self.vision.out_hidden_size == self.text.hidden_size
        _check(same_width, "vision out_hidden_size must equal text hidden_size")
        _check(taps <= layers, f"{taps} DeepStack taps but {layers} decoder layers")

    def unrolled_layers(self, execution: Execution) -> int:
        """Number of decoder layers that are not scanned: those that DeepStack features follow, or all."""
        layers, taps = self.text.num_hidden_layers, len(self.vision.deepstack_visual_indexes)
        return taps if execution.scan_layers else layers

    @property
    def visual_token_ids(self) -> tuple[int, int]:
        """Ids of the placeholders that visual tokens replace: image, video."""
        return self.image_token_id, self.video_token_id

    @classmethod
    def from_json(cls, source: epath.PathLike | Mapping[str, Any]) -> Self:
        """Reads a published ``config.json``.

        Args:
          source: the file, a directory that holds a ``config.json``, or its parsed content.

        Returns:
          The configuration.

        Raises:
          ConfigError: not a Qwen3-VL, or with a field that we do not support.
        """
        raw = dict(source) if isinstance(source, Mapping) else _read_json(source)
        if raw.get("model_type") not in ("qwen3_vl", "qwen3_vl_moe"):
            raise ConfigError(f"model_type is {raw.get('model_type')!r}, expected 'qwen3_vl' or 'qwen3_vl_moe'")
        experts = raw["model_type"] == "qwen3_vl_moe"
        text_raw, vision_raw = dict(raw.pop("text_config", {})), dict(raw.pop("vision_config", {}))
        fields = _take(raw, "config", _TOP_FIELDS, _TOP_FIXED)
        fields.setdefault("tie_word_embeddings", text_raw.get("tie_word_embeddings", False))
        for name in _TOKEN_FIELDS:  # published inside text_config
            if fields.get(name) is None and text_raw.get(name) is not None:
                fields[name] = text_raw[name]
        if not isinstance(fields.get("eos_token_id", 0), int):
            raise ConfigError(f"eos_token_id must be one integer, got {fields['eos_token_id']!r}")
        try:
            return cls(text=_read_text(text_raw, experts), vision=_read_vision(vision_raw), **fields)
        except TypeError as error:  # a required field is missing: the dataclass names it
            raise ConfigError(f"config.json is incomplete: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Returns the published layout, readable by `from_json` and by transformers."""
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        kind, name = ("qwen3_vl_moe", "Qwen3VLMoe") if self.text.num_experts else ("qwen3_vl", "Qwen3VL")
        if self.text.num_experts:
            text |= _MOE_FIXED
        else:
            text = {name: value for name, value in text.items() if name not in _MOE_FIELDS}
        section = list(text.pop("mrope_section"))
        vision["deepstack_visual_indexes"] = list(vision["deepstack_visual_indexes"])
        if vision.pop("rope_theta") != 10_000.0:
            raise ConfigError("the published layout has no field for a vision rope_theta other than 10000")
        tokens = {name: getattr(self, name) for name in _TOKEN_FIELDS}
        text |= _TEXT_FIXED | {name: value for name, value in tokens.items() if value is not None}
        text |= {"model_type": f"{kind}_text", "tie_word_embeddings": self.tie_word_embeddings}
        text["rope_scaling"] = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": section}
        return {
            "architectures": [f"{name}ForConditionalGeneration"],
            "model_type": kind,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "text_config": text,
            "vision_config": vision | _VISION_FIXED | {"model_type": kind},
        }


_TOKEN_FIELDS = ("eos_token_id", "bos_token_id", "pad_token_id")
_TOP_FIELDS = {field.name for field in dataclasses.fields(Qwen3VLConfig)} - {"text", "vision"}
_MOE_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_TEXT_FIELDS = {field.name for field in dataclasses.fields(TextConfig)} - set(_MOE_FIELDS)
_VISION_FIELDS = {field.name for field in dataclasses.fields(VisionConfig)}
# Fields with one supported value: any other would be another network.
_TOP_FIXED: dict[str, Any] = {}
_TEXT_FIXED: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0}
# Every layer is a mixture, its weights sum to one, and nothing but the tokens' own loss reaches the router.
_MOE_FIXED: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
_VISION_FIXED: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh"}
# Fields that describe the file or how other software runs it; they do not change the function.
_INERT = {
    "architectures", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id", "model_type",
    "name_or_path", "output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _read_json(source: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read a model configuration from {path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return raw


def _take(raw: Mapping[str, Any], where: str, fields: set[str], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `raw` that a dataclass takes, after refusing what we cannot honour."""
    for name, expected in fixed.items():
        if raw.get(name, expected) != expected:
            raise ConfigError(f"{where}.{name} is {raw[name]!r}, only {expected!r} is supported")
    unknown = sorted(name for name in raw.keys() - fields - fixed.keys() - _INERT if not name.startswith("_"))
    if unknown:
        raise ConfigError(f"{where} has unsupported fields: {', '.join(unknown)}")
    return {name: value for name, value in raw.items() if name in fields}


def _read_text(raw: dict[str, Any], experts: bool) -> TextConfig:
    # Published files carry rope_theta beside rope_scaling; newer transformers put both into rope_parameters.
    rope = dict(raw.pop("rope_scaling", None) or {}) | dict(raw.pop("rope_parameters", None) or {})
    rope_type = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if rope_type not in ("default", "mrope") or not rope.pop("mrope_interleaved", True):
        raise ConfigError(f"text_config: only the default interleaved MRoPE is supported, got rope_type {rope_type!r}")
    section = rope.pop("mrope_section", (24, 20, 20))
    theta = rope.pop("rope_theta", raw.pop("rope_theta", None))
    if rope:
        raise ConfigError(f"text_config: unsupported rope fields: {', '.join(sorted(rope))}")
    if theta is None:
        raise ConfigError("text_config has no rope_theta")
    inert = {name: None for name in (*_TOKEN_FIELDS, "tie_word_embeddings", "rope_theta")}
    raw = {name: value for name, value in raw.items() if name not in inert}
    names, fixed = (_TEXT_FIELDS | set(_MOE_FIELDS), _TEXT_FIXED | _MOE_FIXED) if experts else (_TEXT_FIELDS, _TEXT_FIXED)
    if experts:
        _check(bool(raw.get("num_experts")), "text_config.num_experts is missing")
        # Only a training of transformers' own reads these; published files say null for an empty list.
        raw = {name: value for name, value in raw.items() if name not in ("router_aux_loss_coef", "output_router_logits")}
        raw["mlp_only_layers"] = raw.get("mlp_only_layers") or []
    fields = _take(raw, "text_config", names, fixed)
    return TextConfig(**fields, rope_theta=float(theta), mrope_section=tuple(section))


def _read_vision(raw: dict[str, Any]) -> VisionConfig:
    rope = dict(raw.pop("rope_parameters", None) or {})
    if rope.pop("rope_type", "axial") != "axial":
        raise ConfigError("vision_config: only axial rotary positions are supported")
    theta = rope.pop("rope_theta", 10_000.0)
    if rope:
        raise ConfigError(f"vision_config: unsupported rope fields: {', '.join(sorted(rope))}")
    raw = {name: value for name, value in raw.items() if name not in (*_TOKEN_FIELDS, "tie_word_embeddings")}
    fields = _take(raw, "vision_config", _VISION_FIELDS - {"rope_theta"}, _VISION_FIXED)
    if "deepstack_visual_indexes" in fields:
        fields["deepstack_visual_indexes"] = tuple(fields["deepstack_visual_indexes"])
    return VisionConfig(**fields, rope_theta=float(theta))
