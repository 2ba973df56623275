"""Whether the shaped rewards pay for calls that nobody needs (docs/algorithms.md, section 2).

    python experiments/redundancy.py --out=runs/redundancy --json=experiments/results/rewards/redundancy.json --scenes=200

Over scenes of each family the oracle chain must earn more on average than the same chain with a redundant call, and than
policies that loop, call nothing or call everything; `--config.weights.coherence=0.05` tries other weights. Calls are really
run, features are the frozen policy's, and rewards come batch by batch from the code that training runs. Episodes and features
are kept in --out and are not made again. Exit status: 0 all comparisons hold, 1 some do not, 2 bad input.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pixelis_jax import rewards
from pixelis_jax.commands import models
from pixelis_jax.commands.configs import flat, load_config
from pixelis_jax.commands.data import check_counts
from pixelis_jax.commands.errors import UserError
from pixelis_jax.data.examples import encode_trajectory
from pixelis_jax.data.records import FIELDS, EncodedExample, RecordError
from pixelis_jax.data.scenes import Split, generate
from pixelis_jax.data.scenes.randomness import generator
from pixelis_jax.data.supervised import show
from pixelis_jax.data.traces import make_example
from pixelis_jax.data.workers import process_pool, single_thread
from pixelis_jax.encoding import Encoder
from pixelis_jax.evaluation.redundancy import POLICIES, REDUNDANT, SAME_CALLS, MemoPool, scripted_episodes, shortened
from pixelis_jax.evaluation.statistics import paired_interval
from pixelis_jax.training import microbatches, policy_update
from pixelis_jax.training.rewarding import Judged, Rewarder
from pixelis_jax.trajectory import Trajectory, repeats
from pixelis_jax.trajectory.io import read_trajectories, write_trajectories
from pixelis_jax.workdir import describe_environment, write_json
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore
from tools_host.pool import InlinePool
from tools_host.registry import UnknownNameError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny_ccrft.py"
BASELINE = ROOT / "experiments" / "results" / "tiny" / "baseline_question.json"
SPLIT: Split = "val"
CHUNK = 10
WARM_UP = 0.2
"""Share of the questions that the running means and curiosity's network see before any counts."""

GUESS = "nothing_guess"
"""Answers at once, as often right as a policy that only hears the question; worked out from `nothing` and `nothing_right`."""

REQUIRED = (*REDUNDANT, "loop", "loop_right", "nothing", GUESS, "everything")
"""What the oracle must beat. Not `nothing_right`: whoever knows the answer needs no call."""

ENCODED = tuple(name for name in POLICIES if name not in SAME_CALLS)

PLACED = ("repeat", "whole", "noise")
"""Their call comes behind the chain in every other scene, and before it in the others."""

SHORTENED = ("abab", "loop_right", "everything")
"""Of these, calls that the policy's context has no room for are left out; the others always have room."""

Question = dict[str, Judged]
Earned = dict[str, rewards.Parts]


