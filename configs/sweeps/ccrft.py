"""Which part of the reward does what: Figure 3 of the paper at small scale, five variants and a peer, three seeds.

    pixelis sweep --config=configs/sweeps/ccrft.py --workdir=runs/ccrft

Cost: 16 runs of 40 iterations, about 5 minutes each on two cores. What comes out: docs/rft.md.
"""

from ml_collections import ConfigDict


def _weights(curiosity: float, coherence: float, penalty: float, usage: float = 0.0) -> dict[str, float]:
    values = {"curiosity": curiosity, "coherence": coherence, "penalty": penalty, "usage": usage}
    return {f"weights.{name}": value for name, value in values.items()}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict(convert_dict=False)  # keeps the order of variants, and takes names with dots
    config.command = "train"
    config.base = "configs/tiny_ccrft.py"
    config.fixed = {}
    config.axes = {
        "seed": {str(seed): {"seed": seed} for seed in range(3)},
        "variant": {
            "answer_only": _weights(0.0, 0.0, 0.0),
            "curiosity": _weights(0.05, 0.0, 0.0),
            "coherence": _weights(0.0, 0.02, 0.0),
            "curiosity_coherence": _weights(0.05, 0.02, 0.0),
            "full": _weights(0.05, 0.02, 0.20),
            "usage_bonus": _weights(0.0, 0.0, 0.0, usage=0.5),
        },
    }
    return config
