"""A policy with room to learn, where reinforcement and test-time learning start: few traces, and 40 % of them only an answer.

    pixelis train --config=configs/tiny_sft_early.py --workdir=runs/tiny_sft_early

It calls tools where most of its traces do, and guesses at once where most of them are cut down to their answer. Its headroom
(docs/algorithms.md, section 5) is measured by `pixelis eval --config=configs/headroom.py`.
"""

from ml_collections import ConfigDict

from configs import tiny_sft

ANSWER_ONLY = {
    "read": 0.15,
    "shape": 0.15,
    "angle": 0.9,
    "where": 0.15,
    "blink": 0.9,
    "cut": 0.15,
    "flash_read": 0.15,
    "flash_shape": 0.15,
    "follow_read": 0.9,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_sft.get_config()
    config.scenes.counts = ConfigDict(dict.fromkeys(tiny_sft.FAMILIES, 200))
    config.scenes.answer_only = ConfigDict(ANSWER_ONLY)
    config.total_steps = 700
    return config
