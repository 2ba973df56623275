"""`tiny_sft` goes on with the same traces, and with pages of text.

    pixelis train --config=configs/tiny_pages.py --workdir=runs/tiny_pages --config.init_from=runs/tiny_sft

Cost and result: see docs/training.md. It stands apart because pages came when `tiny_sft` was trained already.
"""

from ml_collections import ConfigDict

from configs import tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_sft.get_config()
    config.scenes.counts = ConfigDict(tiny_sft.COUNTS | {"page": 300})
    config.total_steps = 300
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 30
    return config
