"""What the labels of CC-RFT are worth to supervised training: `tiny_sft_early` on as many questions, of the same scenes.

    pixelis sweep --config=configs/sweeps/supervised_rft.py --workdir=runs/supervised_rft

CC-RFT asks 320 of these 360 questions, and a few more where it refills, and reads their answers alone; `chains` adds what it
never sees. Cost: 6 runs of 150 steps, 7 (`answers`) and 15 minutes (`chains`) on one of two busy cores. What comes out:
docs/rft.md.
"""

from ml_collections import ConfigDict

from configs import tiny_ccrft, tiny_sft


def _cut_down(share: float) -> dict[str, float]:
    return {f"scenes.answer_only.{family}": share for family in tiny_sft.FAMILIES}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    scenes = tiny_ccrft.get_config().scenes
    config = ConfigDict(convert_dict=False)  # keeps the order of variants, and takes names with dots
    config.command = "train"
    config.base = "configs/tiny_sft_early.py"
    config.fixed = {"init_from": "tiny_sft_early", "scenes.seed": scenes.seed, "scenes.reframed": scenes.reframed}
    config.fixed |= {f"scenes.counts.{family}": count for family, count in scenes.counts.items()}
    config.fixed |= {"total_steps": 150, "optimizer.learning_rate": 5e-4, "optimizer.warmup_steps": 20}
    config.axes = {
        "seed": {str(seed): {"seed": seed} for seed in range(3)},
        "variant": {"answers": _cut_down(1.0), "chains": _cut_down(0.0)},
    }
    return config