def main() -> int:
    """Makes what is missing, rewards it, writes the record and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where episodes and features are kept")
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--scenes", type=int, default=200, help="of each family (default: 200)")
    parser.add_argument("--families", nargs="+", help="some of them (default: those that training asks)")
    parser.add_argument("--model", default="tiny_sft_early", help="the frozen policy (default: tiny_sft_early)")
    parser.add_argument("--workers", type=int, default=2, help="processes that run the calls (default: 2; 0: this one)")
    args, overrides = parser.parse_known_args()
    if unknown := [word for word in overrides if not word.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        config = load_config(CONFIG, overrides)
        families = args.families or list(config.scenes.counts)
        check_counts(dict.fromkeys(families, args.scenes), args.workers)
        questions = make_questions(config, args.out, args.model, families, args.scenes, workers=args.workers)
    except (UserError, UnknownNameError, RecordError) as error:
        print(f"redundancy.py: {error}", file=sys.stderr)
        return 2
    made_s, rewarding = seconds_made(args.out, families, args.scenes), time.monotonic()
    earned = reward_all(config, questions, seed=config.seed)
    environment = describe_environment(config.seed)
    changed = [word.removeprefix("--config.").partition("=")[0] for word in overrides]
    record = {
        "study": "rewards",
        "run": "redundancy",
        "command": shlex.join(["python", *sys.argv]),
        "config_diff": {name: flat(config.to_dict())[name] for name in changed},
        "seed": config.seed,
        "commit": environment["commit"],
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
        "model": args.model,
        "split": SPLIT,
        "weights": config.weights.to_dict(),
        "questions": {family: sum(name.startswith(f"{family}-") for name in questions) for family in families},
        "asked": args.scenes,
        "warm_up": WARM_UP,
        "repeats_flagged": flagged(questions),
        **summarize(earned, guess_rates()),
        "alone": {name: alone(config, questions, name) for name in REDUNDANT},
        "seconds": {"episodes_and_features": round(made_s), "rewards": round(time.monotonic() - rewarding)},
        "wall_time_s": round(made_s + time.monotonic() - rewarding),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, record)
    print(table(record))
    return 0 if record["passed"] else 1


# --- episodes and their features ----------------------------------------------------------------------------------------------


def make_questions(
    config: ConfigDict, out: Path, model: str, families: Sequence[str], scenes: int, *, workers: int
) -> dict[str, Question]:
    """Runs and looks at the episodes of each scene whose chain leads to the right answer.

    Args:
      config: See `configs/tiny_ccrft.py`.
      out: What it already holds is read.
      model: The frozen policy.
      families: Of the scenes.
      scenes: Of each family.
      workers: Processes; 0 works in this one.

    Returns:
      Every policy's episode, by example.

    Raises:
      UserError: There is no such model, or `out` holds another's features.
      RecordError: An episode is larger than a row of `config.microbatch`.
    """
    settings = {"model": model, "split": SPLIT, "seed": config.seed, "max_steps": config.rollout.max_steps}
    kept = out / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise UserError(f"{out} holds features of other settings ({kept.read_text().strip()}); give another --out")
    loaded = models.load(model)
    out.mkdir(parents=True, exist_ok=True)
    write_json(kept, settings)
    frozen = _Frozen(config, loaded)
    chunks = _chunks(families, scenes)
    missing = [chunk for chunk in chunks if not _files(out, chunk)[1].exists()]
    work = functools.partial(run_chunk, encoder=loaded.encoder, max_steps=config.rollout.max_steps, seed=config.seed)
    began = time.monotonic()
    for number, (chunk, (trajectories, examples)) in enumerate(_in_order(work, missing, workers), start=1):
        features = frozen.features(examples)
        traces, arrays = _files(out, chunk)
        write_trajectories(traces, trajectories)
        named: dict[str, Any] = {
            f"{i}/{part}": array for i, pair in enumerate(features) for part, array in zip(("seen", "step"), pair, strict=True)
        }
        # What it took, so that a run that finds some of it made can still say what all of it costs.
        named["seconds"], began = np.array(time.monotonic() - began), time.monotonic()
        partial = arrays.with_suffix(".partial.npz")
        np.savez(partial, **named)
        partial.rename(arrays)
        print(f"{number} of {len(missing)}: {chunk[0]} {chunk[1]}-{chunk[2]}", file=sys.stderr, flush=True)
    return {name: question for chunk in chunks for name, question in _read(*_files(out, chunk))}


def seconds_made(out: Path, families: Sequence[str], scenes: int) -> float:
    """What making the questions took, in this run or in those before."""
    seconds = 0.0
    for chunk in _chunks(families, scenes):
        with contextlib.closing(np.load(_files(out, chunk)[1])) as stored:
            seconds += float(stored["seconds"])
    return seconds


def run_chunk(
    chunk: tuple[str, int, int], *, encoder: Encoder, max_steps: int, seed: int
) -> tuple[list[Trajectory], list[EncodedExample]]:
    """Runs all policies on some scenes; returns the episodes, all of a scene's together, and `ENCODED` of them encoded."""
    family, start, stop = chunk
    tools = ToolsConfig(boxes_in_text=encoder.prompt.boxes_in_text)
    trajectories: list[Trajectory] = []
    examples: list[EncodedExample] = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, stop):
            scene = generate(family, SPLIT, index, seed)
            store = MediaStore(tools.cache_bytes)
            episodes = scripted_episodes(
                scene,
                make_example(scene, Path(folder)),
                Path(folder),
                MemoPool(_pool(tools)),
                config=tools,
                max_steps=max_steps,
                rng=generator(f"redundancy/{family}", SPLIT, index, seed),
                first=comes_first(index),
                store=store,
            )
            if episodes is None:
                continue
            encoded = {}
            for name in ENCODED:
                encoded[name] = _encode(episodes[name], Path(folder), encoder, tools, store)
                while name in SHORTENED and len(encoded[name]["ids"]) > encoder.prompt.context:
                    same = [other for other in POLICIES if SAME_CALLS.get(other, other) == name]
                    episodes |= {other: shortened(episodes[other], len(episodes[name].steps) - 1) for other in same}
                    encoded[name] = _encode(episodes[name], Path(folder), encoder, tools, store)
            trajectories += [episodes[name] for name in POLICIES]
            examples += encoded.values()
    return trajectories, examples


