"""Typed Python functions as tools: the JSON schema comes from the signature and the Google-style docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from tools_host.protocol import Box, MediaKind, MediaView, RegionView, ToolOutput
from tools_host.registry import Registry

Point = tuple[int, int]
"""x, y in 0..1000, relative to the medium that is named beside it."""

Seconds = Annotated[float, "seconds"]
"""Time from the start of a video, at least 0."""

ArgumentKind = Literal["media", "region", "box", "point", "seconds", "text", "choice", "integer", "number", "boolean"]
ToolFunction = Callable[..., ToolOutput]

INJECTED = ("backend", "rng")
"""Keyword-only parameters that the worker fills in and the model never sees."""

REPLACED_BY_REGION = ("media", "bbox_2d", "time_s")
"""Arguments that a `region` stands in for, in every tool that takes `media` and `bbox_2d`."""

_KINDS: tuple[tuple[Any, ArgumentKind], ...] = (
    (MediaView, "media"),
    (RegionView, "region"),
    (Box, "box"),
    (Point, "point"),
    (Seconds, "seconds"),
    (str, "text"),
    (int, "integer"),
    (float, "number"),
    (bool, "boolean"),
)
_COORDINATE = {"type": "integer", "minimum": 0, "maximum": 1000}
_JSON_TYPES: Mapping[ArgumentKind, Mapping[str, Any]] = {
    "media": {"type": "integer", "minimum": 1},
    "region": {"type": "integer", "minimum": 1},
    "box": {"type": "array", "items": _COORDINATE, "minItems": 4, "maxItems": 4},
    "point": {"type": "array", "items": _COORDINATE, "minItems": 2, "maxItems": 2},
    "seconds": {"type": "number", "minimum": 0},
    "text": {"type": "string"},
    "choice": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument that the model may give; `choices` are the values of a `Literal`."""

    name: str
    kind: ArgumentKind
    description: str
    required: bool
    choices: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """JSON schema of the value."""
        schema: dict[str, Any] = dict(_JSON_TYPES[self.kind])
        if self.choices:
            schema["enum"] = list(self.choices)
        return schema | {"description": self.description}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A registered tool.

    Attributes:
      name: What the model writes in a call.
      function: Runs inside a worker, with media and regions opened.
      paper: The operation's name in the paper.
      version: Changes whenever the same call could give another answer.
      description: Docstring up to `Args`.
      arguments: What the model may give, in order; a `region` that stands in for a box is last.
      injected: Those of `backend` and `rng` that the function takes.
      kinds: Kinds of medium that it works on.
      stands_in: Whether `region` is resolved to `media`, `bbox_2d` and `time_s` before the function sees it.
      checks: Name of the tool whose results it checks, with that tool's back-end and options; no agent is offered it. None for
        every other tool.
    """

    name: str
    function: ToolFunction
    paper: str
    version: str
    description: str
    arguments: tuple[Argument, ...]
    injected: tuple[str, ...]
    kinds: tuple[MediaKind, ...]
    stands_in: bool
    checks: str | None = None

    @property
    def engine(self) -> str:
        """Name of the tool that the back-end and its options are configured for."""
        return self.checks or self.name

    def argument(self, name: str) -> Argument | None:
        """The argument called `name`, or None."""
        return next((argument for argument in self.arguments if argument.name == name), None)

    def schema(self) -> dict[str, Any]:
        """The tool as the published chat templates list it: `{"type": "function", "function": {...}}`."""
        replaced = REPLACED_BY_REGION if self.stands_in else ()
        parameters = {
            "type": "object",
            "properties": {argument.name: argument.schema() for argument in self.arguments},
            "required": [a.name for a in self.arguments if a.required and a.name not in replaced],
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def argument_schemas(self) -> list[dict[str, Any]]:
        """JSON schemas of the arguments object, of which one holds for arguments that `arguments.check` takes: with a box, or
        with a region in its place. They are stricter than `schema`, which a model reads and which has to be short."""

        def schema(left_out: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
            taken = [argument for argument in self.arguments if argument.name not in left_out]
            return {
                "type": "object",
                "properties": {argument.name: argument.schema() for argument in taken},
                "required": [a.name for a in taken if a.required and a.name not in REPLACED_BY_REGION or a.name in required],
                "additionalProperties": False,
            }

        needed = tuple(a.name for a in self.arguments if a.required)
        if not self.stands_in:
            return [schema((), needed)]
        return [schema(("region",), needed), schema(("media", "bbox_2d", "point_2d"), ("region",))]


TOOLS: Registry[Tool] = Registry("tool")
"""Every tool by the name that the model writes."""


def tool(
    *, paper: str, version: str, kinds: tuple[MediaKind, ...] = ("image", "video"), checks: str | None = None
) -> Callable[[ToolFunction], ToolFunction]:
    """Registers a typed function in `TOOLS` under its own name.

    Every parameter needs an annotation out of `MediaView`, `RegionView`, `Box`, `Point`, `Seconds`, `str`,
    `Literal[...]` of strings, `int`, `float`, `bool` (or one of them `| None = None`) and a line under `Args:`. The
    keyword-only parameters `backend` (the loaded back-end) and `rng` (a `numpy.random.Generator` seeded from the call)
    are filled in by the worker. A tool with `media` and `bbox_2d` and no `region` of its own also accepts `region` in
    their place.

    Args:
      paper: The operation's name in the paper, e.g. `ZOOM`.
      version: Changes whenever the same call could give another answer.
      kinds: Kinds of medium that the tool works on; others give `wrong_kind`.
      checks: Name of the tool whose results this one checks; it shares that one's back-end, and is not for agents.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      TypeError: If a schema cannot be made from the signature and the docstring.
    """

    def add(function: ToolFunction) -> ToolFunction:
        described = describe(function, paper=paper, version=version, kinds=kinds)
        TOOLS.register(function.__name__)(dataclasses.replace(described, checks=checks))
        return function

    return add


def describe(function: ToolFunction, *, paper: str, version: str, kinds: tuple[MediaKind, ...]) -> Tool:
    """Reads a function's signature and docstring; see `tool` for the arguments and the error."""
    name = function.__name__
    description, texts = parse_docstring(inspect.getdoc(function) or "")
    if not description:
        raise TypeError(f"tool {name!r} needs a docstring: it is what the model reads")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {name!r}: {error}; import it outside `if TYPE_CHECKING`") from error
    parameters = inspect.signature(function).parameters
    injected = tuple(key for key in INJECTED if key in parameters)
    for key in injected:
        if parameters[key].kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"parameter {key!r} of tool {name!r} must be keyword-only: the worker fills it in")
    arguments = [_argument(name, parameter, hints, texts) for parameter in parameters.values() if parameter.name not in INJECTED]
    stray = sorted(set(texts) - {argument.name for argument in arguments} - set(INJECTED))
    if stray:
        raise TypeError(f"the docstring of tool {name!r} describes {', '.join(stray)}, which it does not take")
    names = {argument.name for argument in arguments}
    stands_in = {"media", "bbox_2d"} <= names and "region" not in names
    if stands_in:
        text = "A region found before, in place of media and bbox_2d."
        arguments.append(Argument(name="region", kind="region", description=text, required=False))
    return Tool(
        name=name,
        function=function,
        paper=paper,
        version=version,
        description=description,
        arguments=tuple(arguments),
        injected=injected,
        kinds=kinds,
        stands_in=stands_in,
    )


