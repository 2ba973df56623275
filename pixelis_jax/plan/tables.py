"""A plan as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixelis_jax.plan.costs import COLLECTIVES
from pixelis_jax.plan.estimate import gib

Record = Mapping[str, Any]


def render(plan: Record) -> str:
    """Renders a plan: a column a program, then what would help those that do not fit.

    Args:
      plan: what ``pixelis plan --json`` writes.
    """
    programs, slice_ = plan["programs"], plan["topology"]
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1) or "one chip"
    title = f"{plan['config']['model']} on {slice_['name']}: {slice_['chips']} chips of {gib(slice_['hbm'])} GiB, mesh {mesh}"
    rows: list[tuple[str, Sequence[str]]] = [("", [program["name"] for program in programs])]

    def row(label: str, cell: Callable[[Record], str]) -> None:
        rows.append((label, [cell(program) for program in programs]))

    def heading(label: str) -> None:
        rows.append((label, [""] * len(programs)))

    row("fits", lambda program: "yes" if program["fits"] else "NO")
    heading("memory of a chip, GiB")
    for kind in dict.fromkeys(kind for program in programs for kind in program["memory"]["arguments"]):
        row(f"  {kind}", lambda program, kind=kind: _size(program["memory"]["arguments"].get(kind)))
    for kind in ("padding", "temporaries", "outputs", "aliased", "code"):
        row(f"  {kind}", lambda program, kind=kind: _size(program["memory"][kind]))
    row("  needed", lambda program: ("" if program["compiled"] else ">= ") + gib(program["memory"]["total"]))
    heading("operations of a step, TFLOP")
    for part in ("vision", "layers", "attention", "unembedding", "total"):
        row(f"  {part}", lambda program, part=part: _number(program["flops"][part] / 1e12))
    row("  compiled, all chips", lambda program: _of(program, lambda made: made["flops"] * slice_["chips"] / 1e12))
    heading("sent by a chip, GiB (how often)")
    for kind in COLLECTIVES:
        row(f"  {kind}", lambda program, kind=kind: _traffic(program, kind))
    row("HBM read and written, GiB", lambda program: gib(program["compiled"]["hbm_bytes"]) if program["compiled"] else "-")
    row("operations a byte of HBM", lambda program: _number(program["intensity"]))
    heading("a step takes at least, ms")
    for name, label in (("compute_s", "compute"), ("hbm_s", "HBM"), ("ici_s", "ICI"), ("step_s", "all")):
        row(f"  {label}", lambda program, name=name: _milliseconds(program["roofline"][name]))
    row("MFU at most", lambda program: f"{100 * program['roofline']['mfu']:.0f} %")
    row("compiled in, s", lambda program: f"{program['lower_s'] + program['compile_s']:.0f}")

    label_width = max(len(label) for label, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(programs))]
    lines = [title, ""]
    for label, cells in rows:
        padded = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{label:<{label_width}}{padded}".rstrip())
    lines += ["", *(f"{program['name']}: {program['step']}" for program in programs)]
    for program in programs:
        if program["advice"]:
            lines += ["", f"{program['name']} does not fit:", *(f"  {sentence}" for sentence in program["advice"])]
    return "\n".join(lines)


def _size(value: int | None) -> str:
    return "-" if value is None else gib(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else _number(1000 * value)


def _of(program: Record, figure: Callable[[Record], float]) -> str:
    return _number(figure(program["compiled"])) if program["compiled"] else "-"


def _traffic(program: Record, kind: str) -> str:
    if not program["compiled"]:
        return "-"
    traffic = program["compiled"]["collectives"][kind]
    return f"{gib(traffic['sent'])} ({traffic['count']})" if traffic["count"] else "0"
