"""The end of `tiny_sft`: goes on with more pages, on any paper and with longer lines. Its result is what ships as `tiny_sft`.

    pixelis train --config=configs/tiny_lines.py --workdir=runs/tiny_lines --config.init_from=runs/tiny_pages

Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_pages, tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_pages.get_config()
    config.seed = 1
    config.scenes.seed = 1  # other scenes than before
    config.scenes.counts = ConfigDict(dict.fromkeys(tiny_sft.COUNTS, 200) | {"page": 1200})
    config.total_steps = 500
    return config
