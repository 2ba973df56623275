"""Prints the tables of the README and of docs/ from committed artefacts, so that nobody copies a figure by hand.

python experiments/tables.py          # all of them
python experiments/tables.py --write  # puts those of docs/ between their marks
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.evaluation.statistics import SeedMeanDifference, benjamini_hochberg, seed_mean_difference
from pixelis_jax.speed.results import added_seconds

RESULTS = Path(__file__).parent / "results"


def tiny_sft() -> str:
    """Accuracy and process metrics of `tiny_sft`, with and without tools, and by family."""
    results = json.loads((RESULTS / "tiny" / "eval_tiny_sft.json").read_text())["results"]
    lines = table(["`tiny_sft`", "accuracy", "95 % interval", "RaPR", "RaCPR", "valid calls", "mean chain"])
    for title, name in (("without tools", "without_tools"), ("with tools", "with_tools")):
        row = results[name]
        low, high = row["interval"]
        cells = [title, percent(row["accuracy"]), f"{100 * low:.1f} - {100 * high:.1f}"]
        cells += [f"{row['rapr']:.2f}", f"{row['racpr']:.2f}"]
        cells += [percent(row["valid_calls"]) if row["mean_chain"] else "-", f"{row['mean_chain']:.2f}"]
        lines.append(line(cells))
    lines += ["", f"Tool gain {percent(results['tool_gain'])}, tool harm {percent(results['tool_harm'])}.", ""]
    families = sorted(results["with_tools"]["families"].items(), key=lambda item: -item[1]["accuracy"])
    lines += table(["family", *(name for name, _ in families)])
    lines.append(line(["with tools", *(percent(row["accuracy"]) for _, row in families)]))
    return "\n".join(lines)


def plans() -> str:
    """What the programs of a run need of TPU slices, a row a program, from all plans in `results/plan`."""
    titles = ["model", "step", "slice", "mesh", "rows x tokens", "state", "temporaries", "needs", "of", "PFLOP", "chips send"]
    titles += ["HBM traffic", "at least", "by", "MFU at most", "compiled in"]
    lines = table(titles)
    files = [json.loads(path.read_text()) for path in sorted((RESULTS / "plan").glob("plan_*.json"))]
    rows = [(plan, program) for plan in files for program in plan["programs"]]
    for plan, program in sorted(rows, key=_plan_order):
        config, memory, bound, made = plan["config"], program["memory"], program["roofline"], program["compiled"]
        name = program["name"] + (" (adapters)" if config["trainable"] == "adapters" else "")
        mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        train, sample = config["train"], config["sample"]
        batch = {
            "prefill": f"{sample['prefill_rows']} x {sample['prefill_tokens']} on {sample['capacity']}",
            "decode": f"{sample['slots']} x 1 on {sample['capacity']}",
        }.get(program["name"], f"{train['rows']} x {train['tokens']}")
        state = sum(memory["arguments"].get(kind, 0) for kind in ("parameters", "optimizer", "cache"))
        sent = made and sum(traffic["sent"] for traffic in made["collectives"].values())
        cells = [config["model"].removeprefix("qwen3_vl_"), name, plan["topology"]["name"], mesh, batch]
        cells += [
            gib(state),
            gib(memory["temporaries"]),
            ("" if made else "at least ") + gib(memory["total"]),
            gib(memory["hbm"]),
        ]
        cells += [f"{program['flops']['total'] / 1e15:.3g}", gib(sent), gib(made and made["hbm_bytes"])]
        cells += [f"{1000 * bound['step_s']:,.0f} ms", bound["limited_by"], percent(bound["mfu"]) if made else "-"]
        lines.append(line([*cells, f"{program['lower_s'] + program['compile_s']:.0f} s"]))
    return "\n".join(lines)


def log_prob_memory() -> str:
    """What the gradient of log-probabilities needs besides its arguments and results, in two forms."""
    result = json.loads((RESULTS / "plan" / "log_probs.json").read_text())
    sizes, chunks = result["temporary_bytes"], (result["chunk"], result["vocab_chunk"])
    whole = f"All logits of {result['tokens']:,} positions at once: {gib(sizes['textbook'])} GiB."
    chunked = f"Chunks of {chunks[0]:,} positions and at most {chunks[1]:,} tokens of the vocabulary: {gib(sizes['chunked'])} GiB"
    return f"{whole} {chunked}, {result['ratio']:.1f} x less."


def parity() -> str:
    """How far the policy is from transformers, a row a modality, and how far it is with mistakes that were made on purpose."""
    found = json.loads((RESULTS / "parity" / "parity.json").read_text())["results"]
    families, by_row = list(found["families"]), {}
    for one in found["differences"]:
        by_row.setdefault(one["modality"], {})[one["family"]] = f"{one['difference']:.1e}"
    rounded = {one["family"]: f"{one['ours']:.1e} / {one['theirs']:.1e}" for one in found["bfloat16"]}
    head = ["worst difference of any logit, fp32", *families]
    lines = table(head)
    lines += [line([row, *(cells[family] for family in families)]) for row, cells in by_row.items()]
    lines.append(line(["KL in bfloat16, ours / transformers' own", *(rounded[family] for family in families)]))
    head = ["mistake made on purpose", "in", "worst difference"]
    lines += ["", *table(head)]
    lines += [line([one["mistake"], one["family"], f"{one['difference']:.1e}"]) for one in found["mistakes"]]
    return "\n".join(lines)


def _plan_order(row: tuple[dict, dict]) -> tuple:
    plan, program = row
    programs, slices = ("sft", "ccrft", "ttrl", "reference", "prefill", "decode"), ("v5e", "v5p", "v6e")
    model, slice_ = plan["config"]["model"], plan["topology"]["name"].partition("-")[0]
    models = ("qwen3_vl_8b", "qwen3_vl_32b", "qwen3_vl_30b_a3b")
    adapters = plan["config"]["trainable"] == "adapters"
    return models.index(model), programs.index(program["name"]), adapters, slices.index(slice_)


def benches(*names: str) -> str:
    """The policy against transformers + torch: times and peak memory."""
    lines = table(["work", "ours, tokens/s", "theirs", "their time / ours", "95 %", "goal", "our memory / theirs"])
    for name in names:
        for row in json.loads((RESULTS / "bench" / f"{name}.json").read_text())["rows"]:
            rates, memory = row["useful_tokens_per_second"], row["memory_ratio"]
            cells = [row["title"], f"{rates['ours']:,.0f}", f"{rates['theirs']:,.0f}", f"{row['ratio']:.2f}"]
            cells += ["{:.2f} - {:.2f}".format(*row["interval"]), f"{row['at_least']:g}{'' if row['fast'] else ' (missed)'}"]
            lines.append(line([*cells, f"{memory:.2f}" if memory else "-"]))
    return "\n".join(lines)


def stages() -> str:
    """What each part adds to a step of training, on both sides: seconds."""
    (row,) = json.loads((RESULTS / "bench" / "policy_stages.json").read_text())["rows"]
    lines = table(["", *(f"+ {name}" for name in row["stages"]["ours"])])
    for side, parts in row["stages"].items():
        lines.append(line([side, *(f"{seconds:.3f}" for seconds in added_seconds(parts))]))
    return "\n".join(lines)


def products() -> str:
    """How fast both sides multiply matrices: GFLOP/s, medians over the shapes of a layer."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "bench" / "products.json").read_text())["rows"]:
        kinds.setdefault((row["work"], row["kind"]), []).append(row)
    lines = table(["", "product", "ours, GFLOP/s", "theirs", "ours / theirs", "least", "greatest"])
    for (work, kind), rows in kinds.items():
        rates = [f"{np.median([row['gflops'][side] for row in rows]):.0f}" for side in ("ours", "theirs")]
        ratios = [row["ratio"] for row in rows]
        lines.append(line([f"`{work}`", f"`{kind}`", *rates, *(f"{f(ratios):.2f}" for f in (np.median, min, max))]))
    return "\n".join(lines)


