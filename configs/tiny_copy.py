"""The tiny policy's third lesson: everything of the second, and to copy what a question says.

    pixelis train --config=configs/tiny_copy.py --workdir=runs/tiny_copy --config.init_from=runs/tiny_watch

Cost and result: see docs/training.md. Draws its scenes into `<workdir>/data` first.
"""

from ml_collections import ConfigDict

from configs import tiny_watch
from pixelis_jax.data.captions import KINDS

COUNTS = {
    "read": 500,
    "shape": 700,
    "angle": 300,
    "where": 100,
    "blink": 100,
    "cut": 50,
    "flash_read": 150,
    "flash_shape": 250,
    "follow_read": 100,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_watch.get_config()
    config.scenes.counts = ConfigDict(COUNTS)
    config.scenes.kinds = KINDS
    config.total_steps = 650
    config.optimizer.warmup_steps = 40
    return config
