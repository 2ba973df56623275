"""As `plan_8b`, with adapters of rank 32 beside frozen parameters in bfloat16.

pixelis plan --config=configs/plan_8b_lora.py --topology=v5e-256
pixelis plan --config=configs/plan_8b_lora.py --topology=v5e-256 --config.lora.base=int8
"""

from ml_collections import ConfigDict

from configs import plan_8b


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = plan_8b.get_config()
    config.trainable = "adapters"
    config.lora.rank = 32
    config.lora.base = ""  # or "int8", "int4": the kernels beside adapters in few bits
    config.precision.params = "bfloat16"
    return config
