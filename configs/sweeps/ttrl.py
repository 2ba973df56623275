"""Which part of Pixel TTRL does what: the whole, without its safety, its controls and baselines (docs/algorithms.md, section 3).

    pixelis sweep --config=configs/sweeps/ttrl.py --workdir=runs/ttrl --only=variant=safe
    pixelis sweep --config=configs/sweeps/ttrl.py --workdir=runs/controls --print

Cost: `safe`, `no_safety`, `no_kl` and `frozen` are 400 queries, the others 150; on one slow core 1.2 s a query, and 3 s more
where it is learnt from. Results: docs/ttrl.md.
"""

from typing import Any

from ml_collections import ConfigDict

# Whatever counts updates, or records, is scaled with them: about 50 of 150 queries are learnt from, about 120 of 400.
_SHORT = {"total_steps": 150, "ema.half_life": 45.0, "kl.warm_up": 9, "memory.silent_below": 20}
_NO_KL: dict[str, Any] = {"control": "none", "guard.on": False}
# Learns from what most answers say, always.
_HARD: dict[str, Any] = {
    "vote.kind": "majority",
    "vote.votes": 1,
    "vote.mass": 0.0,
    "vote.margin": 0.0,
    "vote.agree": 0.0,
    "exemplar": "random",
    "evidence": False,
}
# And nothing holds or takes back.
_NO_SAFETY: dict[str, Any] = {**_NO_KL, "held.each": 0, **_HARD, "memory.value_aware": False}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict(convert_dict=False)  # keeps the order of variants, and takes names with dots
    config.command = "train"
    config.base = "configs/tiny_ttrl.py"
    config.fixed = {}
    long: dict[str, dict[str, Any]] = {"safe": {}, "no_safety": _NO_SAFETY, "no_kl": _NO_KL, "frozen": {"read_only": True}}
    short: dict[str, dict[str, Any]] = {
        "short_safe": {},
        "short_no_kl": _NO_KL,
        "fixed_beta": {"control": "fixed"},
        "no_evidence": {"evidence": False},
        "ans_ssc": {"vote.kind": "answers", "evidence": False},
        "answer_majority": _HARD,
        "process_scoring": {"vote.kind": "process"},
        "random_exemplar": {"exemplar": "random", "evidence": False},
        "no_tools": {"use_tools": False, "objective": "entropy", "vote.kind": "answers", "evidence": False},
        "retrieval_off": {"memory.on": False},
        "value_off": {"memory.value_aware": False},
        "poison": {"poison": 0.3},
        "poison_value_off": {"poison": 0.3, "memory.value_aware": False},
        "grpo": {"objective": "grpo"},
    }
    config.axes = {
        "seed": {str(seed): {"seed": seed} for seed in range(3)},
        "variant": long | {name: {**_SHORT, **changes} for name, changes in short.items()},
    }
    return config
