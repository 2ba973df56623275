"""A baseline that keeps the scenes honest: trained to answer the same questions from the thumbnail alone, without tools.

    pixelis train --config=configs/baseline_thumbnail.py --workdir=runs/thumbnail
    pixelis eval --config=configs/eval_scenes.py --model=runs/thumbnail --workdir=runs/eval_thumbnail --config.with_tools=false

With `--config.blind=true` it only hears the question. It starts from `tiny_base`, which has the base's whole budget behind it,
and goes on for as many steps as `tiny_sft` and `tiny_pages` together. Result: see docs/scenes.md.
"""

from ml_collections import ConfigDict

from configs import tiny_base, tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_base.get_config()
    config.init_from = "tiny_base"
    config.scenes.counts = ConfigDict({family: 600 for family in tiny_sft.FAMILIES})
    config.scenes.kinds = ("asked",)
    config.scenes.asked_share = 1.0
    config.scenes.reframed = 0.0  # in a close-up the thumbnail shows the answer
    config.total_steps = 1300
    return config
