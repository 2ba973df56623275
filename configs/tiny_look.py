"""The tiny policy's first lesson, from random weights: captions of whole images, which teach it where things are.

    pixelis train --config=configs/tiny_look.py --workdir=runs/tiny_look

Cost and result: see docs/training.md. Mixed with crops and clips from the first step, boxes come many times later.
"""

from ml_collections import ConfigDict

from configs import tiny_watch


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_watch.get_config()
    config.scenes.counts = ConfigDict({"read": 4000, "shape": 4000, "angle": 4000})
    config.scenes.kinds = ("image",)
    config.total_steps = 600
    config.optimizer.final_ratio = 1.0  # grounding comes late and at once: a rate that falls before stops it
    return config