def _encode(trajectory: Trajectory, folder: Path, encoder: Encoder, tools: ToolsConfig, store: MediaStore) -> EncodedExample:
    shown, thumbnails = show(trajectory, folder, encoder, store)
    example = encode_trajectory(shown, thumbnails, encoder, tools=encoder.prompt.tools, schemas=tools.schemas())
    # Microbatches have no room for what auxiliary heads should say.
    heads = [field for field, (_, shape) in FIELDS.items() if shape[0] == "K"]
    return {**example, **{field: example[field][:0] for field in heads}}


@functools.lru_cache(maxsize=1)  # Loading the reader takes longer than a scene.
def _pool(tools: ToolsConfig) -> InlinePool:
    return InlinePool(tools)


class _Frozen:
    """The frozen policy and its packed microbatches, as in training."""

    def __init__(self, config: ConfigDict, loaded: models.Loaded):
        graph, params = nnx.split(loaded.model)
        self._params = nnx.to_pure_dict(params)
        self._reference = policy_update.make_reference(graph, config)
        self._patch_size = loaded.model.config.vision.patch_size
        self._shape = microbatches.Shape(patches=loaded.encoder.prompt.patch_bucket, **config.microbatch)

    def features(self, examples: Sequence[EncodedExample]) -> list[tuple[np.ndarray, np.ndarray]]:
        """What was seen and what each step was, of each episode."""
        if not examples:
            return []
        sampled = [
            microbatches.Sampled(example=example, log_probs=np.zeros(len(example["ids"]), np.float32)) for example in examples
        ]
        micros, places = microbatches.pack(sampled, self._shape, self._patch_size)
        made = [self._reference(self._params, {}, micro) for micro in micros]
        return policy_update.features_of(places, made, [example["roles"] for example in examples])


