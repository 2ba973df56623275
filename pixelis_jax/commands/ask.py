"""Answers a question about images and videos, showing each step as it happens.

  pixelis ask photo.jpg "What is on the red card?"
  pixelis ask clip.mp4 "When does the green lamp light up?" --model=runs/sft --trace=trace.jsonl

Media are numbered 1, 2, ... in the order given. The trace can be replayed (`pixelis replay`) and drawn (`pixelis report`).
Exit status: 0 answered, 1 the policy ended without an answer, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.checks import check_output_file, check_seed
from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from pixelis_jax.rollout.agent import Request
    from pixelis_jax.trajectory import Example, Step, Trajectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares media, question and model."""
    from pixelis_jax.commands.tools import add_imports

    parser.add_argument("media", metavar="MEDIA", nargs="+", help="images and videos; ids count from 1 in this order")
    parser.add_argument("question", metavar="QUESTION", help='text; "<media 1>" stands for a medium')
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default="tiny_sft",
        help="a shipped name, a work directory, a checkpoint or a directory in the published layout (default: tiny_sft)",
    )
    parser.add_argument("--trace", metavar="FILE", type=Path, help="write the trajectory there (.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the trajectory as JSON and nothing else")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the sampler, where --temperature is not 0 (default: 0)"
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 takes the most probable token (default: 0)"
    )
    parser.add_argument(
        "--constrain", action="store_true", help="calls can only be ones that fit their tool's schema (extra `grammar`)"
    )
    add_imports(parser)


def run(args: argparse.Namespace) -> int:
    """Runs one episode."""
    from pixelis_jax.commands import models
    from pixelis_jax.commands.session import agent
    from pixelis_jax.commands.tools import parse_imports
    from pixelis_jax.rollout import call_grammar
    from pixelis_jax.rollout.agent import Request
    from pixelis_jax.trajectory.io import trajectory_to_json, write_trajectories

    _check(args)
    if args.constrain:
        call_grammar.require()
    request = Request(
        example=_example(args), uris=_uris(args), seed=args.seed, temperature=args.temperature, constrain=args.constrain
    )
    imports, on_step = parse_imports(args.imports), None if args.json else _print_step
    with agent(models.load(args.model), imports=imports, grammar=args.constrain, on_step=on_step) as asked:
        (episode,) = asked.run([request])
    trajectory = episode.trajectory
    problem = _problem(trajectory)
    if args.trace is not None:
        write_trajectories(args.trace, [trajectory])
    if args.json:
        print(json.dumps(trajectory_to_json(trajectory), ensure_ascii=False))
    else:
        print(f"no answer: {problem}" if problem else trajectory.answer)
    return 1 if problem else 0


def _problem(trajectory: Trajectory) -> str | None:
    """Why an episode has no answer that could be read out, or None."""
    from pixelis_jax.trajectory.grammar import ANSWER_CLOSE, ANSWER_OPEN, CALL_CLOSE, CALL_OPEN

    answer = trajectory.answer
    if answer is None:
        return f"stopped by {trajectory.stopped}"
    if not answer:
        return "its last turn is empty"
    if any(tag in answer for tag in (ANSWER_OPEN, ANSWER_CLOSE, CALL_OPEN, CALL_CLOSE)):
        return f"the tags of its last turn do not match: {answer}"
    return None


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for what can be told without a model."""
    for path in args.media:
        if not Path(path).exists():
            hint = " (the question comes last, in quotes)" if " " in path or path.endswith("?") else ""
            raise UserError(f"no such file: {path}{hint}")
    if not args.question.strip():
        raise UserError("the question is empty")
    if _is_file(args.question):
        raise UserError(f"the question is missing: {args.question} is a file, and the question comes last")
    if not 0 <= args.temperature < math.inf:
        raise UserError(f"--temperature must be a number of at least 0, got {args.temperature:g}")
    check_seed("--seed", args.seed)
    if args.trace is not None and not args.trace.absolute().parent.is_dir():
        raise UserError(f"--trace: no such directory: {args.trace.absolute().parent}")
    if args.trace is not None:
        check_output_file("--trace", args.trace)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character: some text
        return False


def _example(args: argparse.Namespace) -> Example:
    from pixelis_jax.trajectory import Example, Source

    return Example(
        id=Path(args.media[0]).stem,
        question=args.question,
        media=tuple(str(Path(path).resolve()) for path in args.media),
        verifier="exact",
        truth="",
        source=Source(dataset="ask"),
    )


def _uris(args: argparse.Namespace) -> tuple[str, ...]:
    """A trace names its media relative to itself, so that the two can be moved together."""
    base = args.trace.absolute().parent if args.trace is not None else Path.cwd()
    return tuple(os.path.relpath(Path(path).resolve(), base.resolve()) for path in args.media)


def _print_step(request: Request, step: Step) -> None:
    del request
    call = "(no call that could be read)" if step.call is None else f"{step.call.name}{json.dumps(dict(step.call.arguments))}"
    if step.thought:
        print(f"  {step.thought}")
    print(f"  > {call}")
    for line in step.observation.text.splitlines():
        print(f"    {line}", flush=True)
