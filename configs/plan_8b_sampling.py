"""Qwen3-VL-8B in sampling, for `pixelis plan`: parameters in bfloat16 over groups of eight chips, slots over the groups.

    pixelis plan --config=configs/plan_8b_sampling.py --topology=v5e-256

Cost: a minute or two on two cores. What comes out: docs/plan.md.
"""

from ml_collections import ConfigDict

from configs import plan_8b


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = plan_8b.get_config()
    config.programs = ("prefill", "decode")
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 8})
    config.precision.params = "bfloat16"
    config.sample.update({"slots": 256, "prefill_rows": 32, "prefill_tokens": 1024})
    return config
