"""The scenes' test split, with tools and without.

    pixelis eval --config=configs/eval_scenes.py --model=tiny_sft --workdir=runs/eval

Cost: about 8 minutes on two cores for 630 questions in both conditions, data included. The result stands in docs/training.md.
"""

from ml_collections import ConfigDict

FAMILIES = ("read", "shape", "angle", "where", "blink", "cut", "flash_read", "flash_shape", "follow_read")


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict()
    config.split = "test"
    config.counts = ConfigDict({family: 70 for family in FAMILIES})
    config.workers = 2
    config.slots = 16
    config.with_tools = True
    config.no_tools = True
    config.constrain = False  # with tools, greedily: calls can only be ones that fit their tool's schema (extra `grammar`)
    config.samples = 0  # more: also ask so often at temperature 1, for the vote and the best
    return config
