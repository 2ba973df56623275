"""Reads an ml_collections config file with `--config.x=y` changes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load_config(path: Path, overrides: Sequence[str]) -> ConfigDict:
    """Runs a config file and applies changes.

    Args:
      path: A Python file with `get_config()`.
      overrides: `--config.field=value`, as on the command line.

    Raises:
      UserError: The file is missing or has no `get_config`, a field does not exist (the nearest one is named), or a
        value has the wrong type.
    """
    from absl import flags
    from ml_collections import ConfigDict
    from ml_collections.config_flags import config_flags

    if not path.is_file():
        raise UserError(f"--config: no such file: {path}")
    values = flags.FlagValues()
    arguments = ["pixelis", f"--config={path}", *overrides]
    # The private FlagValues sees `--config.x` only through sys_argv.
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = values.config
    except AttributeError as error:
        raise UserError(_unknown_field(path, overrides) or f"{path}: {error}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}, expected a ConfigDict")
    return config


def _unknown_field(path: Path, overrides: Sequence[str]) -> str | None:
    """Names the first override whose field the file does not have, and the nearest that it has."""
    plain = load_config(path, ())
    known = _fields(plain.to_dict())
    for override in overrides:
        field = override.removeprefix("--config.").partition("=")[0]
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            return f"{path} has no field {field!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return None


def _fields(config: dict, prefix: str = "") -> list[str]:  # type: ignore[type-arg]
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, dict):
            names += _fields(value, f"{prefix}{name}.")
    return names
