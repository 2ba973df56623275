"""The end of `tiny_sft`: a little more of the same, with pages on any paper. Its result is what ships as `tiny_sft`.

    pixelis train --config=configs/tiny_lines.py --workdir=runs/tiny_lines --config.init_from=runs/tiny_pages

A page should be known by the question and not by its paper. Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_pages, tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_pages.get_config()
    config.seed = 1
    config.scenes.seed = 1  # other scenes than before
    config.scenes.counts = ConfigDict(dict.fromkeys(tiny_sft.COUNTS, 130) | {"page": 450})
    config.total_steps = 300
    config.optimizer.learning_rate = 3e-4
    return config
