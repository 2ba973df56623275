"""The tiny policy's sixth lesson: nothing but questions that say their answer, by a name or by a number.

    pixelis train --config=configs/tiny_recall.py --workdir=runs/tiny_recall --config.init_from=runs/tiny_crops

Mixed with captions, 2,100 steps had not taught it to choose among several values; alone, 400 do. It forgets the crops meanwhile;
the next lesson brings them back. Cost and result: see docs/training.md.
"""

from ml_collections import ConfigDict

from configs import tiny_copy


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = tiny_copy.get_config()
    config.seed = 2
    config.scenes.counts = ConfigDict({"shape": 2500})
    config.scenes.kinds = ("copy",)
    config.total_steps = 400
    config.buckets.tokens = (96, 112, 128, 192)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_ratio = 1.0
    config.optimizer.warmup_steps = 20
    return config