def decode_profile() -> str:
    """Where a decoding step goes."""
    rows = json.loads((RESULTS / "bench" / "decode_profile.json").read_text())["milliseconds"]
    parts = ("step", "products", "scores", "mixture", "writes", "rest")
    lines = table(["", *parts])
    lines += [line([f"`{work}`", *(f"{row[part]:.2f} ms" for part in parts)]) for work, row in rows.items()]
    return "\n".join(lines)


def simulations() -> str:
    """The agent's loop over a simulated device and tools."""
    lines = table(["simulated", "seconds", "device", "tools", "of the bound", "device idle", "batches / ours"])
    for row in json.loads((RESULTS / "bench" / "rollout.json").read_text())["simulated"]:
        cells = [row["title"], *(f"{row[name]:.1f} s" for name in ("seconds", "device_s", "tool_s_a_worker"))]
        cells += [percent(row["of_bound"]), percent(row["idle"]), f"{row['over_batches']:.2f}" if "over_batches" in row else "-"]
        lines.append(line(cells))
    return "\n".join(lines)


def rollouts() -> str:
    """What `rollout_checks.py` found."""
    episodes, slots, soak = (
        json.loads((RESULTS / "rollout" / f"{name}.json").read_text()) for name in ("episodes", "slots", "soak")
    )
    apart, company = episodes["log_probs"], slots["against_7_slots"]
    prefilled = f"{episodes['prefill_ratio']:.3f} tokens prefilled for each that had to be"
    played = f"{episodes['episodes']} episodes in groups of 8, {episodes['steps']} calls"
    facts = [
        f"{played}: {prefilled}, {episodes['compilations']} compilations after warm-up.",
        f"Sampled log-probs against the trainer's, {apart['tokens']:,} tokens: "
        f"at most {apart['max']:.1e} apart, P99.9 {apart['p99.9']:.1e}.",
    ]
    for name, found in company.items():
        same = f"{found['identical']} of {found['of']} the same as on 7 slots, {found['to_the_bit']} to the bit"
        facts.append(f"{name} slots: {same}, log-probs at most {found['log_probs_apart']:.1e} apart.")
    ends = ", ".join(f"{name} {count:,}" for name, count in soak["stopped"].items())
    growth = percent(soak["second_half_growth"])
    facts.append(f"Soak of {soak['episodes']:,} episodes with faults: memory grows by {growth} in the second half; {ends}.")
    return "\n".join(f"- {fact}" for fact in facts)


