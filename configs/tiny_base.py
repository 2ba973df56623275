"""The tiny policy's last lesson before it sees a tool: the fifth once more, now that it can copy.

    pixelis train --config=configs/tiny_base.py --workdir=runs/tiny_base --config.init_from=runs/tiny_recall

Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_crops


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_crops.get_config()
    config.seed = 3
    config.total_steps = 600
    return config
