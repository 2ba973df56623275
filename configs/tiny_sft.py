"""Supervised fine-tuning of the tiny policy on oracle chains.

    pixelis train --config=configs/tiny_sft.py --workdir=runs/tiny_sft

Cost and result: see docs/training.md. Starts from `tiny_base`; builds its data under `<workdir>/data` when `data` is empty.
"""

from ml_collections import ConfigDict, config_dict

FAMILIES = ("read", "shape", "angle", "where", "blink", "cut", "flash_read", "flash_shape", "follow_read")
COUNTS = {
    "read": 400,
    "shape": 400,
    "angle": 400,
    "where": 400,
    "blink": 500,
    "cut": 500,
    "flash_read": 500,
    "flash_shape": 500,
    "follow_read": 500,
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict()
    config.phase = "sft"
    config.seed = 0
    config.init_from = "tiny_base"
    config.blind = False  # True: grey in place of every medium, for the baseline that only hears the question
    config.data = ""
    config.scenes = ConfigDict(
        {
            "split": "train",
            "counts": COUNTS,
            "styles": {"tools": 0.42, "direct": 0.22, "trap": 0.27, "self_correct": 0.09},
            "reframed": 0.25,
            "answer_only": {},  # by family: share of the traces cut down to their answer, see configs/tiny_sft_early.py
            "workers": 2,
            "seed": 0,
        }
    )
    config.total_steps = 1000
    config.operations = 6
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 100,
            "final_ratio": 0.05,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
        }
    )
    # pack: several examples a row, all rows as large as the largest bucket (docs/training.md).
    config.buckets = ConfigDict(
        {"tokens": (128, 224, 304, 384, 640), "frames": (4, 6, 12), "tokens_per_batch": 6144, "pack": False}
    )
    config.loss = ConfigDict(
        {"heads_weight": 0.5, "patches_weight": 0.0, "beta": 0.1, "iou_weight": 0.5, "chunk": 1024, "vocab_chunk": 32768}
    )
    config.pixels = ConfigDict({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    config.trainable = "all"  # or "decoder": the vision tower is frozen; or "adapters": all but the adapters is
    # Rank 0: no adapters. The base is what they stand beside: "" as it is, "int8" or "int4" in few bits (docs/policy.md).
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "base": ""})
    config.execution = ConfigDict({"scan_layers": False, "remat": "none", "attention": "xla"})
    config.precision = ConfigDict({"params": "float32", "compute": "float32"})
    config.log_every = 20
    config.checkpoint_every_steps = 500
    config.checkpoint_every_minutes = 5.0
    config.keep_checkpoints = 2
    config.max_minutes = config_dict.placeholder(float)  # None: no limit
    return config
