"""Reads an ml_collections config file with `--config.x=y` changes."""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError
from tools_host.registry import did_you_mean

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_FREE = ("counts", "styles", "answer_only")
_KINDS = (
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "text"),
    (Mapping, "a dict"),
    (list | tuple, "a sequence"),
)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declares `--config`; the command line keeps `--config.x=y` in `args.overrides`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="a Python file with get_config(); --config.FIELD=VALUE changes a field",
    )


def load_config(path: Path, overrides: Sequence[str]) -> ConfigDict:
    """Runs a config file and applies changes.

    Args:
      path: A Python file with `get_config()`.
      overrides: `--config.field=value`, as on the command line.

    Raises:
      UserError: The file is missing or has no `get_config`, a field does not exist (the nearest one is named), or a
        value has the wrong type; or the file itself fails.
    """
    from absl import flags
    from ml_collections.config_flags import config_flags

    config = _run(path)
    values = flags.FlagValues()
    arguments = ["pixelis", *overrides]
    try:
        # The private FlagValues sees `--config.x` only through sys_argv.
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (AttributeError, KeyError) as error:  # KeyError: the part before a dot
        raise UserError(_unknown_field(path, config, overrides) or f"{path}: {error}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return values.config


def _run(path: Path) -> ConfigDict:
    """Runs a config file in a namespace of its own, and returns what its `get_config()` gives."""
    from ml_collections import ConfigDict

    if not path.is_file():
        raise UserError(f"--config: no such file: {path}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # the file is the user's own program, which can raise anything
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if get_config is None:
        raise UserError(f"{path} has no function get_config()")
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}, expected a ConfigDict")
    return config


def check_fields(path: Path, config: ConfigDict, like: ConfigDict) -> None:
    """Checks that a config has the fields of a shipped one and no others, with values of the same kind.

    Args:
      path: Of the config file, for messages.
      config: What it gave.
      like: A shipped config; of `counts`, `styles` and `answer_only` the keys are free, and what is None there may be anything.

    Raises:
      UserError: Names the first field that is missing, of another kind or not known; of the last, the nearest that is.
    """
    found, known = flat(config.to_dict()), flat(like.to_dict())
    for name, example in known.items():
        if is_free(name):
            continue
        if name not in found:
            raise UserError(f"{path} has no field {name!r}, which this command needs")
        if example is not None and _kind(found[name]) != _kind(example):
            raise UserError(f"{path}: {name} is {found[name]!r}, expected {_kind(example)}")
    for name in found:
        if name not in known and not is_free(name):
            raise UserError(f"{path}: the field {name!r} is not known{did_you_mean(name, known)}")


def is_free(name: str) -> bool:
    """Whether a dotted name is one of those that a config may choose."""
    return bool(set(name.split(".")[:-1]) & set(_FREE))


def _kind(value: object) -> str:
    for kind, words in _KINDS:
        if isinstance(value, kind):
            return words
    return type(value).__name__


def _unknown_field(path: Path, config: ConfigDict, overrides: Sequence[str]) -> str | None:
    """Names the first override whose field the file does not have, and the nearest that it has."""
    known = flat(config.to_dict())
    for override in overrides:
        field = override.removeprefix("--config.").partition("=")[0]
        if field not in known:
            return f"{path} has no field {field!r}{did_you_mean(field, known)}"
    return None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted name, those that hold others included."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields[prefix + name] = value
        if isinstance(value, Mapping):
            fields |= flat(value, f"{prefix}{name}.")
    return fields