def ccrft(variant: str = "full", start: str = "tiny_sft_early") -> str:
    """What a variant of CC-RFT makes of its start on the same test questions, a row a seed, and the comparison over seeds."""
    folder = RESULTS / "ccrft" / "eval"

    seeds = _seeds(folder, variant)
    found = _evaluations(folder, [start, *seeds])
    head = ["", "accuracy", "95 % interval", "RaPR", "RaCPR", "valid calls", "calls", "calls where any", "tool gain", "tool harm"]
    lines = table(head)
    for name, record in found.items():
        row = record["with_tools"]
        cells = _process(name, row)
        cells += [_calls_where_any(row), percent(record["tool_gain"]), percent(record["tool_harm"])]
        lines.append(line(cells))
    families = list(found[start]["with_tools"]["families"])
    lines += ["", *table(["accuracy / RaPR", *families])]
    for name, record in found.items():
        rows = record["with_tools"]["families"]
        lines.append(line([f"`{name}`", *(f"{100 * rows[f]['accuracy']:.0f} / {rows[f]['rapr']:.2f}" for f in families)]))
    base = _right(found[start])
    result = _against(base, [found[name] for name in seeds])
    points, interval, by_seed = _points(result)
    lines += [
        "",
        f"{len(base):,} test questions, greedy, paired: {points} points (95 % interval {interval}; "
        f"{100 * result.difference / base.mean():+.1f} % of the start), by seed {by_seed}; p = {result.p_value:.1g}.",
    ]
    return "\n".join(lines)


