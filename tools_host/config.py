"""Which tools an agent has, on which back-ends."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from tools_host.backend import BACKENDS, Backend, accepted_options, default_backend
from tools_host.dialect import QWEN_ZOOM
from tools_host.protocol import ToolFailure
from tools_host.schema import TOOLS, Tool

Dialect = Literal["native", "qwen3_vl"]


class ToolVersion(TypedDict):
    """Which implementation of a tool answers."""

    backend: str
    version: str
    weights_sha256: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    """Plain data: it pickles, so that every worker gets the same one.

    Attributes:
      tools: Names of the tools offered, in this order.
      backends: Back-end by tool, where it is not the default (the first one registered).
      backend_options: Keyword arguments of a back-end's loader, by tool.
      imports: Modules of the user's own that register tools or back-ends; imported here and in every worker.
      dialect: `qwen3_vl` also offers the zoom call that released checkpoints know.
      boxes_in_text: Whether observations print boxes and not only texts, times and ids.
      max_lines: Most lines of an observation's text.
      max_chars: Most characters of an observation's text.
      cache_bytes: Ceiling of decoded pixels, in each worker and in each environment's store.
    """

    tools: tuple[str, ...] = ("zoom", "segment", "track", "ocr", "localize", "properties")
    backends: Mapping[str, str] = dataclasses.field(default_factory=dict)
    backend_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    imports: tuple[str, ...] = ()
    dialect: Dialect = "native"
    boxes_in_text: bool = True
    max_lines: int = 24
    max_chars: int = 2000
    cache_bytes: int = 512 * 2**20

    def load(self) -> None:
        """Imports what registers tools, and checks every name in the config.

        Raises:
          UnknownNameError: For a tool or back-end that does not exist.
          ImportError: For a module in `imports` that cannot be imported.
          ValueError: For options that the back-end does not take.
        """
        for module in ("tools_host.tools", *self.imports):
            importlib.import_module(module)
        for name in {*self.tools, *self.backends, *self.backend_options}:
            self._check(TOOLS[name])

    def _check(self, tool: Tool) -> None:
        entry = self.backend(tool.name)
        options = self.options(tool.name)
        if entry is None:
            if options:
                raise ValueError(f"tool {tool.name!r} has no back-end, so it takes no options")
            return
        known = accepted_options(entry)
        unknown = [] if known is None else sorted(set(options) - set(known))
        if unknown:
            names = ", ".join(known or ()) or "none"
            raise ValueError(f"back-end {entry.name!r} of {tool.name!r} has no option {unknown[0]!r} (known: {names})")

    def tool(self, name: str) -> Tool:
        """The tool called `name`.

        Raises:
          ToolFailure: With `unknown_tool`, if it is not offered.
        """
        if name not in self.tools:
            raise ToolFailure("unknown_tool", f"there is no tool {name!r}", f"the tools are {', '.join(self.tools)}")
        return TOOLS[name]

    def backend(self, tool_name: str) -> Backend | None:
        """The back-end chosen for a tool, None for a tool that has none.

        Raises:
          UnknownNameError: If the config names one that does not exist.
        """
        engine = TOOLS[tool_name].engine
        name = self.backends.get(engine, default_backend(engine))
        return None if name is None else BACKENDS[f"{engine}/{name}"]

    def options(self, tool_name: str) -> Mapping[str, Any]:
        """Keyword arguments for the loader of a tool's back-end."""
        return self.backend_options.get(TOOLS[tool_name].engine, {})

    def backend_name(self, tool_name: str) -> str:
        """Name of the chosen back-end, `builtin` for a tool that has none."""
        entry = self.backend(tool_name)
        return "builtin" if entry is None else entry.name

    def version(self, tool_name: str) -> str:
        """Version of a tool together with that of its back-end and its options."""
        entry = self.backend(tool_name)
        if entry is None:
            return TOOLS[tool_name].version
        # Where a user's interpreter lies changes no answer, and differs between machines.
        options = {key: value for key, value in self.options(tool_name).items() if key != "python"}
        suffix = f"+{_digest(options)[:8]}" if options else ""
        return f"{TOOLS[tool_name].version}+{entry.version}{suffix}"

    def schemas(self) -> list[dict[str, Any]]:
        """JSON schemas of the tools offered, the dialect's own last."""
        extra = [QWEN_ZOOM.schema()] if self.dialect == "qwen3_vl" else []
        return [TOOLS[name].schema() for name in self.tools] + extra

    def call_schema(self) -> dict[str, Any]:
        """JSON schema of a whole call, `{"name": ..., "arguments": {...}}`: what is right in any episode, whatever its media."""
        tools = [TOOLS[name] for name in self.tools] + ([QWEN_ZOOM] if self.dialect == "qwen3_vl" else [])
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
            for arguments in tool.argument_schemas()
        ]
        return {"anyOf": calls}

    def tool_versions(self) -> dict[str, ToolVersion]:
        """`{name: {"backend", "version", "weights_sha256"}}`, the `tools` field of a trajectory."""
        return {
            name: {
                "backend": self.backend_name(name),
                "version": self.version(name),
                "weights_sha256": self._weights_sha256(name),
            }
            for name in self.tools
        }

    def _weights_sha256(self, tool_name: str) -> str | None:
        entry = self.backend(tool_name)
        return None if entry is None else entry.weights_sha256(self.options(tool_name))

    @functools.cached_property
    def key(self) -> str:
        """Hash of the whole config; equal configs have equal keys in every process."""
        return _digest(dataclasses.asdict(self))

    def __hash__(self) -> int:
        return hash(self.key)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
