"""Back-ends: the engines behind tools (GrabCut, an OCR model, a user's own program), loaded lazily once a worker."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tools_host.registry import Registry

Loader = TypeVar("Loader", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """An engine that a tool may use.

    Attributes:
      tool: Name of the tool that it serves.
      name: Its own name, unique for the tool.
      load: Called once a worker with `ToolsConfig.backend_options`; its result is the tool's `backend` argument.
      version: Changes whenever the same pixels could give another answer.
      weights: Gives the files of its model, none if it has no weights.
    """

    tool: str
    name: str
    load: Callable[..., object]
    version: str
    weights: Callable[..., tuple[Path, ...]] | None = None

    def weights_sha256(self, options: Mapping[str, Any]) -> str | None:
        """Hash over the weight files in order, or None without weights. `options` are those that `load` gets.

        Raises:
          OSError: If a weight file cannot be read.
        """
        if self.weights is None:
            return None
        digest = hashlib.sha256()
        for path in self.weights(**options):
            status = path.stat()
            digest.update(_file_digest(path, status.st_mtime_ns, status.st_size))
        return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


BACKENDS: Registry[Backend] = Registry("back-end")
"""Every back-end under `tool/name`; the first one registered for a tool is its default."""


def backend(
    tool: str, name: str, *, version: str, weights: Callable[..., tuple[Path, ...]] | None = None
) -> Callable[[Loader], Loader]:
    """Registers a loader (a function or a class) as back-end `name` of `tool`.

    Args:
      tool: Name of the tool that it serves.
      name: Name that a config gives for it.
      version: Of the engine and of everything that its answers depend on, weights aside.
      weights: Takes the same options as the loader and gives the weight files.

    Returns:
      A decorator that returns the loader unchanged.
    """

    def add(load: Loader) -> Loader:
        entry = Backend(tool=tool, name=name, load=load, version=version, weights=weights)
        BACKENDS.register(f"{tool}/{name}")(entry)
        return load

    return add


def default_backend(tool: str) -> str | None:
    """Name of the first back-end registered for `tool`, or None if there is none."""
    return next((entry.name for entry in BACKENDS.values() if entry.tool == tool), None)


def accepted_options(entry: Backend) -> tuple[str, ...] | None:
    """Names of the options that a back-end's loader takes; None if it takes any (`**options`)."""
    parameters = inspect.signature(entry.load).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return tuple(parameters)
