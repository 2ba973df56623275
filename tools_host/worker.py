"""Inside a worker: media are opened, the back-end is loaded, the tool runs, every failure becomes a `ToolError`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tools_host.config import ToolsConfig
from tools_host.media import MediaError, MediaStore
from tools_host.protocol import MediaSpec, RegionSpec, ToolError, ToolFailure, ToolOutput, ToolRequest
from tools_host.schema import TOOLS, Tool

_log = logging.getLogger(__name__)


class Worker:
    """Runs checked calls one after another in the process that it lives in.

    Args:
      config: Tools and back-ends; its imports are made here.
    """

    def __init__(self, config: ToolsConfig) -> None:
        config.load()
        self._config = config
        self._store = MediaStore(config.cache_bytes)
        self._backends: dict[str, object] = {}

    def execute(self, request: ToolRequest) -> ToolOutput | ToolError:
        """Runs one call. Nothing is raised: a failure of the tool's own code becomes `worker_lost` and is logged."""
        try:
            tool = TOOLS[request.tool]
            arguments = {name: self._opened(value) for name, value in request.arguments.items()}
            output = tool.function(**arguments, **self._injected(tool, request))
            if not isinstance(output, ToolOutput):
                raise TypeError(f"tool {tool.name!r} returned {type(output).__name__}, not ToolOutput")
            return output
        except ToolFailure as failure:
            return failure.error
        except MediaError as error:
            return ToolError(code="unreadable", message=str(error))
        except Exception as error:
            if _is_out_of_memory(error):
                message = f"{request.tool} needs more memory than a worker may use"
                return ToolError(code="out_of_memory", message=message)
            _log.exception("tool %r failed", request.tool)
            return ToolError(code="worker_lost", message=f"{request.tool} failed: {type(error).__name__}: {error}")

    def _opened(self, value: Any) -> Any:
        if isinstance(value, MediaSpec):
            return self._store.open(value)
        if isinstance(value, RegionSpec):
            return self._store.open_region(value)
        return value

    def _injected(self, tool: Tool, request: ToolRequest) -> Mapping[str, Any]:
        made: dict[str, Any] = {}
        if "backend" in tool.injected:
            made["backend"] = self._backend(tool)
        if "rng" in tool.injected:
            made["rng"] = np.random.default_rng(int(request.key[:16], 16))
        return made

    def _backend(self, tool: Tool) -> object:
        if tool.engine not in self._backends:
            entry = self._config.backend(tool.name)
            if entry is None:
                raise LookupError(f"tool {tool.name!r} needs a back-end and none is registered for it")
            self._backends[tool.engine] = entry.load(**self._config.options(tool.name))
        return self._backends[tool.engine]


def _is_out_of_memory(error: Exception) -> bool:
    # OpenCV and onnxruntime report a failed allocation as an error class of their own.
    return isinstance(error, MemoryError) or "insufficient memory" in str(error).lower() or "bad_alloc" in str(error)
