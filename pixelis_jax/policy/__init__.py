"""The policy: Qwen3-VL in Flax NNX, with its processing, cache, heads and published weights."""

from pixelis_jax.policy.config import ConfigError, Execution, Lora, Precision, Qwen3VLConfig, TextConfig, VisionConfig
from pixelis_jax.policy.heads import AuxiliaryHeads, HeadOutputs
from pixelis_jax.policy.kv_cache import KVCache, Tail, Window
from pixelis_jax.policy.model import Qwen3VL
from pixelis_jax.policy.presets import PRESETS, qwen3_vl_2b, qwen3_vl_4b, qwen3_vl_8b, qwen3_vl_30b_a3b, qwen3_vl_32b, tiny
from pixelis_jax.policy.rotary import mrope_positions, visual_index
from pixelis_jax.policy.vision import VisionInputs, VisualFeatures, patch_coordinates

__all__ = [
    "AuxiliaryHeads",
    "ConfigError",
    "Execution",
    "HeadOutputs",
    "KVCache",
    "Lora",
    "PRESETS",
    "Precision",
    "Qwen3VL",
    "Qwen3VLConfig",
    "Tail",
    "TextConfig",
    "VisionConfig",
    "VisionInputs",
    "VisualFeatures",
    "Window",
    "mrope_positions",
    "patch_coordinates",
    "qwen3_vl_2b",
    "qwen3_vl_30b_a3b",
    "qwen3_vl_32b",
    "qwen3_vl_4b",
    "qwen3_vl_8b",
    "tiny",
    "visual_index",
]
