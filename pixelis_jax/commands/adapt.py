"""Pixel TTRL from the command line: what `pixelis train` does for a config whose phase is `ttrl`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.policy import Qwen3VL
    from pixelis_jax.training.answering import Query
    from pixelis_jax.training.loop import Result
    from pixelis_jax.trajectory import Example, Trajectory


def check(path: Path, config: ConfigDict) -> None:
    """Raises UserError for what only such a config has, and that no run can have."""
    from pixelis_jax.commands import ranges
    from pixelis_jax.commands.configs import flat
    from pixelis_jax.commands.data import check_counts
    from pixelis_jax.commands.reinforce import check_learning
    from pixelis_jax.training.adaptation import CONTROLS, OBJECTIVES
    from pixelis_jax.training.answering import EXEMPLARS, VOTES

    share = ranges.number(0, 1)
    ranges.check(
        path,
        flat(config.to_dict()),
        (
            (
                "a whole number of at least 1",
                ranges.whole(),
                "samples rate.updates rate.queries vote.votes memory.neighbours memory.capacity retrieved.most probe held.window",
            ),
            ("a whole number of at least 0", ranges.whole(0), "memory.silent_below anchored held.each"),
            ("a number above 0", ranges.number(above=0), "vote.temperature ema.half_life guard.limit"),
            ("a number of at least 0", ranges.number(), "retrieved.weight"),
            ("a share, 0 to 1", share, "vote.mass vote.margin vote.agree memory.decay memory.share poison"),
            ("True or False", ranges.switch, "use_tools read_only evidence memory.on memory.value_aware guard.on"),
            (*ranges.among(VOTES), "vote.kind"),
            (*ranges.among(EXEMPLARS), "exemplar"),
            (*ranges.among(OBJECTIVES), "objective"),
            (*ranges.among(CONTROLS), "control"),
        ),
    )
    check_learning(path, config)
    if config.objective == "grpo" and config.vote.kind != "trajectories":
        raise UserError(f"{path}: objective grpo needs likenesses, which vote.kind {config.vote.kind} does not compute")
    if config.vote.votes > config.samples and not config.read_only:
        raise UserError(
            f"{path}: vote.votes is {config.vote.votes}, but only {config.samples} samples vote: nothing would ever be learnt"
        )
    check_counts(config.scenes.counts.to_dict(), config.scenes.workers)
    asked = sum(config.scenes.counts.values())
    if config.total_steps > asked:
        raise UserError(f"{path}: total_steps is {config.total_steps}, but scenes.counts make a stream of {asked} queries")


def train(config: ConfigDict, workdir: Path, loaded: Loaded) -> tuple[Qwen3VL, Result]:
    """Builds the questions, answers them and learns from them.

    Args:
      config: See `configs/tiny_ttrl.py`.
      workdir: The run's directory.
      loaded: The initial policy.

    Raises:
      UserError: There are several processes.
      WorkdirError: The directory is another run's, or no work directory.
      FloatingPointError: A loss or gradient is not finite.
    """
    import numpy as np

    from pixelis_jax.commands.reinforce import sampler
    from pixelis_jax.evaluation.run import judge
    from pixelis_jax.memory import KeyMaker
    from pixelis_jax.rollout.agent import banned_ids
    from pixelis_jax.rollout.probes import Probes
    from pixelis_jax.training import ttrl
    from pixelis_jax.training.answering import Answerer, unlabelled

    asked, probe = questions(config, workdir / "data")
    order = np.random.default_rng(config.seed).permutation(len(asked))
    labelled = {example.id: example for example in asked}

    def stream(first: int) -> Iterator[Query]:
        return (unlabelled(asked[number]) for number in order[first:].tolist())

    def verdict(trajectory: Trajectory) -> Trajectory:
        return judge(trajectory, labelled[trajectory.example])

    with sampler(config, loaded) as sampling:
        answerer = Answerer(
            config, sampling.agent, Probes(sampling.pool, sampling.tools), KeyMaker(loaded.model, share=config.memory.share),
            loaded.encoder, policy=workdir.name,
        )  # fmt: skip
        return ttrl.run(
            config, workdir, loaded.model, loaded.encoder, answerer, stream, [unlabelled(example) for example in probe],
            banned_ids=banned_ids(loaded.encoder), mesh=sampling.mesh, judge=verdict,
        )  # fmt: skip


def questions(config: ConfigDict, folder: Path) -> tuple[list[Example], list[Example]]:
    """Builds the questions of a run: of its stream, in no order yet, and of its probe set, which are no part of the stream.

    Args:
      config: See `configs/tiny_ttrl.py`.
      folder: Where they are built.
    """
    from pixelis_jax.commands.eval import build_examples

    scenes = config.scenes.to_dict()
    counts: dict[str, int] = scenes["counts"]
    apart = -(-config.probe // len(counts))
    examples = build_examples(
        folder, scenes["split"], {family: count + apart for family, count in counts.items()},
        workers=scenes["workers"], seed=scenes["seed"], reframed=scenes["reframed"],
    )  # fmt: skip
    asked, probe = _split(examples, counts)
    return asked, probe[: config.probe]


def _split(examples: Sequence[Example], counts: dict[str, int]) -> tuple[list[Example], list[Example]]:
    """The first examples of each family, and those behind them, one of each family after the other."""
    families = {family: [example for example in examples if example.family == family] for family in counts}
    asked = [example for family, count in counts.items() for example in families[family][:count]]
    rest = [families[family][count:] for family, count in counts.items()]
    return asked, [group[place] for place in range(max(map(len, rest))) for group in rest if place < len(group)]
