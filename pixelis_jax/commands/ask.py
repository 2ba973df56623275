"""Answers a question about images and videos, showing each step as it happens.

  pixelis ask photo.jpg "What is on the red card?"
  pixelis ask clip.mp4 "When does the green lamp light up?" --model=runs/sft --trace=trace.jsonl

Media are numbered 1, 2, ... in the order given. The trace can be replayed (`pixelis replay`) and drawn (`pixelis report`).
Exit status: 0 answered, 1 the policy ended without an answer, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from pixelis_jax.rollout.agent import Request
    from pixelis_jax.trajectory import Example, Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares media, question and model."""
    from pixelis_jax.commands.tools import add_imports

    parser.add_argument("media", metavar="MEDIA", nargs="+", help="images and videos; ids count from 1 in this order")
    parser.add_argument("question", metavar="QUESTION", help='text; "<media 1>" stands for a medium')
    parser.add_argument(
        "--model",
        default="tiny_sft",
        help="a shipped name, a work directory or a directory in the published layout (default: tiny_sft)",
    )
    parser.add_argument("--trace", metavar="FILE", type=Path, help="write the trajectory there (.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the trajectory as JSON and nothing else")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler, where --temperature is not 0 (default: 0)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default: 0)")
    add_imports(parser)


def run(args: argparse.Namespace) -> int:
    """Runs one episode."""
    from pixelis_jax.commands import models
    from pixelis_jax.commands.session import agent
    from pixelis_jax.commands.tools import parse_imports
    from pixelis_jax.rollout.agent import Request
    from pixelis_jax.trajectory.io import trajectory_to_json, write_trajectories
    from tools_host.images import MediaError

    if args.temperature < 0:
        raise UserError(f"--temperature must not be negative, got {args.temperature:g}")
    if args.trace is not None and not args.trace.absolute().parent.is_dir():
        raise UserError(f"--trace: no such directory: {args.trace.absolute().parent}")
    example = _example(args)
    loaded = models.load(args.model)
    request = Request(example=example, uris=_uris(args), seed=args.seed, temperature=args.temperature)
    try:
        with agent(loaded, imports=parse_imports(args.imports), on_step=None if args.json else _print_step) as asked:
            (episode,) = asked.run([request])
    except MediaError as error:
        raise UserError(str(error)) from error
    trajectory = episode.trajectory
    if args.trace is not None:
        write_trajectories(args.trace, [trajectory])
    if args.json:
        print(json.dumps(trajectory_to_json(trajectory), ensure_ascii=False))
    elif trajectory.answer is not None:
        print(trajectory.answer)
    else:
        print(f"no answer: the episode ended by {trajectory.stopped}")
    return 0 if trajectory.answer is not None else 1


def _example(args: argparse.Namespace) -> Example:
    from pixelis_jax.trajectory import Example, Source

    for path in args.media:
        if not Path(path).exists():
            raise UserError(f"no such file: {path}" + _looks_like_question(path, args))
    if not args.question.strip():
        raise UserError("the question is empty")
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


def _looks_like_question(path: str, args: argparse.Namespace) -> str:
    return " (the question comes last, in quotes)" if " " in path or path.endswith("?") or Path(args.question).exists() else ""


def _print_step(request: Request, step: Step) -> None:
    del request
    call = "(no call that could be read)" if step.call is None else f"{step.call.name}{json.dumps(dict(step.call.arguments))}"
    if step.thought:
        print(f"  {step.thought}")
    print(f"  > {call}")
    for line in step.observation.text.splitlines():
        print(f"    {line}", flush=True)
