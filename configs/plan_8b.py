"""Qwen3-VL-8B in training, for `pixelis plan`: the update of supervised fine-tuning, and the reference pass.

    pixelis plan --config=configs/plan_8b.py --topology=v5e-256

Cost: ten minutes on two cores. What comes out: docs/plan.md. Adapters: `plan_8b_lora`; sampling: `plan_8b_sampling`.
"""

from ml_collections import ConfigDict, config_dict

from configs import tiny_ccrft, tiny_sft

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def get_config() -> ConfigDict:
    """Returns the configuration; what has the name of a field of a training config means the same."""
    config = ConfigDict()
    config.programs = ("sft", "ccrft", "reference")
    config.model = "qwen3_vl_8b"  # one of policy.PRESETS, or "tiny"
    config.layers = config_dict.placeholder(int)  # None: all decoder layers of the model
    # 1,152, the width of the vision tower, divides by 128 and not by 256: there it would be copied to every chip.
    config.mesh = ConfigDict({"data": 2, "fsdp": -1, "tensor": 1, "context": 1, "expert": 1})
    config.execution = ConfigDict({"scan_layers": True, "remat": "full", "attention": "splash"})
    config.precision = ConfigDict({"params": "float32", "compute": "bfloat16"})
    config.trainable = "all"
    config.lora = ConfigDict({"rank": 0, "alpha": 64.0, "targets": TARGETS, "base": ""})
    config.patches = 1024  # of a frame: 512 x 512 pixels, 256 visual tokens
    config.train = ConfigDict({"rows": 256, "tokens": 8192, "weighted": 2048, "frames": 8, "calls": 6})
    config.sample = ConfigDict(
        {"slots": 256, "capacity": 8192, "block": 32, "page": 1024}
        | {"prefill_rows": 256, "prefill_tokens": 2048, "prefill_frames": 1}
    )
    sft = tiny_sft.get_config()
    for name in ("operations", "total_steps", "optimizer", "loss", "pixels"):
        config[name] = sft[name]
    ccrft = tiny_ccrft.get_config()
    for name in ("clip", "temperature"):
        config[name] = ccrft[name]
    config.loss.vocab_chunk = 20_000  # 151,936 = 8 x 18,992
    return config
