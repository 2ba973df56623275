"""What training the vision tower adds to fine-tuning, and how far seeds lie apart.

    pixelis sweep --config=configs/sweeps/tiny_sft.py --workdir=runs/tower

Cost: six runs of 300 steps, each with its own data. The result has not been measured; the sweep shows the form.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict(convert_dict=False)  # keeps the order of variants, and takes names with dots
    config.command = "train"
    config.base = "configs/tiny_sft.py"
    config.fixed = {"total_steps": 300}
    config.axes = {
        "tower": {"trained": {"trainable": "all"}, "frozen": {"trainable": "decoder"}},
        "seed": {str(seed): {"seed": seed} for seed in range(3)},
    }
    return config