def _argument(tool_name: str, parameter: inspect.Parameter, hints: Mapping[str, Any], texts: Mapping[str, str]) -> Argument:
    where = f"parameter {parameter.name!r} of tool {tool_name!r}"
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise TypeError(f"{where} must be an ordinary parameter: others (*args, **kwargs) have no schema")
    if parameter.name not in hints:
        raise TypeError(f"{where} needs a type annotation")
    if parameter.name not in texts:
        raise TypeError(f"{where} needs a line under 'Args:' in the docstring")
    hint, optional = _strip_optional(hints[parameter.name])
    has_default = parameter.default is not inspect.Parameter.empty
    if optional and not has_default:
        raise TypeError(f"{where} may be None, so it needs the default None")
    kind, choices = _kind(hint, where)
    return Argument(
        name=parameter.name,
        kind=kind,
        description=texts[parameter.name],
        required=not has_default,
        choices=choices,
    )


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    rest = [option for option in typing.get_args(hint) if option is not type(None)]
    return (rest[0], True) if len(rest) == 1 else (hint, False)


def _kind(hint: Any, where: str) -> tuple[ArgumentKind, tuple[str, ...]]:
    if typing.get_origin(hint) is Literal and all(isinstance(value, str) for value in typing.get_args(hint)):
        return "choice", typing.get_args(hint)
    for known, kind in _KINDS:
        if hint == known:
            return kind, ()
    names = "MediaView, RegionView, Box, Point, Seconds, str, Literal of strings, int, float, bool"
    raise TypeError(f"{where} has the type {hint!r}; known are {names}, each also '| None = None'")


def parse_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Splits a Google-style docstring.

    Returns:
      The text before the first section as one line, and each argument's text as one line.
    """
    sections = re.split(r"^(Args|Returns|Raises|Yields|Note|Example):\s*$", doc, flags=re.MULTILINE)
    arguments: dict[str, list[str]] = {}
    body = sections[sections.index("Args") + 1] if "Args" in sections else ""
    lines = [line for line in body.splitlines() if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    current = ""
    for line in lines:
        head = re.match(r"(\w+)(?: \([^)]*\))?:\s*(.*)", line[margin:])
        if head:
            current = head[1]
            arguments[current] = [head[2].strip()]
        elif current:
            arguments[current].append(line.strip())
    return " ".join(sections[0].split()), {name: " ".join(text).strip() for name, text in arguments.items()}
