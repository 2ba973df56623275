"""Evaluates a model on scenes: answers, verdicts and process metrics, with and without tools, with intervals.

  pixelis eval --config=configs/eval_scenes.py --model=tiny_sft --workdir=runs/eval

Writes results.json, the trajectories of both conditions and report.html. Run again, the same command keeps the data that it
built and asks anew; another model or config needs another work directory. Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError
from tools_host.registry import did_you_mean

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.evaluation.run import Outcomes
    from pixelis_jax.rollout.tracing import Tracer
    from pixelis_jax.trajectory import Example, Trajectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, the model and the work directory."""
    from pixelis_jax.commands.configs import add_config

    add_config(parser)
    parser.add_argument(
        "--model", required=True, help="a shipped name, a work directory, a checkpoint or a directory in the published layout"
    )
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="where results, trajectories and report go")
    parser.add_argument("--timeline", metavar="FILE", type=Path, help="spans and counters of the run, for ui.perfetto.dev")


def run(args: argparse.Namespace) -> int:
    """Builds the split if it is missing, asks it with and without tools, and writes what came of it."""
    from pixelis_jax.commands import models
    from pixelis_jax.commands.configs import load_config
    from pixelis_jax.report import write_report
    from pixelis_jax.rollout import call_grammar
    from pixelis_jax.rollout.tracing import Tracer

    config = load_config(args.config, args.overrides)
    check_config(args.config, config)
    if config.constrain:
        call_grammar.require()
    loaded = models.load(args.model)
    open_workdir(args.workdir, {"model": args.model, **config.to_dict()})
    examples = build_examples(args.workdir / "data", config.split, config.counts.to_dict(), workers=config.workers)
    tracer = Tracer(on=args.timeline is not None)
    conditions = evaluate(
        loaded, examples, args.workdir,
        slots=config.slots, with_tools=config.with_tools, no_tools=config.no_tools, constrain=config.constrain, tracer=tracer,
    )  # fmt: skip
    if args.timeline is not None:
        tracer.save(args.timeline)
    results = results_of(conditions, examples)
    if config.samples:
        results["sampled"] = sample(loaded, examples, args.workdir, slots=config.slots, count=config.samples)
    write_results(args.workdir, {"model": args.model, "config": config.to_dict(), "results": results})
    print(table({args.model: results}))
    if config.samples:
        print(_sampled(results["sampled"]))
    page = args.workdir / "report.html"
    print(f"{page}: {write_report([args.workdir], page)}")
    return 0