PEERS = ("full", "supervised_answers", "supervised_chains", "from_tiny_sft")


def peers(start: str = "tiny_sft_early") -> str:
    """What else could be done with the labels of CC-RFT, or without: a row a model, each against what it started from."""
    folder = RESULTS / "ccrft" / "eval"
    starts = {name: "tiny_sft" if peer == "from_tiny_sft" else start for peer in PEERS for name in _seeds(folder, peer)}
    found = _evaluations(folder, list(dict.fromkeys(name for pair in starts.items() for name in reversed(pair))))
    head = ["", "accuracy", "95 % interval", "RaPR", "RaCPR", "valid calls", "calls", "against", "points", "95 % interval"]
    lines = table(head)
    for name, record in found.items():
        compared = ["", "", ""]
        if before := starts.get(name):
            result = _against(_right(found[before]), [record])
            compared = [f"`{before}`", *_points(result)[:2]]
        lines.append(line([*_process(name, record["with_tools"]), *compared]))
    majority = _evaluations(folder, ["majority"])["majority"]
    voted, greedy = _right(majority, "majority"), _right(majority)
    points, interval, _ = _points(seed_mean_difference(voted[None], greedy[None]))
    lines += [
        "",
        f"Majority of 8 samples of `{start}`, {len(voted)} of these questions: {percent(voted.mean())}, its greedy answers "
        f"{percent(greedy.mean())}: {points} points (95 % interval {interval}).",
    ]
    return "\n".join(lines)


VARIANTS = ("answer_only", "curiosity", "coherence", "curiosity_coherence", "full", "usage_bonus")


def ablation(start: str = "tiny_sft_early") -> str:
    """What each reward of CC-RFT adds: means over seeds (their range), and accuracy against the start and against the task alone.

    p-values of all comparisons of the table are adjusted together (Benjamini and Hochberg, 1995).
    """
    folder = RESULTS / "ccrft" / "eval"
    names = {variant: _seeds(folder, variant) for variant in VARIANTS}
    names = {variant: seeds for variant, seeds in names.items() if seeds}
    found = _evaluations(folder, [start, *(name for seeds in names.values() for name in seeds)])
    compared = _comparisons(names, found, start, "answer_only")
    head = ["", "seeds", "accuracy", "RaPR", "RaCPR", "valid calls", "calls"]
    lines = table(head)
    for variant, seeds in ({start: [start]} | names).items():
        rows = [found[name]["with_tools"] for name in seeds]

        def spread(field: str, scale: float, digits: int, rows: list[dict[str, Any]] = rows) -> str:
            values = [scale * row[field] for row in rows]
            return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"

        cells = [f"`{variant}`", str(len(seeds)), spread("accuracy", 100, 1), spread("rapr", 1, 3), spread("racpr", 1, 3)]
        lines.append(line([*cells, spread("valid_calls", 100, 1), spread("mean_chain", 1, 2)]))
    head = ["accuracy of", "less that of", "points", "95 % interval", "by seed", "p, adjusted"]
    lines += ["", *table(head)]
    for (variant, other), (result, p_value) in compared.items():
        lines.append(line([f"`{variant}`", f"`{other}`", *_points(result), f"{p_value:.2g}"]))
    return "\n".join(lines)


LONG = ("safe", "no_safety", "no_kl")


