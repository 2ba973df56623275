"""A sweep's config file as named runs, each checked as its command would check it."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelis_jax.commands import models
from pixelis_jax.commands.configs import load_config
from pixelis_jax.commands.errors import UserError
from tools_host.registry import UnknownNameError, did_you_mean

COMMANDS = ("train", "eval")
MODEL = "model"
"""Of `eval`: the override that is no field of the config, but the model to evaluate."""

_FIELDS = {"command": str, "base": str, "fixed": Mapping, "axes": Mapping}
_SAFE = re.compile(r"[\w.+-]+", re.ASCII)
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep runs.

    Attributes:
      command: `train` or `eval`.
      base: The config file that every run starts from.
      runs: By name, as `variant=answer_only,seed=0`: the fields that a run changes, by dotted name, and the values as text.
    """

    command: str
    base: str
    runs: Mapping[str, Mapping[str, str]]

    def arguments(self, name: str, directory: Path) -> tuple[str, ...]:
        """Arguments of `pixelis` for a run in `directory/name`."""
        changes = dict(self.runs[name])
        model = (f"--model={changes.pop(MODEL)}",) if self.command == "eval" else ()
        overrides = (f"--config.{field}={value}" for field, value in changes.items())
        return (self.command, f"--config={self.base}", *model, f"--workdir={directory / name}", *overrides)


def read_sweep(path: Path, overrides: Sequence[str]) -> Sweep:
    """Reads a sweep's config file and multiplies its axes out, the last one changing fastest.

    Args:
      path: A Python file with `get_config()`; what it returns holds `command`, `base`, `fixed` and `axes`.
      overrides: `--config.field=value`, as on the command line.

    Raises:
      UserError: The file cannot be read, a field is missing, of another kind or not known, a name cannot stand in a directory's
        name, or two axes change the same field.
    """
    config = load_config(path, overrides).to_dict()
    for name in config:
        if name not in _FIELDS:
            raise UserError(f"{path}: the field {name!r} is not known{did_you_mean(name, _FIELDS)}")
    for name, kind in _FIELDS.items():
        if name not in config:
            raise UserError(f"{path} has no field {name!r}, which a sweep needs")
        if not isinstance(config[name], kind):
            raise UserError(f"{path}: {name} is {config[name]!r}, expected {'text' if kind is str else 'a dict'}")
    if config["command"] not in COMMANDS:
        raise UserError(f"{path}: command is {config['command']!r}, expected one of {', '.join(COMMANDS)}")
    if not Path(config["base"]).is_file():
        raise UserError(f"{path}: base: no such file: {config['base']}")
    fixed = _changes(path, "fixed", config["fixed"])
    axes = [_axis(path, name, variants) for name, variants in config["axes"].items()]
    if not axes:
        raise UserError(f"{path}: axes is empty: nothing to run")
    runs = {}
    for point in itertools.product(*axes):
        name = ",".join(label for label, _ in point)
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{path}: a directory's name cannot be as long as {name}")
        runs[name] = _joined(path, [("fixed", fixed), *point])
    return Sweep(command=config["command"], base=config["base"], runs=runs)


def check_runs(path: Path, sweep: Sweep) -> None:
    """Raises UserError for the first run that its command would refuse, with the command's own words.

    No device is touched: one that this process held would be missing to the runs. What depends on devices (the mesh) and on what
    other runs may yet write is for the run itself to refuse.

    Args:
      path: Of the sweep's config, for messages.
      sweep: What it gave.
    """
    check_config = importlib.import_module(f"pixelis_jax.commands.{sweep.command}").check_config
    for name, changes in sweep.runs.items():
        fields = [f"--config.{field}={value}" for field, value in changes.items() if (sweep.command, field) != ("eval", MODEL)]
        try:
            if sweep.command == "eval" and MODEL not in changes:
                raise UserError(f"no {MODEL!r} among its changes, and nothing to evaluate without one")
            config = load_config(Path(sweep.base), fields)
            check_config(Path(sweep.base), config)
            model = changes[MODEL] if sweep.command == "eval" else config.init_from
            if model and not Path(model).exists():
                models.locate(model)
        except (UserError, UnknownNameError) as error:
            raise UserError(f"{path}: {name}: {error}") from error


def _axis(path: Path, axis: str, variants: Any) -> list[tuple[str, dict[str, str]]]:
    """Each variant of an axis as (`axis=label`, changes)."""
    if not isinstance(variants, Mapping) or not variants:
        raise UserError(f"{path}: axes.{axis} is {variants!r}, expected a dict of variants")
    found = []
    for label, changes in variants.items():
        for word in (axis, str(label)):
            if not _SAFE.fullmatch(word):
                allowed = "letters, digits and . _ + -"
                raise UserError(f"{path}: axes.{axis}: {word!r} cannot stand in a directory's name; take {allowed}")
        found.append((f"{axis}={label}", _changes(path, f"axes.{axis}.{label}", changes)))
    return found


def _changes(path: Path, where: str, changes: Any) -> dict[str, str]:
    """The fields that a variant changes, by dotted name, as the command line takes them."""
    if not isinstance(changes, Mapping):
        raise UserError(f"{path}: {where} is {changes!r}, expected a dict of fields")
    return {field: _as_text(path, f"{where}: {field}", value) for field, value in _leaves(changes)}


def _leaves(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_text(path: Path, where: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return repr(tuple(value))
    raise UserError(f"{path}: {where} is {value!r}, expected a number, text, true or false, or a sequence")


def _joined(path: Path, parts: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """All changes of a run; a field that two parts change would hide one of them."""
    changes: dict[str, str] = {}
    origin: dict[str, str] = {}
    for where, part in parts:
        for field, value in part.items():
            if field in origin:
                raise UserError(f"{path}: {origin[field]} and {where} both change {field!r}")
            changes[field], origin[field] = value, where
    return changes
