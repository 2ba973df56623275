"""Trains the tiny policy on this machine, phase by phase, evaluates what came out, and writes the report.

  pixelis demo                      less than 20 minutes on two cores
  pixelis demo --workdir=demo

Starts from `tiny_base`, which can look, answer and copy but has never seen a tool: supervised fine-tuning on chains of tools,
then reinforcement learning from its own episodes, then learning at test time from a stream of unlabelled questions under shift.
The table compares the base with what each phase made of it, with and without tools, and the last two on questions under shift
that were not in the stream; no shipped fine-tuned weights are involved. Its figures go to `results.json` too. Run again, the same
command goes on where it was stopped.

Exit status: 0 done, 1 a phase diverged, 2 bad input, 3 training was stopped (SIGTERM, Ctrl-C).
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BASE = "tiny_base"
SCENES_A_FAMILY = 70
STEPS = 600
ITERATIONS = 8
QUERIES = 48
QUESTIONS_A_FAMILY = 10
SETTINGS = ("scenes", "steps", "iterations", "queries", "questions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the work directory and how much to do."""
    parser.add_argument("--workdir", metavar="DIR", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    parser.add_argument(
        "--scenes",
        metavar="N",
        type=int,
        default=SCENES_A_FAMILY,
        help=f"training scenes of each family (default: {SCENES_A_FAMILY})",
    )
    parser.add_argument("--steps", metavar="N", type=int, default=STEPS, help=f"steps of fine-tuning (default: {STEPS})")
    parser.add_argument(
        "--iterations", metavar="N", type=int, default=ITERATIONS, help=f"of reinforcement learning (default: {ITERATIONS})"
    )
    parser.add_argument(
        "--queries", metavar="N", type=int, default=QUERIES, help=f"that are learnt from at test time (default: {QUERIES})"
    )
    parser.add_argument(
        "--questions",
        metavar="N",
        type=int,
        default=QUESTIONS_A_FAMILY,
        help=f"test questions of each family (default: {QUESTIONS_A_FAMILY})",
    )


def run(args: argparse.Namespace) -> int:
    """SFT from `tiny_base`, CC-RFT and Pixel TTRL from there, evaluation of all, report."""
    from configs import eval_scenes
    from pixelis_jax.commands import eval as evaluation
    from pixelis_jax.commands import models, train
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.report import write_report
    from pixelis_jax.training.watch import CollapseError
    from pixelis_jax.workdir import Workdir

    began = time.monotonic()
    for name in SETTINGS:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    models.locate(BASE)
    evaluation.open_workdir(args.workdir, {name: getattr(args, name) for name in SETTINGS})
    sft, ccrft, ttrl = (args.workdir / name for name in ("sft", "ccrft", "ttrl"))
    try:
        print(f"1/5  fine-tuning {BASE}: {args.scenes} scenes of each family, {args.steps} steps", flush=True)
        if not train.train(_sft(args), sft):
            return train.STOPPED_EARLY
        print(f"2/5  reinforcement learning from there: {args.iterations} iterations of 64 episodes", flush=True)
        if not train.train(_ccrft(args, sft), ccrft):
            return train.STOPPED_EARLY
        print(f"3/5  learning at test time from there: {args.queries} unlabelled questions under shift", flush=True)
        if not train.train(_ttrl(args, ccrft), ttrl):
            return train.STOPPED_EARLY
    except (FloatingPointError, CollapseError) as error:
        print(f"pixelis: {error}", file=sys.stderr)
        return train.DIVERGED

    print(f"4/5  {args.questions} questions of each family, and as many under shift", flush=True)
    settings = eval_scenes.get_config()
    build = functools.partial(evaluation.build_examples, workers=settings.workers)
    examples = build(args.workdir / "data", settings.split, dict.fromkeys(eval_scenes.FAMILIES, args.questions))
    apart = _each_family(args.queries) + 2  # the stream, and the probe set behind it
    drawn = build(args.workdir / "shift", "shift", dict.fromkeys(eval_scenes.FAMILIES, apart + args.questions))
    shifted = [e for family in eval_scenes.FAMILIES for e in [e for e in drawn if e.family == family][apart:]]
    rows = {}
    # The base has never seen a tool, so only its answers without tools mean anything.
    for title, name, asked, with_tools, no_tools in (
        (BASE, BASE, examples, False, True),
        ("sft", str(sft), examples, True, True),
        ("ccrft", str(ccrft), examples, True, True),
        ("ccrft-shift", str(ccrft), shifted, True, False),
        ("ttrl-shift", str(ttrl), shifted, True, False),
    ):
        where = args.workdir / f"eval-{title}"
        conditions = evaluation.evaluate(
            models.load(name), asked, where, slots=settings.slots, with_tools=with_tools, no_tools=no_tools
        )
        rows[title] = evaluation.results_of(conditions, asked)
        evaluation.write_results(where, {"model": name, "results": rows[title]})

    print("5/5  report", flush=True)
    page = args.workdir / "report.html"
    summary = write_report([sft, ccrft, args.workdir / "eval-ccrft", ttrl, args.workdir / "eval-ttrl-shift"], page)
    environment = Workdir(args.workdir).environment
    made = {"commit": environment["commit"], "machine": environment["machine"], "last_start_s": round(time.monotonic() - began)}
    evaluation.write_results(args.workdir, made | {"results": rows})
    print(evaluation.table(rows))
    print(f"{page}: {summary}")
    return 0


def _sft(args: argparse.Namespace) -> ConfigDict:
    from configs import tiny_sft

    config = tiny_sft.get_config()
    config.init_from = BASE
    config.scenes.counts = dict.fromkeys(tiny_sft.FAMILIES, args.scenes)
    config.total_steps = args.steps
    # Packed, one shape is compiled instead of ten; and within minutes, many small steps learn more than few large ones.
    config.buckets.pack = True
    config.buckets.tokens_per_batch = 1920
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, args.steps // 10)
    return config


def _ccrft(args: argparse.Namespace, start: Path) -> ConfigDict:
    from configs import tiny_ccrft, tiny_sft

    config = tiny_ccrft.get_config()
    config.init_from = str(start)
    asked = args.iterations * config.prompts * (1 + config.refills)
    config.scenes.counts = dict.fromkeys(tiny_sft.FAMILIES, min(args.scenes, _each_family(asked)))
    config.total_steps = args.iterations
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, args.iterations * config.minibatches - 1)
    return config


def _each_family(questions: int) -> int:
    """How many of each family make at least so many together."""
    from configs import tiny_sft

    return -(-questions // len(tiny_sft.FAMILIES))


def _ttrl(args: argparse.Namespace, start: Path) -> ConfigDict:
    from configs import tiny_sft, tiny_ttrl

    config = tiny_ttrl.get_config()
    config.init_from = str(start)
    config.scenes.counts = dict.fromkeys(tiny_sft.FAMILIES, _each_family(args.queries))
    config.memory.silent_below = min(config.memory.silent_below, args.queries // 4)
    share = args.queries / config.total_steps
    config.ema.half_life = max(share * config.ema.half_life, 1.0)
    config.kl.warm_up = round(share * config.kl.warm_up)
    config.total_steps = args.queries
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, args.queries - 1)
    return config
