"""The tiny policy learns to look: captions of scenes, from random weights, without any tool.

    pixelis train --config=configs/tiny_base.py --workdir=runs/tiny_base

Cost and result: see docs/training.md. Draws its scenes into `<workdir>/data` first.
"""

from ml_collections import ConfigDict

from configs import tiny_sft

COUNTS = {
    "read": 6000,
    "shape": 6000,
    "angle": 6000,
    "where": 3000,
    "blink": 3000,
    "cut": 500,
    "flash_read": 2000,
    "flash_shape": 2000,
    "follow_read": 2000,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_sft.get_config()
    config.phase = "look"
    config.init_from = ""
    config.scenes = ConfigDict({"counts": COUNTS, "workers": 2})
    config.total_steps = 6000
    config.optimizer.learning_rate = 1.5e-3
    config.buckets.tokens = (48, 80, 128, 192)
    config.buckets.frames = (1, 4)
    config.loss.heads_weight = 0.0
    return config