def ttrl(start: str = "tiny_sft_early") -> str:
    """Pixel TTRL of 400 queries: fresh questions of the shift, then of the test split, a row a run, and over the seeds."""
    asked = {
        "shift": ("fresh questions of the shift", RESULTS / "ttrl" / "eval", RESULTS / "ttrl" / "eval"),
        "test": ("unshifted test questions", RESULTS / "ttrl" / "eval_test", RESULTS / "ccrft" / "eval"),
    }
    head = ["", "questions", "accuracy", "95 % interval", "RaPR", "RaCPR", "valid calls", "calls", "calls where any"]
    lines = table(head)
    facts = []
    for split, (title, folder, of_start) in asked.items():
        names = {variant: _seeds(folder, variant) for variant in LONG}
        found = _evaluations(folder, [start, *(name for seeds in names.values() for name in seeds)], {start: of_start})
        for name, record in found.items():
            row = record["with_tools"]
            name_cell, *cells = _process(name, row)
            lines.append(line([name_cell, split, *cells, _calls_where_any(row)]))
        base = _right(found[start])
        for variant, seeds in names.items():
            if seeds:
                result = _against(base, [found[name] for name in seeds])
                points, interval, by_seed = _points(result)
                relative = f"{100 * result.difference / base.mean():+.1f} % of the start"
                counted = f"{len(base):,} {title}, greedy, paired"
                facts.append(f"- `{variant}`, {counted}: {points} points ({interval}; {relative}), by seed {by_seed}.")
    return "\n".join([*lines, "", *facts])


def stream(learning: str = "safe", frozen: str = "frozen") -> str:
    """Answers to the queries of the stream, each given before it was learnt from, of a policy that learns and of the frozen one.

    The seeds have the same queries in other orders, but for a few; those that all have are compared, so that a query is drawn
    together with itself in the other seeds.
    """
    folder = RESULTS / "ttrl"
    runs = {seed: [_queries(folder / f"{variant}-{seed}.json") for variant in (learning, frozen)] for seed in range(3)}
    common = sorted(set.intersection(*(set(run) for pair in runs.values() for run in pair)))
    right = np.array([[[run[query] for query in common] for run in pair] for pair in runs.values()])  # [S, 2, N, 2]
    head = ["", "learning", "frozen", "points", "95 % interval", "by seed", "p"]
    lines = table(head)
    ways = {
        "greedy, learning - greedy, frozen": ((0, 0), (1, 0)),
        "vote of 8, learning - vote of 8, frozen": ((0, 1), (1, 1)),
        "greedy, learning - vote of 8, frozen": ((0, 0), (1, 1)),
    }
    for title, ((first, own), (second, other)) in ways.items():
        left, beside = right[:, first, :, own], right[:, second, :, other]
        result = seed_mean_difference(left, beside)
        cells = [title, percent(left.mean()), percent(beside.mean()), *_points(result), f"{result.p_value:.1g}"]
        lines.append(line(cells))
    return "\n".join([*lines, "", f"{len(common)} queries that every seed has, {len(runs)} seeds."])


def _queries(path: Path) -> dict[str, tuple[int, int]]:
    """Of each query of a run's stream: whether the greedy answer was right, and the vote's."""
    items = json.loads(path.read_text())["items"]
    pairs = zip(map(int, items["accuracy"]), map(int, items["vote"]), strict=True)
    return dict(zip(items["queries"], pairs, strict=True))


CONTROLS = {
    "short_safe": "as shipped",
    "short_no_kl": "no KL, no guard",
    "fixed_beta": "beta stays",
    "no_evidence": "exemplars need no checked call",
    "ans_ssc": "votes by answers alone (Ans-SSC)",
    "answer_majority": "hard majority, any winner",
    "process_scoring": "votes by fidelity alone",
    "random_exemplar": "any winner, checked or not",
    "no_tools": "no tools, entropy alone",
    "retrieval_off": "no memory",
    "value_off": "memory without value",
    "poison": "30 % of the memory poisoned",
    "poison_value_off": "poisoned, memory without value",
    "grpo": "policy gradient of the consensus",
}
"""Variants of `configs/sweeps/ttrl.py` with 150 queries, and what each changes."""


