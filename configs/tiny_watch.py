"""The tiny policy's second lesson: captions of scenes, clips and crops.

    pixelis train --config=configs/tiny_watch.py --workdir=runs/tiny_watch --config.init_from=runs/tiny_look

Cost and result: see docs/training.md. Draws its scenes into `<workdir>/data` first.
"""

from ml_collections import ConfigDict

from configs import tiny_sft

KINDS = ("image", "clip", "frame", "crop", "asked")
COUNTS = {
    "read": 800,
    "shape": 800,
    "angle": 800,
    "where": 800,
    "blink": 800,
    "cut": 100,
    "flash_read": 500,
    "flash_shape": 500,
    "follow_read": 800,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_sft.get_config()
    config.phase = "look"
    config.init_from = ""
    config.scenes = ConfigDict({"counts": COUNTS, "kinds": KINDS, "asked_share": 0.25, "reframed": 0.0, "workers": 2})
    config.total_steps = 1000
    config.optimizer.learning_rate = 1.5e-3
    config.buckets.tokens = (48, 80, 128, 192)
    config.buckets.frames = (1, 4)
    config.loss.heads_weight = 1.0
    config.loss.patches_weight = 1.0
    return config
