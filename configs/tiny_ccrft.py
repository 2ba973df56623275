"""Curiosity-coherence reinforcement fine-tuning of the tiny policy, from the one that was shown few chains.

    pixelis train --config=configs/tiny_ccrft.py --workdir=runs/ccrft

An iteration is 8 questions x 8 samples; what a run costs and what comes out: docs/rft.md.
"""

from ml_collections import ConfigDict, config_dict

from configs import tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict()
    config.phase = "ccrft"
    config.seed = 0
    config.init_from = "tiny_sft_early"  # where it starts, and the reference of the KL anchor and of all features
    # The seed of the scenes is none of those that supervised training has seen.
    config.scenes = ConfigDict(
        {"split": "train", "counts": dict.fromkeys(tiny_sft.FAMILIES, 40), "reframed": 0.25, "workers": 2, "seed": 11}
    )
    config.total_steps = 40  # iterations
    config.prompts = 8
    config.samples = 8
    config.minibatches = 2  # updates of an iteration
    config.asynchronous = False  # True: an iteration is sampled while the one before is learnt from
    config.refills = 1  # how often groups whose episodes all earned the same are replaced by other questions
    config.temperature = 1.0
    config.rollout = ConfigDict({"slots": 32, "workers": 1, "max_steps": 6, "max_turn_tokens": 96})
    # Weights of the shaped rewards; usage is Pixel-Reasoner's bonus, a peer. Fixed by `experiments/redundancy.py`.
    config.weights = ConfigDict({"curiosity": 0.05, "coherence": 0.02, "penalty": 0.20, "usage": 0.0})
    # "ensemble": disagreement of the heads; "paper": their plain error.
    config.curiosity = ConfigDict({"variant": "ensemble", "heads": 4, "hidden": 128, "learning_rate": 1e-3, "steps": 8})
    config.usage = ConfigDict({"target": 0.3, "most_calls": 1, "fine": 0.1})
    config.advantage = ConfigDict({"least_std": 0.25, "credit": "trajectory"})  # or "step": what is earned from there on
    config.curriculum = ConfigDict({"on": False, "window": 4, "gain": 0.02, "drop": 0.1, "patience": 3})
    config.clip = ConfigDict({"low": 0.2, "high": 0.28})
    # The anchor: exact KL to the start, held by a controller of its weight beta (docs/algorithms.md, section 4).
    config.kl = ConfigDict(
        {"beta": 0.05, "set_point": 0.05, "top": 0.10, "kp": 1.5, "ki": 0.1, "kd": 0.3}
        | {"least": 1e-4, "most": 10.0, "warm_up": 8, "smoothing": 2}
    )
    # What ends a run when it stays under: sampled -log p of decision tokens, shares of valid calls and of episodes with one.
    config.floors = ConfigDict({"valid_calls": 0.5, "rapr": 0.05, "entropy": 0.005})
    config.patience = 3
    config.optimizer = ConfigDict(
        {
            "learning_rate": 2e-4,
            "warmup_steps": 8,
            "final_ratio": 1.0,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    # The one shape of a microbatch: rows of so many tokens, frames and learning tokens, each of several episodes.
    config.microbatch = ConfigDict({"rows": 4, "tokens": 768, "frames": 16, "weighted": 384})
    config.loss = ConfigDict({"chunk": 1024, "vocab_chunk": 32768})
    config.pixels = ConfigDict({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    config.trainable = "all"
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "base": ""})
    config.execution = ConfigDict({"scan_layers": False, "remat": "none", "attention": "xla"})
    config.precision = ConfigDict({"params": "float32", "compute": "float32"})
    config.save_trajectories_every = 10
    config.checkpoint_every_steps = 5
    config.checkpoint_every_minutes = 5.0
    config.keep_checkpoints = 2
    config.max_minutes = config_dict.placeholder(float)  # None: no limit
    return config
