"""What labels would be worth on `shift` (docs/algorithms.md, section 5): `tiny_sft_early` trained on chains of shifted scenes.

    pixelis train --config=configs/supervised_shift.py --workdir=runs/supervised_shift
    pixelis eval --config=configs/headroom.py --model=runs/supervised_shift --workdir=runs/headroom_supervised \\
      --config.split=shift --config.samples=0

The scenes have a seed of their own, so none of them is one that is asked in the evaluation.
"""

from ml_collections import ConfigDict

from configs import tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_sft.get_config()
    config.init_from = "tiny_sft_early"
    config.scenes.split = "shift"
    config.scenes.seed = 1
    config.scenes.reframed = 0.0  # as the scenes that are asked
    config.scenes.counts = ConfigDict(dict.fromkeys(tiny_sft.FAMILIES, 60))
    config.total_steps = 150
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 20
    return config
