"""Trains the tiny policy on this machine, evaluates what came out, and writes the report.

  pixelis demo                      about 15 minutes on two cores
  pixelis demo --workdir=demo

Starts from `tiny_base`, which can look, answer and copy but has never seen a tool. The table compares it with what the demo
trained, with and without tools; no shipped fine-tuned weights are involved. Run again, the same command goes on where it was
stopped.

Exit status: 0 done, 2 bad input, 3 training was stopped (SIGTERM, Ctrl-C).
"""

from __future__ import annotations

import argparse
from pathlib import Path

BASE = "tiny_base"
SCENES_A_FAMILY = 110
STEPS = 400
QUESTIONS_A_FAMILY = 15


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
    parser.add_argument("--steps", metavar="N", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    parser.add_argument(
        "--questions",
        metavar="N",
        type=int,
        default=QUESTIONS_A_FAMILY,
        help=f"test questions of each family (default: {QUESTIONS_A_FAMILY})",
    )


def run(args: argparse.Namespace) -> int:
    """SFT from `tiny_base`, evaluation of both, report."""
    from configs import eval_scenes, tiny_sft
    from pixelis_jax.commands import eval as evaluation
    from pixelis_jax.commands import models, train
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.report import write_report

    for name in ("scenes", "steps", "questions"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    models.locate(BASE)
    evaluation.open_workdir(args.workdir, {name: getattr(args, name) for name in ("scenes", "steps", "questions")})
    config = tiny_sft.get_config()
    config.init_from = BASE
    config.scenes.counts = {family: args.scenes for family in tiny_sft.FAMILIES}
    config.total_steps = args.steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, args.steps // 10)
    print(f"1/3  training from {BASE}: {args.scenes} scenes of each family, {args.steps} steps", flush=True)
    if not train.train(config, args.workdir / "sft"):
        return train.STOPPED_EARLY

    print(f"2/3  {args.questions} test questions of each family", flush=True)
    settings = eval_scenes.get_config()
    folder = args.workdir / "data"
    examples = evaluation.build_examples(
        folder, settings.split, dict.fromkeys(eval_scenes.FAMILIES, args.questions), workers=settings.workers
    )
    rows = {}
    for title, name in ((BASE, BASE), ("demo", str(args.workdir / "sft"))):
        where = args.workdir / f"eval-{title}"
        # The base has never seen a tool, so only its answers without tools mean anything.
        with_tools = title != BASE
        conditions = evaluation.evaluate(
            models.load(name), examples, where, slots=settings.slots, with_tools=with_tools, no_tools=True
        )
        rows[title] = evaluation.results_of(conditions, examples)
        evaluation.write_results(where, {"model": name, "results": rows[title]})

    print("3/3  report", flush=True)
    page = args.workdir / "report.html"
    summary = write_report([args.workdir / "sft", args.workdir / "eval-demo"], page)
    print(evaluation.table(rows))
    print(f"{page}: {summary}")
    return 0
