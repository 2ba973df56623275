"""Asks several models the same questions, greedily, and keeps what each got right: for paired comparisons.

    python experiments/evaluate_models.py --data=runs/test --count=167 --out=experiments/results/ccrft/eval \\
      tiny_sft_early runs/ccrft/full-0 ...

Models share the questions, the tools' answers and the compiled programs. A model whose file is there is skipped, so that a study
that was interrupted goes on. Each FILE holds what `pixelis eval` reports, and a digit an item: 0 wrong, 1 right (`with_tools`,
`without_tools`), in the order of the questions, whose ids' digest stands beside it. `--samples=8` also asks so often at
temperature 1, for the majority. Exit status: 0 done, 2 bad input.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from configs.eval_scenes import FAMILIES
from pixelis_jax.commands import models
from pixelis_jax.commands.errors import UserError
from pixelis_jax.commands.eval import build_examples
from pixelis_jax.commands.session import TIMEOUT_S
from pixelis_jax.data.scenes import SPLITS
from pixelis_jax.evaluation import headroom
from pixelis_jax.evaluation import run as evaluation
from pixelis_jax.rollout.agent import Agent, make_engine
from pixelis_jax.trajectory import Example
from pixelis_jax.workdir import describe_environment
from pixelis_jax.workdir.atomic import write_json
from tools_host.config import ToolsConfig
from tools_host.pool import WorkerPool


def main() -> int:
    """Asks one model after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as --model of pixelis eval; NAME=MODEL names the file")
    parser.add_argument("--data", type=Path, required=True, help="where the questions are built")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--count", type=int, default=167, help="questions of each family (default: 167)")
    parser.add_argument("--first", type=int, default=0, help="leave out so many questions of each family (default: 0)")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--samples", type=int, default=0, help="also ask so often at temperature 1")
    parser.add_argument("--no_tools", action="store_true", help="also ask without tools")
    args = parser.parse_args()
    try:
        named = {(name if name else Path(model).name): model for name, _, model in map(_named, args.models)}
        for model in named.values():
            models.locate(model)
    except UserError as error:
        print(f"evaluate_models: {error}", file=sys.stderr)
        return 2
    examples = _questions(args)
    for name, model in named.items():
        path = args.out / f"{name}.json"
        if path.exists():
            print(f"{path}: there already", flush=True)
            continue
        began = time.monotonic()
        record = _ask(models.load(model), examples, args)
        environment = describe_environment(seed=0)
        kept = {key: environment[key] for key in ("commit", "machine")}
        shown = model if not Path(model).is_absolute() else Path(model).name
        command = " ".join(
            [
                "python experiments/evaluate_models.py",
                f"--split={args.split} --count={args.count}" + (f" --first={args.first}" if args.first else ""),
                shown,
            ]
        )
        record = {"study": "evaluation", "command": command, "model": shown, **kept, "split": args.split, **record}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record | {"wall_time_s": round(time.monotonic() - began)})
        print(f"{path}: {100 * record['with_tools']['accuracy']:.1f} %", flush=True)
    return 0


def _named(text: str) -> tuple[str, str, str]:
    name, equals, model = text.partition("=")
    return (name, equals, model) if equals else ("", "", text)


def _questions(args: argparse.Namespace) -> list[Example]:
    counts = dict.fromkeys(FAMILIES, args.first + args.count)
    examples = build_examples(args.data, args.split, counts, workers=2)
    kept: list[Example] = []
    for family in FAMILIES:
        kept += [example for example in examples if example.family == family][args.first : args.first + args.count]
    return kept


def _ask(loaded: models.Loaded, examples: list[Example], args: argparse.Namespace) -> dict[str, Any]:
    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)
    engine = make_engine(loaded.model, loaded.encoder, slots=args.slots, capacity=loaded.encoder.prompt.context)
    record: dict[str, Any] = {
        "questions": hashlib.sha256("\n".join(example.id for example in examples).encode()).hexdigest()[:16],
        "items": {},
    }
    with WorkerPool(tools, workers=1, timeout_s=TIMEOUT_S) as pool:
        agent = Agent(engine, loaded.encoder, pool, tools, policy=loaded.info)
        conditions = {}
        for name, use_tools in (("with_tools", True), ("without_tools", False)):
            if use_tools or args.no_tools:
                outcomes = evaluation.run(agent, examples, use_tools=use_tools)
                conditions[name] = outcomes
                record[name] = evaluation.summarize(outcomes) | {"families": evaluation.by_family(outcomes, examples)}
                record["items"][name] = "".join(str(round(trajectory.scores["task"])) for trajectory in outcomes.values())
        if args.no_tools:
            gain, harm = evaluation.tool_gain_and_harm(conditions["with_tools"], conditions["without_tools"])
            record |= {"tool_gain": gain, "tool_harm": harm}
        if args.samples:
            samples = headroom.sample(agent, examples, count=args.samples)
            record["sampled"] = headroom.summarize_samples(samples)
            winners = [headroom.vote(group) for group in samples.values()]
            record["items"]["majority"] = "".join(str(round(w.scores["task"])) if w else "0" for w in winners)
    return record


if __name__ == "__main__":
    sys.exit(main())
