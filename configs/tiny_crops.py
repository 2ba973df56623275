"""The tiny policy's fifth lesson: more crops from other scenes, four in ten of them reframed (docs/scenes.md).

    pixelis train --config=configs/tiny_crops.py --workdir=runs/tiny_crops --config.init_from=runs/tiny_read

Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_copy

COUNTS = {
    "read": 250,
    "shape": 1200,
    "angle": 150,
    "where": 60,
    "blink": 60,
    "flash_read": 60,
    "flash_shape": 350,
    "follow_read": 60,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_copy.get_config()
    config.seed = 1  # other scenes than the lessons before
    config.scenes.counts = ConfigDict(COUNTS)
    config.scenes.reframed = 0.4
    config.total_steps = 800
    return config
