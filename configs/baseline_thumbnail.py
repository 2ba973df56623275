"""A baseline that keeps the scenes honest: trained to answer the same questions from the thumbnail alone, without tools.

    pixelis train --config=configs/baseline_thumbnail.py --workdir=runs/thumbnail --config.init_from=runs/tiny_base
    pixelis eval --config=configs/eval_scenes.py --model=runs/thumbnail --workdir=runs/eval_thumbnail --config.with_tools=false

With `--config.blind=true` it only hears the question. Result: see docs/scenes.md.
"""

from ml_collections import ConfigDict

from configs import tiny_base, tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_base.get_config()
    config.init_from = "tiny_base"
    config.scenes.counts = ConfigDict({family: 1000 for family in tiny_sft.FAMILIES})
    config.scenes.kinds = ("asked",)
    config.scenes.asked_share = 1.0
    config.scenes.reframed = 0.0  # in a close-up the thumbnail shows the answer
    config.total_steps = 400
    return config
