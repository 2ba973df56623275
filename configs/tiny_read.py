"""The tiny policy's fourth lesson: what stands on a card, from many crops and from afar.

    pixelis train --config=configs/tiny_read.py --workdir=runs/tiny_read --config.init_from=runs/tiny_copy

Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_copy

COUNTS = {
    "read": 900,
    "shape": 2000,
    "angle": 200,
    "where": 60,
    "blink": 60,
    "flash_read": 60,
    "flash_shape": 150,
    "follow_read": 60,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_copy.get_config()
    config.scenes.counts = ConfigDict(COUNTS)
    return config
