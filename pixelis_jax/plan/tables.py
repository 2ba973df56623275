"""A plan as text."""

from collections.abc import Mapping
from typing import Any

from pixelis_jax.plan.costs import COLLECTIVES
from pixelis_jax.plan.estimate import gib


def render(plan: Mapping[str, Any]) -> str:
    """Renders a plan: a column a program, then what would help those that do not fit.

    Args:
      plan: what ``pixelis plan --json`` writes.
    """
    programs, slice_ = plan["programs"], plan["topology"]
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1) or "one chip"
    title = f"{plan['config']['model']} on {slice_['name']}: {slice_['chips']} chips of {gib(slice_['hbm'])} GiB, mesh {mesh}"
    rows: list[tuple[str, list[str]]] = [
        ("", [program["name"] for program in programs]),
        ("fits", ["yes" if program["fits"] else "NO" for program in programs]),
        ("memory of a chip, GiB", []),
    ]
    needed = [program["memory"] for program in programs]
    for kind in dict.fromkeys(kind for memory in needed for kind in memory["arguments"]):
        sizes = [memory["arguments"].get(kind) for memory in needed]
        rows.append((f"  {kind}", ["-" if size is None else gib(size) for size in sizes]))
    for kind in ("padding", "temporaries", "outputs", "aliased", "code"):
        rows.append((f"  {kind}", [gib(memory[kind]) for memory in needed]))
    refused = ["" if program["compiled"] else ">= " for program in programs]
    rows.append(("  needed", [sign + gib(memory["total"]) for sign, memory in zip(refused, needed, strict=True)]))
    rows.append(("operations of a step, TFLOP", []))
    for part in ("vision", "layers", "attention", "unembedding", "total"):
        rows.append((f"  {part}", [number(program["flops"][part] / 1e12) for program in programs]))
    made = [program["compiled"] for program in programs]
    rows.append(("  compiled, all chips", [number(costs and costs["flops"] * slice_["chips"] / 1e12) for costs in made]))
    rows.append(("sent by a chip, GiB (how often)", []))
    for kind in COLLECTIVES:
        rows.append((f"  {kind}", [_traffic(costs, kind) for costs in made]))
    rows.append(("HBM read and written, GiB", [gib(costs["hbm_bytes"]) if costs else "-" for costs in made]))
    rows.append(("operations a byte of HBM", [number(program["intensity"]) for program in programs]))
    rows.append(("a step takes at least, ms", []))
    bounds = [program["roofline"] for program in programs]
    for name, label in (("compute_s", "compute"), ("hbm_s", "HBM"), ("ici_s", "ICI"), ("step_s", "all")):
        rows.append((f"  {label}", [number(bound[name] and 1000 * bound[name]) for bound in bounds]))
    rows.append(("MFU at most", ["-" if bound["mfu"] is None else f"{100 * bound['mfu']:.0f} %" for bound in bounds]))
    rows.append(("compiled in, s", [f"{program['lower_s'] + program['compile_s']:.0f}" for program in programs]))

    labels = max(len(label) for label, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows if cells) for column in range(len(programs))]
    lines = [title, ""]
    for label, cells in rows:
        padded = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
        lines.append(f"{label:<{labels}}{padded}".rstrip())
    lines += ["", *(f"{program['name']}: {program['step']}" for program in programs)]
    for program in programs:
        if program["advice"]:
            lines += ["", f"{program['name']} does not fit:", *(f"  {sentence}" for sentence in program["advice"])]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """A number with at least two digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _traffic(costs: Mapping[str, Any] | None, kind: str) -> str:
    if costs is None:
        return "-"
    traffic = costs["collectives"][kind]
    return f"{gib(traffic['sent'])} ({traffic['count']:,})" if traffic["count"] else "0"
