"""Qwen3-VL-8B on a pod: every step of supervised fine-tuning and sampling, for `pixelis plan`.

    pixelis plan --config=configs/plan_8b.py --topology=v5e-256

Cost: a few minutes on two cores. What comes out: docs/plan.md.
"""

from ml_collections import ConfigDict, config_dict

from configs import tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict()
    config.programs = ("sft", "reference", "prefill", "decode")
    config.model = "qwen3_vl_8b"
    config.layers = config_dict.placeholder(int)  # None: all decoder layers of the model
    config.precision = ConfigDict({"params": "float32", "compute": "bfloat16"})
    config.remat = "full"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.patches = 1024  # a frame: 512 x 512 pixels
    config.train = ConfigDict({"rows": 256, "tokens": 8192, "weighted": 2048, "frames": 8, "calls": 6})
    config.sample = ConfigDict(
        {"slots": 256, "capacity": 8192, "block": 32, "prefill_rows": 256, "prefill_tokens": 2048, "prefill_frames": 1}
    )
    config.operations = 6
    config.total_steps = 1000
    config.optimizer = tiny_sft.get_config().optimizer
    config.loss = tiny_sft.get_config().loss
    config.pixels = tiny_sft.get_config().pixels
    return config
