"""What a policy could still learn (docs/algorithms.md, section 5): greedy, one sample, the vote of 8, the best of 8.

pixelis eval --config=configs/headroom.py --model=tiny_sft_early --workdir=runs/headroom
pixelis eval --config=configs/headroom.py --model=tiny_sft_early --workdir=runs/headroom_shift --config.split=shift
"""

from ml_collections import ConfigDict

from configs import eval_scenes


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = eval_scenes.get_config()
    config.counts = ConfigDict(dict.fromkeys(eval_scenes.FAMILIES, 12))
    config.no_tools = False
    config.samples = 8
    return config
