"""How far Pixel TTRL took a policy from where it began, which the divergence from a moving anchor does not say.

    python experiments/drift.py --data=runs/probe --json=experiments/results/ttrl/drift.json \\
      safe-0=runs/ttrl/seed=0,variant=safe ...

Probed as in a run of `configs/tiny_ttrl.py`: a trajectory of the start policy, at the sampling temperature, on each of 16
questions outside the stream. Of each MODEL: the mean of KL(MODEL || start) over their decision tokens, exact, in nats. What the
file has already is kept. Exit status: 0 done, 2 bad input.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs import tiny_ttrl
from pixelis_jax.commands import models
from pixelis_jax.commands.adapt import questions
from pixelis_jax.commands.errors import UserError
from pixelis_jax.commands.reinforce import sampler
from pixelis_jax.data.examples import encode_record
from pixelis_jax.memory import KeyMaker
from pixelis_jax.rollout.agent import banned_ids
from pixelis_jax.rollout.probes import Probes
from pixelis_jax.training.adaptation import Learner
from pixelis_jax.training.answering import Answerer, unlabelled
from pixelis_jax.trajectory import Example
from pixelis_jax.workdir import describe_environment
from pixelis_jax.workdir.atomic import write_json


def main() -> int:
    """Measures one model after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="as --model of pixelis eval")
    parser.add_argument("--data", type=Path, required=True, help="where the questions are built")
    parser.add_argument("--json", type=Path, required=True, help="the results")
    args = parser.parse_args()
    named = {name: model for name, _, model in (text.partition("=") for text in args.models)}
    try:
        for model in named.values():
            models.locate(model)
    except UserError as error:
        print(f"drift: {error}", file=sys.stderr)
        return 2
    config = tiny_ttrl.get_config()
    environment = describe_environment(seed=config.seed)
    record = {
        "study": "drift",
        "command": "python experiments/drift.py --data=runs/probe --json=experiments/results/ttrl/drift.json NAME=MODEL ...",
        **{key: environment[key] for key in ("commit", "machine")},
        "start": config.init_from,
        "divergence": json.loads(args.json.read_text())["divergence"] if args.json.exists() else {},
    }
    new = {name: model for name, model in named.items() if name not in record["divergence"]}
    _, probe = questions(config, args.data)
    for name, divergence in _drift(config, new, probe):
        record["divergence"][name] = divergence
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, record)
        print(f"{name}: {divergence:.4f}", flush=True)
    return 0


def _drift(config: ConfigDict, named: Mapping[str, str], probe: Sequence[Example]) -> Iterator[tuple[str, float]]:
    """Yields name and divergence of each model."""
    start = models.load(config.init_from)
    with sampler(config, start) as sampling:
        answerer = Answerer(
            config, sampling.agent, Probes(sampling.pool, sampling.tools), KeyMaker(start.model, share=config.memory.share),
            start.encoder, policy="start",
        )  # fmt: skip
        episodes = answerer.sample([unlabelled(example) for example in probe])
        seen = [encode_record(episode.tokens, episode.thumbnails, start.encoder) for episode in episodes]
        banned = banned_ids(start.encoder)
        anchor = Learner(config, start.model, start.encoder, banned, sampling.mesh).ema
        for name, model in named.items():
            learner = Learner(config, models.load(model).model, start.encoder, banned, sampling.mesh)
            learner.ema = anchor
            learner.probe(seen)
            yield name, learner.divergence()


if __name__ == "__main__":
    sys.exit(main())