def controls(start: str = "tiny_sft_early", whole: str = "short_safe") -> str:
    """Which part of Pixel TTRL does what, 150 queries a run, on fresh questions of the shift.

    p-values of all comparisons of the table are adjusted together (Benjamini and Hochberg, 1995).
    """
    folder = RESULTS / "ttrl" / "eval"
    names = {variant: _seeds(folder, variant) for variant in CONTROLS}
    names = {variant: seeds for variant, seeds in names.items() if seeds}
    found = _evaluations(folder, [start, *(name for seeds in names.values() for name in seeds)])
    compared = _comparisons(names, found, start, whole)
    head = ["", "", "seeds", "lessons", "KL from the start", "fresh questions", "calls"]
    head += ["less the start", "95 % interval", "p, adjusted", "less the whole", "95 % interval", "p, adjusted"]
    lines = table(head)
    for variant, seeds in names.items():
        rows = [found[name]["with_tools"] for name in seeds]
        runs = [json.loads((RESULTS / "ttrl" / f"{name}.json").read_text()) for name in seeds]
        lessons = ", ".join(str(int(sum(run["curves"]["learnt"]))) for run in runs)
        cells = [f"`{variant}`", CONTROLS[variant], str(len(seeds)), lessons, _drift(seeds)]
        cells += [percent(np.mean([row["accuracy"] for row in rows])), f"{np.mean([row['mean_chain'] for row in rows]):.2f}"]
        for other in (start, whole):
            result, p_value = compared.get((variant, other), (None, 1.0))
            cells += [*_points(result)[:2], f"{p_value:.2g}"] if result else ["-"] * 3
        lines.append(line(cells))
    if poison := _against_peers("poison_value_off", "value_off", names, found):
        points, interval, by_seed = _points(poison)
        pair = "Poison where nothing knows of value, `poison_value_off` less `value_off`"
        lines += ["", f"{pair}: {points} points ({interval}), by seed {by_seed}."]
    return "\n".join(lines)


def _drift(names: Sequence[str]) -> str:
    """Divergence of runs from their start, the mean of those that `experiments/drift.py` has measured."""
    path = RESULTS / "ttrl" / "drift.json"
    known = json.loads(path.read_text())["divergence"] if path.exists() else {}
    found = [known[name] for name in names if name in known]
    return f"{np.mean(found):.3f}" if found else "-"


def corridor() -> str:
    """Where the divergence lay after each update behind the warm-up, a row a run of 400 queries, beside the paper's."""
    head = ["", "updates", "inside 0.10 - 0.20", "below", "above", "median", "P95", "greatest", "taken back", "from the start"]
    lines = table(head)
    for name in (name for variant in LONG for name in _seeds(RESULTS / "ttrl", variant)):
        run = json.loads((RESULTS / "ttrl" / f"{name}.json").read_text())
        found = run["corridor"]["after_warm_up"]
        cells = [f"`{name}`", str(found["updates"]), *(percent(found[share]) for share in ("inside", "below", "above"))]
        cells += [f"{found[value]:.3f}" for value in ("median", "p95", "greatest")]
        lines.append(line([*cells, str(int(sum(run["curves"]["rolled_back"]))), _drift([name])]))
    lines.append(line(["the paper, 8B", "8,000", *["-"] * 3, "about 0.16", *["-"] * 4]))
    return "\n".join(lines)


def _seeds(folder: Path, variant: str) -> list[str]:
    """Names of a variant's evaluations, by seed."""
    return sorted(path.stem for path in folder.glob(f"{variant}-[0-9]*.json"))


def _evaluations(folder: Path, names: Sequence[str], elsewhere: Mapping[str, Path] | None = None) -> dict[str, dict[str, Any]]:
    """What `experiments/evaluate_models.py` wrote of some models, into `folder` or, of a few, `elsewhere`."""
    places = dict.fromkeys(names, folder) | dict(elsewhere or {})
    found = {name: json.loads((place / f"{name}.json").read_text()) for name, place in places.items()}
    if len({record["questions"] for record in found.values()}) > 1:
        raise ValueError("these models were not asked the same questions")
    return found


def _right(record: Mapping[str, Any], asked: str = "with_tools") -> np.ndarray:
    """0 or 1 of each question."""
    return np.array([int(digit) for digit in record["items"][asked]])


