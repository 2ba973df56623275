"""Tables from result files of any nesting: rows by name, lists of rows, or plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_ROWS = 100
"""Longer lists are outcomes of single items; they belong to the file, not to the page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of printed cells; `numeric` says which columns are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


def tables(title: str, value: Any) -> Iterator[Table]:
    """Yields the tables in a JSON value: `[{column: x}]`, `{row: {column: x}}` or `{name: x}`, at any depth."""
    if isinstance(value, list):
        if 0 < len(value) <= MAX_ROWS and all(_is_row(item) for item in value):
            yield _table(title, [(None, row) for row in value])
        return
    if not isinstance(value, dict):
        return
    plain = {name: item for name, item in value.items() if _is_cell(item)}
    rows = {name: item for name, item in value.items() if isinstance(item, dict) and item and _is_row(item)}
    same = len(rows) > 1 and len({tuple(row) for row in rows.values()}) == 1
    if same:
        yield _table(title, list(rows.items()))
    for name, item in value.items():
        if not _is_cell(item) and not (same and name in rows):
            yield from tables(f"{title} · {name}", item)
    if plain:
        yield _table(title, [(name, {"value": item}) for name, item in plain.items()])


def cell(value: Any) -> str:
    """Prints a value: fractions with three decimals, `[low, high]` as an interval."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 1000 or 0 < abs(value) < 0.001 else f"{value:.3f}"
    if isinstance(value, list):
        return f"[{cell(value[0])}, {cell(value[1])}]"
    return str(value)


def _table(title: str, rows: Sequence[tuple[str | None, Mapping[str, Any]]]) -> Table:
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    named = any(name is not None for name, _ in rows)
    values = [[*([name] if named else []), *(row.get(column) for column in names)] for name, row in rows]
    columns = [*([""] if named else []), *names]
    numeric = tuple(all(_is_number(row[index]) for row in values) for index in range(len(columns)))
    printed = tuple(tuple(cell(item) for item in row) for row in values)
    return Table(title=title, columns=tuple(columns), rows=printed, numeric=numeric)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_cell(item) for item in value.values())


def _is_cell(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, str | int | float) or pair


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float | list)
