"""Pixel TTRL of the tiny policy: a stream of questions under shift, without labels.

    pixelis train --config=configs/tiny_ttrl.py --workdir=runs/ttrl

A query is 1 + 8 episodes, their checks, a vote, and at most one update; what a run costs and what comes out: docs/ttrl.md.
"""

from ml_collections import ConfigDict, config_dict

from configs import tiny_ccrft, tiny_sft


def get_config() -> ConfigDict:
    """Returns the configuration."""
    ccrft = tiny_ccrft.get_config()
    config = ConfigDict()
    config.phase = "ttrl"
    config.seed = 0  # of the order of the stream, and of the sampling
    config.init_from = "tiny_sft_early"  # where it starts, the first anchor, and what the memory's keys are made by
    # The stream is made of the first questions of each family; the probe set comes from those behind them.
    config.scenes = ConfigDict(
        {"split": "shift", "counts": dict.fromkeys(tiny_sft.FAMILIES, 45), "reframed": 0.0, "workers": 2, "seed": 0}
    )
    config.total_steps = 400  # queries
    config.samples = 8  # that vote
    config.temperature = 1.0
    config.use_tools = True
    config.read_only = False  # True: answers, learns nothing and remembers nothing
    config.rate = ConfigDict({"updates": 1, "queries": 1})  # at most so many updates in so many queries
    config.rollout = ConfigDict({"slots": 9, "workers": 1, "max_steps": 6, "max_turn_tokens": 96})
    # "trajectories", or to compare: "answers" (Ans-SSC), "majority", "process". It abstains under any of the last four.
    config.vote = ConfigDict({"kind": "trajectories", "temperature": 0.1, "votes": 3, "mass": 0.5, "margin": 0.1, "agree": 0.6})
    config.exemplar = "short_faithful"  # or "random", of the winners
    config.evidence = True  # learns from no exemplar without a call whose result was checked
    config.memory = ConfigDict(
        {"on": True, "neighbours": 8, "silent_below": 50, "capacity": 100_000, "value_aware": True, "decay": 0.9, "share": 0.5}
    )
    config.retrieved = ConfigDict({"most": 3, "weight": 0.5})  # retrieved exemplars of an update, and their weight together
    config.anchored = 2  # samples beside the exemplar whose divergence counts
    # So do greedy trajectories of the last queries that nothing was learnt from: drawn for each update, and kept.
    config.held = ConfigDict({"each": 4, "window": 64})
    config.objective = "imitation"  # or "grpo", "entropy"
    config.poison = 0.0  # a control: share of records that carry a wrong answer
    config.probe = 16  # trajectories of the probe set
    config.ema = ConfigDict({"half_life": 120.0})  # of the anchor, in updates; 400 queries led to 135 to 146
    config.guard = ConfigDict({"on": True, "limit": 0.25})
    config.control = "pid"  # or "fixed", "none"
    # The least is where it begins: what is held lets go below it, long before the divergence is anywhere near its set-point.
    config.kl = ConfigDict(
        {"beta": 0.5, "set_point": 0.13, "top": 0.20, "kp": 1.5, "ki": 0.1, "kd": 0.3}
        | {"least": 0.5, "most": 10.0, "warm_up": 24, "smoothing": 2}
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,
            "warmup_steps": 10,
            "final_ratio": 1.0,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    config.microbatch = ConfigDict({"rows": 2, "tokens": 768, "frames": 16, "weighted": 384})
    for name in ("clip", "loss", "pixels", "mesh", "trainable", "lora", "execution", "precision", "keep_checkpoints"):
        config[name] = ccrft[name]
    config.log_every = 10
    config.checkpoint_every_steps = 20
    config.checkpoint_every_minutes = 5.0
    config.max_minutes = config_dict.placeholder(float)  # None: no limit
    return config