def open_workdir(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Makes a work directory, or opens the one that equal settings made; what two settings wrote must not be mixed.

    Raises:
      WorkdirError: Other settings made it, or it holds other files.
    """
    from pixelis_jax.workdir import Workdir, describe_environment

    Workdir.create(workdir, config=settings, environment=describe_environment(0), may_differ=("slots", "workers"))


def check_config(path: Path, config: ConfigDict) -> None:
    """Raises UserError for a config that cannot be evaluated."""
    from configs import eval_scenes
    from pixelis_jax.commands.configs import check_fields
    from pixelis_jax.commands.data import SPLITS, check_counts

    check_fields(path, config, eval_scenes.get_config())
    check_counts(config.counts.to_dict(), config.workers)
    if config.split not in SPLITS:
        guess = did_you_mean(config.split, SPLITS)
        raise UserError(f"{path}: no split {config.split!r}{guess} (known: {', '.join(SPLITS)})")
    if not (config.with_tools or config.no_tools):
        raise UserError(f"{path}: with_tools and no_tools are both false: nothing to ask")
    if config.samples < 0:
        raise UserError(f"{path}: samples must not be negative, got {config.samples}")
    if config.slots < 1:
        raise UserError(f"{path}: slots must be at least 1, got {config.slots}")


def build_examples(
    folder: Path, split: str, counts: Mapping[str, int], *, workers: int, seed: int = 0, reframed: float = 0.0
) -> list[Example]:
    """Draws a split's scenes into `folder/split` (those that are missing) and returns its examples, media as absolute paths."""
    from pixelis_jax.commands.data import build_split
    from pixelis_jax.data.build import load_examples

    build_split(folder, split, counts, workers, seed=seed, styles={}, reframed=reframed)
    return [
        dataclasses.replace(example, media=tuple(str((place / path).resolve()) for path in example.media))
        for place, example in load_examples(folder, split)  # type: ignore[arg-type]
    ]


def evaluate(
    loaded: Loaded,
    examples: Sequence[Example],
    workdir: Path,
    *,
    slots: int,
    with_tools: bool = True,
    no_tools: bool,
    constrain: bool = False,
    tracer: Tracer | None = None,
) -> dict[str, Outcomes]:
    """Asks all examples with tools, without, or both; writes the trajectories of each when it has ended.

    Returns:
      Judged trajectories by example, under `with_tools` and `without_tools`.
    """
    from pixelis_jax.commands.session import agent, default_workers
    from pixelis_jax.evaluation import run as evaluation
    from pixelis_jax.training.progress import Progress
    from pixelis_jax.trajectory.io import relative_media, write_trajectories

    names = ({"with_tools": True} if with_tools else {}) | ({"without_tools": False} if no_tools else {})
    conditions: dict[str, Outcomes] = {}
    with agent(loaded, slots=slots, workers=default_workers(), grammar=constrain, tracer=tracer) as asked:
        for name, use_tools in names.items():
            with Progress(name.replace("_", " "), start=0, total=len(examples)) as progress:
                done = 0

                def ended(_: Trajectory) -> None:
                    nonlocal done
                    done += 1
                    progress.advance(done)  # noqa: B023 - called within this turn of the loop only

                conditions[name] = evaluation.run(asked, examples, use_tools=use_tools, constrain=constrain, on_episode=ended)
            path = workdir / "trajectories" / f"{name}-0-0.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_trajectories(path, relative_media(conditions[name].values(), path.parent))
    return conditions


def sample(loaded: Loaded, examples: Sequence[Example], workdir: Path, *, slots: int, count: int) -> dict[str, Any]:
    """Asks all examples `count` times at temperature 1, writes the trajectories, and sums up the vote and the best of them."""
    from pixelis_jax.commands.session import agent, default_workers
    from pixelis_jax.evaluation import headroom
    from pixelis_jax.training.progress import Progress
    from pixelis_jax.trajectory.io import relative_media, write_trajectories

    total = count * len(examples)
    with (
        agent(loaded, slots=slots, workers=default_workers()) as asked,
        Progress(f"{count} samples each", start=0, total=total) as progress,
    ):
        ended = itertools.count(1)
        samples = headroom.sample(asked, examples, count=count, on_episode=lambda _: progress.advance(next(ended)))
    path = workdir / "trajectories" / "sampled-0-0.jsonl"
    write_trajectories(path, relative_media([trajectory for group in samples.values() for trajectory in group], path.parent))
    return headroom.summarize_samples(samples)


def _sampled(summary: Mapping[str, Any]) -> str:
    titles = {"single": "one sample", "majority": "majority", "best": "best"}
    parts = [
        f"{title} {100 * summary[name]['accuracy']:.1f} % ({100 * summary[name]['interval'][0]:.1f} - "
        f"{100 * summary[name]['interval'][1]:.1f})"
        for name, title in titles.items()
    ]
    return f"{summary['samples']} samples of {summary['n']} questions: " + ", ".join(parts)


def results_of(conditions: Mapping[str, Outcomes], examples: Sequence[Example]) -> dict[str, Any]:
    """Summaries of each condition, by family too, with tool gain and tool harm where both were run."""
    from pixelis_jax.evaluation import run as evaluation

    results: dict[str, Any] = {
        name: evaluation.summarize(outcomes) | {"families": evaluation.by_family(outcomes, examples)}
        for name, outcomes in conditions.items()
    }
    if len(conditions) == 2:
        gain, harm = evaluation.tool_gain_and_harm(conditions["with_tools"], conditions["without_tools"])
        results |= {"tool_gain": gain, "tool_harm": harm}
    return results


def write_results(workdir: Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json`."""
    from pixelis_jax.workdir.atomic import write_json

    write_json(workdir / "results.json", results)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a model and condition: accuracy with its interval, and the process metrics."""
    head = ("", "n", "accuracy", "95 % interval", "RaPR", "RaCPR", "valid calls", "mean chain", "tool gain", "tool harm")
    lines: list[tuple[str, ...]] = [head]
    for model, results in rows.items():
        for condition in ("without_tools", "with_tools"):
            if condition in results:
                lines.append(_line(f"{model}, {condition.replace('_', ' ')}", results[condition], results, condition))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _line(name: str, summary: Mapping[str, Any], results: Mapping[str, Any], condition: str) -> tuple[str, ...]:
    low, high = summary["interval"]
    both = condition == "with_tools" and "tool_gain" in results
    return (
        name,
        str(summary["n"]),
        f"{100 * summary['accuracy']:.1f} %",
        f"{100 * low:.1f} - {100 * high:.1f}",
        f"{summary['rapr']:.2f}",
        f"{summary['racpr']:.2f}",
        f"{100 * summary['valid_calls']:.1f} %",
        f"{summary['mean_chain']:.2f}",
        f"{100 * results['tool_gain']:.1f} %" if both else "",
        f"{100 * results['tool_harm']:.1f} %" if both else "",
    )
