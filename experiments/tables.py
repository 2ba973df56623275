"""Prints the tables of the README and of docs/plan.md from committed artefacts, so that nobody copies a figure by hand.

python experiments/tables.py
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def tiny_sft() -> str:
    """Accuracy and process metrics of `tiny_sft`, with and without tools, and by family."""
    results = json.loads((RESULTS / "tiny" / "eval_tiny_sft.json").read_text())["results"]
    lines = [
        "| `tiny_sft` | accuracy | 95 % interval | RaPR | RaCPR | valid calls | mean chain |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, name in (("without tools", "without_tools"), ("with tools", "with_tools")):
        row = results[name]
        low, high = row["interval"]
        cells = [title, percent(row["accuracy"]), f"{100 * low:.1f} - {100 * high:.1f}"]
        cells += [f"{row['rapr']:.2f}", f"{row['racpr']:.2f}"]
        cells += [percent(row["valid_calls"]) if row["mean_chain"] else "-", f"{row['mean_chain']:.2f}"]
        lines.append(line(cells))
    lines += ["", f"Tool gain {percent(results['tool_gain'])}, tool harm {percent(results['tool_harm'])}.", ""]
    families = sorted(results["with_tools"]["families"].items(), key=lambda item: -item[1]["accuracy"])
    lines += [line(["family", *(name for name, _ in families)]), "|---" * (len(families) + 1) + "|"]
    lines.append(line(["with tools", *(percent(row["accuracy"]) for _, row in families)]))
    return "\n".join(lines)


def plans() -> str:
    """What the programs of a run need of TPU slices, a row a program, from all plans in `results/plan`."""
    titles = ["model", "step", "slice", "mesh", "rows x tokens", "state", "temporaries", "needs", "of", "PFLOP", "chips send"]
    titles += ["HBM traffic", "at least", "by", "MFU at most", "compiled in"]
    lines = [line(titles), "|---" * len(titles) + "|"]
    files = [json.loads(path.read_text()) for path in sorted((RESULTS / "plan").glob("plan_*.json"))]
    rows = [(plan, program) for plan in files for program in plan["programs"]]
    for plan, program in sorted(rows, key=_plan_order):
        config, memory, bound, made = plan["config"], program["memory"], program["roofline"], program["compiled"]
        name = program["name"] + (" (adapters)" if config["trainable"] == "adapters" and program["name"] == "sft" else "")
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


def _plan_order(row: tuple[dict, dict]) -> tuple:
    plan, program = row
    programs, slices = ("sft", "reference", "prefill", "decode"), ("v5e", "v5p", "v6e")
    model, slice_ = plan["config"]["model"], plan["topology"]["name"].partition("-")[0]
    models = ("qwen3_vl_8b", "qwen3_vl_32b", "qwen3_vl_30b_a3b")
    adapters = plan["config"]["trainable"] == "adapters"
    return models.index(model), programs.index(program["name"]), adapters, slices.index(slice_)


def gib(size: float | None) -> str:
    """Bytes as GiB; a dash for None."""
    if size is None:
        return "-"
    return f"{size / 2**30:.3g}" if size < 100 * 2**30 else f"{size / 2**30:.0f}"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n\n".join([tiny_sft(), plans(), log_prob_memory()]))