def _against(start: np.ndarray, seeds: Sequence[Mapping[str, Any]]) -> SeedMeanDifference:
    """Runs of some seeds compared with what all of them started from, which has no seeds: 0 or 1 of each question."""
    own = np.stack([_right(record) for record in seeds])
    return seed_mean_difference(own, np.broadcast_to(start, own.shape))


def _against_peers(
    variant: str, other: str, names: Mapping[str, Sequence[str]], found: Mapping[str, Mapping[str, Any]]
) -> SeedMeanDifference | None:
    """A variant compared with another on its own seeds, seed by seed; None where the other lacks one. As `_comparisons`."""
    seeds = names.get(variant, ())
    peers = [f"{other}-{name.rsplit('-', 1)[1]}" for name in seeds]
    if not seeds or not set(peers) <= set(names.get(other, ())):
        return None
    own, others = (np.stack([_right(found[name]) for name in group]) for group in (seeds, peers))
    return seed_mean_difference(own, others)


def _comparisons(
    names: Mapping[str, Sequence[str]], found: Mapping[str, Mapping[str, Any]], start: str, whole: str
) -> dict[tuple[str, str], tuple[SeedMeanDifference, float]]:
    """Compares variants with what all started from, and with the variant `whole` on the same seeds where it has them.

    Args:
      names: evaluations of each variant, ``VARIANT-SEED``.
      found: the evaluations.
      start: name of the start's evaluation.
      whole: a variant.

    Returns:
      (variant, `start` or `whole`) -> difference, and its p-value, adjusted over all of them (Benjamini and Hochberg, 1995).
    """
    compared: dict[tuple[str, str], SeedMeanDifference] = {}
    for variant, seeds in names.items():
        compared[variant, start] = _against(_right(found[start]), [found[name] for name in seeds])
        if variant != whole and (beside := _against_peers(variant, whole, names, found)):
            compared[variant, whole] = beside
    adjusted = benjamini_hochberg([result.p_value for result in compared.values()]).tolist()
    return {pair: (result, p_value) for (pair, result), p_value in zip(compared.items(), adjusted, strict=True)}


def _calls_where_any(row: Mapping[str, Any]) -> str:
    """Calls of an episode that has one. Every question is answered, or nearly so: these episodes are RaPR of all."""
    return f"{row['mean_chain'] / max(row['rapr'], 1e-9):.2f}"


def _process(name: str, row: Mapping[str, Any]) -> list[str]:
    """Cells of a model: name, accuracy, its 95 % interval, RaPR, RaCPR, valid calls, calls."""
    low, high = row["interval"]
    cells = [f"`{name}`", percent(row["accuracy"]), f"{100 * low:.1f} - {100 * high:.1f}"]
    return [*cells, f"{row['rapr']:.2f}", f"{row['racpr']:.2f}", percent(row["valid_calls"]), f"{row['mean_chain']:.2f}"]


def _points(result: SeedMeanDifference) -> tuple[str, str, str]:
    """A difference in points: the mean over seeds, its 95 % interval, and each seed's."""
    low, high = result.interval
    by_seed = ", ".join(f"{100 * difference:+.1f}" for difference in result.by_seed)
    return f"{100 * result.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", by_seed


