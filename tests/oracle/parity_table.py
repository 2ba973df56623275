"""Prints how far the policy is from transformers: logits, bfloat16, and what mistakes would do.

  python tests/oracle/parity_table.py
  python tests/oracle/parity_table.py --json=experiments/results/parity/cpu.json

Needs torch (`make parity` has it). The cases are those of the oracle tests. Status 1: a figure is out of its bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import parity_cases
import parity_mutations
import torch
from parity_cases import BOUND, FAMILIES, MODALITIES
from parity_mutations import FACTOR, MUTATIONS

from pixelis_jax.workdir import describe_environment

say = functools.partial(print, flush=True)


def main() -> int:
    """Compares everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")
    args = parser.parse_args()
    started = time.monotonic()
    families = list(FAMILIES)
    differences = measure_modalities(families)
    divergences = measure_bfloat16(families)
    mistakes = measure_mistakes()
    failed = [row for row in (*differences, *divergences, *mistakes) if not row["ok"]]
    say(f"\n{len(failed)} figures out of bound" if failed else "\nall within bounds")
    if args.json:
        results = {"bound": BOUND, "factor": FACTOR, "families": describe(families)}
        results |= {"differences": differences, "bfloat16": divergences, "mistakes": mistakes}
        write(args.json, results, time.monotonic() - started)
    return 1 if failed else 0


def describe(families: list[str]) -> dict[str, Any]:
    """What stands for what."""
    return {
        name: {
            "stands_for": FAMILIES[name].stands_for,
            "config": FAMILIES[name].published,
            "float64": parity_cases.rounding(name),
        }
        for name in families
    }


def measure_modalities(families: list[str]) -> list[dict[str, Any]]:
    """Worst absolute difference of any logit: one row a modality, one column a family."""
    say(f"Worst absolute difference of any logit, float32, at most {BOUND:.0e}")
    head(families)
    rows = []
    for modality, compare in MODALITIES.items():
        errors = [compare(parity_cases.pair(family)) for family in families]
        line(modality, [f"{error:.1e}" for error in errors], [error <= BOUND for error in errors])
        rows += [
            {"family": family, "modality": modality, "difference": error, "ok": error <= BOUND}
            for family, error in zip(families, errors, strict=True)
        ]
    line("(transformers from its float64)", [f"{parity_cases.rounding(family):.1e}" for family in families])
    return rows


def measure_bfloat16(families: list[str]) -> list[dict[str, Any]]:
    """Divergence from float32 of both implementations in bfloat16."""
    say("\nMean KL a token from transformers in float32, nats; ours at most so many times theirs")
    head(families)
    found = [parity_cases.bfloat16(family) for family in families]
    most = [FAMILIES[family].bfloat16_ratio for family in families]
    ok = [0 < one.ours <= ratio * one.theirs for one, ratio in zip(found, most, strict=True)]
    line("ours in bfloat16", [f"{one.ours:.1e}" for one in found], ok)
    line("transformers in bfloat16", [f"{one.theirs:.1e}" for one in found])
    line("at most", [f"x {ratio:g}" for ratio in most])
    return [
        {"family": family, **dataclasses.asdict(one), "at_most": ratio, "ok": good}
        for family, one, ratio, good in zip(families, found, most, ok, strict=True)
    ]


def measure_mistakes() -> list[dict[str, Any]]:
    """What each mistake does to the logits."""
    say(f"\nWith a mistake made on purpose, at least {FACTOR * BOUND:.0e}")
    control = parity_mutations.CONTROL.error()
    line("none", [f"{control:.1e}"], [control <= BOUND])
    rows = [{"mistake": "none", "family": parity_mutations.CONTROL.family, "difference": control, "ok": control <= BOUND}]
    for name, mutation in MUTATIONS.items():
        error = mutation.error()
        line(name, [f"{error:.1e}", mutation.family], [error >= FACTOR * BOUND, True])
        rows.append({"mistake": name, "family": mutation.family, "difference": error, "ok": error >= FACTOR * BOUND})
    return rows


def head(names: list[str]) -> None:
    """Prints the names of the columns."""
    line("", names)


def line(name: str, cells: list[str], ok: list[bool] | None = None) -> None:
    """Prints a row; a figure out of its bound gets an exclamation mark."""
    marks = ok or [True] * len(cells)
    say(f"{name:34}" + "".join(f"{cell + ('' if good else ' !'):>15}" for cell, good in zip(cells, marks, strict=True)))


def write(path: Path, results: dict[str, Any], seconds: float) -> None:
    """Writes the run as docs/architecture.md, "Results", says."""
    environment = describe_environment(seed=0)
    versions = environment["versions"] | {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    record = {
        "study": "parity",
        "run": path.stem,
        "command": f"make parity PARITY_ARGS=--json={path.as_posix()}",
        "config_diff": {},
        "seed": environment["seed"],
        "commit": environment["commit"],
        "machine": f"{os.cpu_count()} cores, {environment['machine']}, Python {environment['python']}",
        "versions": versions,
        "threads": torch.get_num_threads(),
        "wall_time_s": round(seconds),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
