"""Prints the tables of the README from committed artefacts, so that nobody copies a figure by hand.

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


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(tiny_sft())
