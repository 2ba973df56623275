"""A run's directory."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
from etils import epath
from jax.experimental import multihost_utils

from pixelis_jax.workdir import atomic
from pixelis_jax.workdir.checkpoints import Checkpoints
from pixelis_jax.workdir.errors import WorkdirError
from pixelis_jax.workdir.metrics import MetricsWriter, read_metrics

_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"


class Workdir:
    """A run's directory: ``config.json``, ``environment.json``, metrics and checkpoints.

    Attributes:
      path: the directory.
      config: what ``config.json`` holds.
    """

    def __init__(self, path: epath.PathLike):
        """Opens the directory of an existing run.

        Args:
          path: the directory; ``gs://`` works.

        Raises:
          WorkdirError: not a work directory.
        """
        self.path = epath.Path(path).expanduser()
        if not self.path.is_dir():
            raise WorkdirError(f"{self.path} is not a directory")
        self.config = _read_json(self.path / _CONFIG)

    @classmethod
    def create(
        cls,
        path: epath.PathLike,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        may_differ: Sequence[str] = (),
    ) -> Self:
        """Creates the directory of a run, or opens the one that the same configuration made.

        Args:
          path: the directory; its parents are made.
          config: the configuration, of what JSON can hold.
          environment: `describe_environment`; the first one is kept.
          may_differ: dotted names of the fields that another start of the run may change.

        Returns:
          The work directory.

        Raises:
          WorkdirError: another configuration made it, it holds other files, or JSON cannot hold the configuration.
        """
        path = epath.Path(path).expanduser()
        try:
            config = json.loads(json.dumps(config, allow_nan=False))  # tuples become the lists that a file gives back
        except (TypeError, ValueError) as error:
            raise WorkdirError(f"the configuration cannot be kept in {_CONFIG}: {error}") from error
        if path.exists() and not path.is_dir():
            raise WorkdirError(f"{path} is a file; give a directory")
        # One process looks and writes; the others, which may come later, find what it wrote.
        if jax.process_index() == 0 and not (path / _CONFIG).exists():
            # What an interrupted creation left (environment.json, a temporary file) is no obstacle.
            left = [item.name for item in path.iterdir()] if path.is_dir() else []
            if any(not name.startswith(".") and name != _ENVIRONMENT for name in left):
                raise WorkdirError(f"{path} holds files but no {_CONFIG}: not a work directory; give a new or empty one")
            path.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path / _ENVIRONMENT, environment)
            atomic.write_json(path / _CONFIG, config)  # last: it is what makes the directory a work directory
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("workdir")
        _check_same(path, _read_json(path / _CONFIG), config, may_differ)
        return cls(path)

    @property
    def environment(self) -> dict[str, Any]:
        """What ``environment.json`` holds."""
        return _read_json(self.path / _ENVIRONMENT)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of all closed metrics shards."""
        return read_metrics(self.path)

    def open_metrics(self) -> MetricsWriter:
        """Opens this process's metrics for writing."""
        return MetricsWriter(self.path, process=jax.process_index())

    def open_checkpoints(self, keep: int | None = None, *, read_only: bool = False) -> Checkpoints:
        """Opens the checkpoints.

        Args:
          keep: number of the latest to keep when saving; None keeps all.
          read_only: touches nothing: for a run that may be going on elsewhere.
        """
        path = self.path / "checkpoints"
        # Orbax wants absolute paths.
        return Checkpoints(path if "://" in path.as_posix() else path.resolve(), keep=keep, read_only=read_only)


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names the fields in which two configurations differ.

    Args:
      old: a nested configuration.
      new: another.

    Returns:
      Dotted names, sorted.
    """
    names = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names += [f"{name}.{inner}" for inner in differing_fields(before, after)]
        elif before != after:
            names.append(name)
    return names


_ABSENT = object()


def _check_same(path: epath.Path, old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Sequence[str]) -> None:
    names = [name for name in differing_fields(old, new) if name not in may_differ]
    if names:
        changes = ", ".join(f"{name} ({_look_up(old, name)} -> {_look_up(new, name)})" for name in names)
        raise WorkdirError(f"{path} was made by another config: {changes}; give another directory or the same config")


def _look_up(config: Mapping[str, Any], name: str) -> str:
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return "absent"
        value = value[part]
    return json.dumps(value)


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WorkdirError(f"{path.parent} is not a work directory: it has no {path.name}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkdirError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WorkdirError(f"{path} does not hold a JSON object")
    return value
