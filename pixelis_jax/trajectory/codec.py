"""Dataclasses to JSON and back, strictly, and their JSON Schema: all three from the same type hints, so that they
cannot disagree.

A dataclass is an object with exactly its fields (those with a default may be left out), a tuple is an array, `float`
takes any finite number, `int` takes no float and no boolean, and `Any` is any JSON value.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any

from pixelis_jax.trajectory.errors import TrajectoryError

MAX_DEPTH = 100
"""Most objects and arrays inside one another: what walks a value calls itself for each."""

_SCALARS: dict[Any, tuple[type | tuple[type, ...], str]] = {
    str: (str, "a string"),
    bool: (bool, "true or false"),
    int: (int, "an integer"),
    float: ((int, float), "a number"),
}
_SCHEMA_TYPES = {type(None): "null", str: "string", bool: "boolean", int: "integer", float: "number"}


def to_json(value: Any) -> Any:
    """A JSON value for a dataclass, or for anything made of dataclasses, mappings, sequences and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(hint: Any, value: Any, path: str = "") -> Any:
    """Reads a value of type `hint`.

    Args:
      hint: A dataclass, or a type hint of one's field.
      value: As `json.loads` gives it.
      path: Name of the value, for messages.

    Raises:
      TrajectoryError: names the field, what stands there and what was expected.
    """
    if dataclasses.is_dataclass(hint):
        return _read_object(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [option for option in arguments if option is not type(None)]
        return from_json(inner[0], value, path)
    if origin is typing.Literal:
        return _expect(isinstance(value, str) and value in arguments, value, path, "one of " + ", ".join(arguments))
    if origin is tuple:
        return _read_tuple(arguments, value, path)
    if origin is not None:  # Mapping[str, X]
        _expect(isinstance(value, dict), value, path, "an object")
        return {key: from_json(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    kind, words = _SCALARS[hint]
    _expect(isinstance(value, kind) and (hint is bool or not isinstance(value, bool)), value, path, words)
    return _finite(value, path) if hint is float else value


def unwritable(value: Any, depth: int = 0) -> str | None:
    """Why a parsed JSON value cannot be written again, or None: Python reads more than a file of UTF-8 can hold."""
    if isinstance(value, str):
        return None if is_text(value) else "half of a surrogate pair stands in a string"
    if not isinstance(value, dict | list):
        return None
    if depth == MAX_DEPTH:
        return f"more than {MAX_DEPTH} objects and arrays stand inside one another"
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return next((problem for item in items if (problem := unwritable(item, depth + 1))), None)


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: no half of a surrogate pair stands in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a type hint; those of dataclasses are put into `definitions` and referred to."""
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name].update(_object_schema(hint, definitions))
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [json_schema(option, definitions) for option in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": json_schema(arguments[0], definitions)}
    if origin is tuple:
        items = [json_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is not None:
        return {"type": "object", "additionalProperties": json_schema(arguments[1], definitions)}
    return {} if hint is Any else {"type": _SCHEMA_TYPES[hint]}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read_object(cls: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), value, path, "an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(value) - set(fields)):
        raise TrajectoryError(f"{_join(path, unknown[0])}: unknown field")
    required = [name for name, field in fields.items() if not _has_default(field)]
    if missing := [name for name in required if name not in value]:
        raise TrajectoryError(f"{_join(path, missing[0])}: missing")
    hints = _hints(cls)
    read = {name: from_json(hints[name], item, _join(path, name)) for name, item in value.items()}
    try:
        return cls(**read)
    except ValueError as error:
        raise TrajectoryError(f"{path}: {error}" if path else str(error)) from error


def _read_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, path, "an array")
    if arguments[-1] is Ellipsis:
        return tuple(from_json(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    _expect(len(value) == len(arguments), value, path, f"an array of {len(arguments)}")
    return tuple(
        from_json(argument, item, f"{path}[{index}]") for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
    )


def _object_schema(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, fields = _hints(cls), dataclasses.fields(cls)
    return {
        "type": "object",
        "properties": {field.name: json_schema(hints[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if not _has_default(field)],
        "additionalProperties": False,
    }


def _finite(value: float, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    _expect(math.isfinite(number), value, path, "a finite number")
    return number


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _expect(ok: bool, value: Any, path: str, words: str) -> Any:
    if not ok:
        shown = textwrap.shorten(repr(value), 60, placeholder="...")
        raise TrajectoryError(f"{path or 'value'}: expected {words}, got {shown}")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