def _in_order(work: Any, chunks: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Each chunk with what comes of it; a few are made ahead."""
    if workers == 0:
        yield from ((chunk, work(chunk)) for chunk in chunks)
        return
    with process_pool(workers, initializer=single_thread) as executor:
        under_way: list[tuple[Any, concurrent.futures.Future[Any]]] = []
        for chunk in chunks:
            under_way.append((chunk, executor.submit(work, chunk)))
            if len(under_way) > 2 * workers:
                chunk, future = under_way.pop(0)
                yield chunk, future.result()
        yield from ((chunk, future.result()) for chunk, future in under_way)


def _chunks(families: Sequence[str], scenes: int) -> list[tuple[str, int, int]]:
    return [(family, start, min(start + CHUNK, scenes)) for family in families for start in range(0, scenes, CHUNK)]


def _files(out: Path, chunk: tuple[str, int, int]) -> tuple[Path, Path]:
    family, start, stop = chunk
    return out / f"{family}-{start}-{stop}.jsonl", out / f"{family}-{start}-{stop}.npz"


def _read(traces: Path, arrays: Path) -> Iterator[tuple[str, Question]]:
    trajectories = list(read_trajectories(traces))
    with contextlib.closing(np.load(arrays)) as stored:
        for number in range(len(trajectories) // len(POLICIES)):
            first = number * len(ENCODED)
            features = {
                name: (stored[f"{first + place}/seen"], stored[f"{first + place}/step"]) for place, name in enumerate(ENCODED)
            }
            question: Question = {}
            for place, name in enumerate(POLICIES):
                seen, step = features[SAME_CALLS.get(name, name)]
                trajectory = trajectories[number * len(POLICIES) + place]
                question[name] = Judged(trajectory=trajectory, masked=False, seen=seen, step=step)
            yield question["oracle"].trajectory.example, question


# --- rewards ------------------------------------------------------------------------------------------------------------------


def reward_all(
    config: ConfigDict, questions: Mapping[str, Question], *, seed: int, policies: Sequence[str] = POLICIES
) -> dict[str, Earned]:
    """Rewards batches of questions of all families, as an iteration of training is rewarded.

    Args:
      config: See `configs/tiny_ccrft.py`.
      questions: By example.
      seed: Of the order and of curiosity's network.
      policies: In each group.

    Returns:
      What each policy earned, by example, in the order in which they were rewarded, those of the warm-up left out.
    """
    names = [sorted(questions)[number] for number in np.random.default_rng(seed).permutation(len(questions))]
    features = next(iter(questions.values()))["oracle"].seen.shape[1]
    episodes = config.prompts * len(policies)
    rewarder = Rewarder(config, features=features, max_steps=config.rollout.max_steps, episodes=episodes, seed=seed)
    earned: dict[str, Earned] = {}
    for start in range(0, len(names), config.prompts):
        batch = names[start : start + config.prompts]
        rewarded = rewarder.reward([[questions[name][policy] for policy in policies] for name in batch])
        earned |= {name: dict(zip(policies, parts, strict=True)) for name, parts in zip(batch, rewarded.parts, strict=True)}
    return {name: earned[name] for name in names[round(WARM_UP * len(names)) :]}


def alone(config: ConfigDict, questions: Mapping[str, Question], policy: str) -> dict[str, float]:
    """Mean difference by family where groups hold the oracle and one other policy alone.

    What an episode earns depends on the company: a group of many repeats has a low mean coherence, which is what a single call
    earns.
    """
    earned = reward_all(config, questions, seed=config.seed, policies=("oracle", policy))
    differences: dict[str, list[float]] = {}
    for name, one in earned.items():
        differences.setdefault(family_of(name), []).append(one["oracle"].total - one[policy].total)
    return {family: float(np.mean(values)) for family, values in sorted(differences.items())}


def flagged(questions: Mapping[str, Question]) -> float:
    """Share of the episodes of `repeat` in which a call counts as a repeat."""
    return float(np.mean([any(repeats(question["repeat"].trajectory)) for question in questions.values()]))


def summarize(earned: Mapping[str, Earned], rates: Mapping[str, float]) -> dict[str, Any]:
    """Compares the oracle with every other policy, in each family and over all.

    Args:
      earned: As `reward_all` gives it.
      rates: How often the question alone is enough for the right answer, by family.

    Returns:
      `policies`, and whether all that is required `passed`: in every family the whole interval of the difference is above 0.
    """
    families: dict[str, list[Earned]] = {}
    for name, one in earned.items():
        families.setdefault(family_of(name), []).append(one)
    policies: dict[str, Any] = {"oracle": {"parts": mean_parts([one["oracle"] for one in earned.values()])}}
    for policy in (*POLICIES[1:], GUESS):
        found = {
            family: compare([one["oracle"].total for one in ones], [total(one, policy, rates[family]) for one in ones])
            for family, ones in sorted(families.items())
        }
        totals = [total(one, policy, rates[family_of(name)]) for name, one in earned.items()]
        policies[policy] = {
            "required": policy in REQUIRED,
            **compare([one["oracle"].total for one in earned.values()], totals),
            "passed": all(comparison["passed"] for comparison in found.values()),
            "parts": None if policy == GUESS else mean_parts([one[policy] for one in earned.values()]),
            "families": found,
        }
        if policy in PLACED:
            sides: tuple[list[float], list[float]] = ([], [])
            for name, one in earned.items():
                sides[comes_first(index_of(name))].append(one["oracle"].total - one[policy].total)
            policies[policy]["places"] = {
                place: _number(np.mean(side)) if side else None for place, side in zip(("behind", "before"), sides, strict=True)
            }
        if policy != GUESS:
            for family, ones in families.items():
                found[family]["parts"] = {name: mean_parts([one[name] for one in ones]) for name in ("oracle", policy)}
    return {"policies": policies, "passed": all(policies[name]["passed"] for name in REQUIRED)}


def total(earned: Earned, policy: str, rate: float) -> float:
    """Total reward of a policy on a question; of `GUESS`, its expectation."""
    if policy == GUESS:
        return rate * earned["nothing_right"].total + (1 - rate) * earned["nothing"].total
    return earned[policy].total


def compare(oracle: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Mean difference with its interval, and that of each half of the questions, in the order in which they were rewarded.

    Numbers that too few questions cannot give are None.
    """
    difference = np.subtract(oracle, other)
    low, high = paired_interval(oracle, other)
    halves = [_number(half.mean()) if len(half) else None for half in np.array_split(difference, 2)]
    interval = [_number(low), _number(high)]
    return {
        "n": len(difference),
        "difference": float(difference.mean()),
        "interval": interval,
        "halves": halves,
        "passed": low > 0,
    }


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def mean_parts(parts: Sequence[rewards.Parts]) -> dict[str, float]:
    """Mean of each part, raw and weighted."""
    return {
        field.name: float(np.mean([getattr(one, field.name) for one in parts])) for field in dataclasses.fields(rewards.Parts)
    }


def family_of(example: str) -> str:
    """Family of an example (`data.traces.example_id`)."""
    return example.split("-")[0]


def index_of(example: str) -> int:
    """Index of an example's scene."""
    return int(example.rsplit("-", 1)[1])


def comes_first(index: int) -> bool:
    """Whether the redundant call of `PLACED` comes before a scene's chain."""
    return index % 2 == 1


def guess_rates() -> dict[str, float]:
    """How often a policy that only hears the question is right, by family, as measured."""
    families = json.loads(BASELINE.read_text())["results"]["without_tools"]["families"]
    return {family: values["accuracy"] for family, values in families.items()}


def table(record: Mapping[str, Any]) -> str:
    """The comparisons, a policy a line."""
    policies = {name: found for name, found in record["policies"].items() if name != "oracle"}
    families = list(record["questions"])
    lines = [f"{'oracle minus':14s} {'all':>8s} {'interval':>18s}  " + " ".join(f"{family[:9]:>9s}" for family in families)]
    for name, found in policies.items():
        cells = [
            f"{found['families'][family]['difference']:+8.4f}{' ' if found['families'][family]['passed'] else '!'}"
            for family in families
        ]
        low, high = (np.nan if end is None else end for end in found["interval"])
        word = ("holds" if found["passed"] else "FAILS") if found["required"] else "not required"
        lines.append(f"{name:14s} {found['difference']:+8.4f} {low:+8.4f} {high:+8.4f}  {' '.join(cells)}  {word}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