def kl_plant() -> str:
    """The KL controller against fixed weights on simulated plants: over all of them, and by how hard the plant is pushed."""
    record = json.loads((RESULTS / "ttrl" / "kl_plant.json").read_text())
    head = ["beta", "inside", "below", "above", "median", "P95", "greatest overshoot", "and late", "settled", "after"]
    head += ["least inside", "controller inside more"]
    lines = table(head)
    best = ("controller", "best fixed for each plant", "best fixed on average")
    others = [name for name in record["ways"] if name not in (*best, f"fixed {record['best_fixed']:g}")]
    for name in (*best, *others):
        way = record["ways"][name]
        title = f"{name} ({record['best_fixed']:g})" if name == "best fixed on average" else name
        cells = [title, *(percent(way[share]) for share in ("inside", "below", "above"))]
        cells += [f"{way['median']:.3f}", f"{way['p95']:.3f}"]
        cells += [f"{way[overshoot]['greatest']:.2f}" for overshoot in ("overshoot", "late_overshoot")]
        after = way["settled"]["median"]
        cells += [percent(way["settled"]["share"]), "-" if after is None else f"{after:.0f}", percent(way["least_inside"])]
        lead = way.get("lead")
        ends = lead and [f"{100 * end:+.1f}" for end in (lead["difference"], *lead["interval"])]
        lines.append(line([*cells, "{} ({} to {})".format(*ends) if ends else "-"]))
    pushes = sorted({plant["push"] for plant in record["plants"]})
    lines += ["", *table(["inside, of plants with a mean push of", *(f"{push:g}" for push in pushes)])]
    for name in best:
        plants = list(zip(record["plants"], record["ways"][name]["by_plant"], strict=True))
        shares = [np.mean([found["inside"] for plant, found in plants if plant["push"] == push]) for push in pushes]
        lines.append(line([name, *(percent(float(share)) for share in shares)]))
    return "\n".join(lines)


def gib(size: float | None) -> str:
    """Bytes as GiB; a dash for None."""
    if size is None:
        return "-"
    return f"{size / 2**30:.3g}" if size < 100 * 2**30 else f"{size / 2**30:.0f}"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str]) -> list[str]:
    """The first lines of a Markdown table."""
    return [line(head), "|---" * len(head) + "|"]


MARKED: Mapping[tuple[str, str], Callable[[], str]] = {
    ("policy.md", "PARITY"): parity,
    ("plan.md", "TABLE"): plans,
    ("plan.md", "LOGPROBS"): log_prob_memory,
    ("rft.md", "PEERS"): peers,
    ("speed.md", "SPEED_TABLE"): lambda: benches("policy"),
    ("speed.md", "SPEED_SECOND_HOST"): lambda: benches("policy_second_host"),
    ("speed.md", "SPEED_JEMALLOC"): lambda: benches("policy_dense_jemalloc"),
    ("speed.md", "SPEED_STAGES"): stages,
    ("speed.md", "SPEED_PRODUCTS"): products,
    ("speed.md", "SPEED_FIRST_HOST"): lambda: benches("policy_dense_first_host", "policy_useful_first_host"),
    ("rollout.md", "ROLLOUT_TABLES"): lambda: "\n\n".join([rollouts(), benches("rollout"), simulations()]),
    ("rollout.md", "ROLLOUT_SECOND_HOST"): lambda: benches("rollout_second_host"),
    ("rollout.md", "DECODE_PROFILE"): decode_profile,
    ("ttrl.md", "TTRL_TABLE"): ttrl,
    ("ttrl.md", "STREAM"): stream,
    ("ttrl.md", "CORRIDOR"): corridor,
    ("ttrl.md", "CONTROLS"): controls,
    ("rft.md", "CCRFT_TABLE"): ccrft,
    ("rft.md", "ABLATION"): ablation,
}
"""Page of docs/ and mark -> what stands between `<!-- MARK -->` and `<!-- end MARK -->`."""


def write(docs: Path) -> list[str]:
    """Puts the tables into their pages; returns the names of those that have changed."""
    changed = []
    for (page, mark), make in MARKED.items():
        text = (docs / page).read_text()
        start, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
        filled = re.sub(f"{start}.*?{end}", lambda _: f"{start}{make()}\n{end}", text, count=1, flags=re.DOTALL)  # noqa: B023
        if filled != text:
            (docs / page).write_text(filled)
            changed.append(f"{page}: {mark}")
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write those of docs/ in place of printing")
    if parser.parse_args().write:
        print("\n".join(write(RESULTS.parent.parent / "docs")) or "nothing has changed")
    else:
        print("\n\n".join([tiny_sft(), *(make() for make in MARKED.values()), kl_plant()]))
