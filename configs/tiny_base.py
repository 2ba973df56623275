"""The tiny policy's third lesson: everything of the second, and to copy what a question says. It has still not seen a tool.

    pixelis train --config=configs/tiny_base.py --workdir=runs/tiny_base --config.init_from=runs/tiny_watch

Cost and result: see docs/training.md. Draws its scenes into `<workdir>/data` first.
"""

from ml_collections import ConfigDict

from configs import tiny_sft, tiny_watch
from pixelis_jax.data.captions import KINDS


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_watch.get_config()
    images = dict.fromkeys(("read", "shape", "angle"), 300)
    config.scenes.counts = ConfigDict(dict.fromkeys(tiny_sft.FAMILIES, 100) | images)
    config.scenes.kinds = KINDS
    config.total_steps = 400
    config.optimizer.warmup_steps = 40
    return config
