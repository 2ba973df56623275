"""Typed functions become JSON schemas, or are refused with the reason."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from lab_tools import lab_all_types

from tools_host.protocol import Box, MediaView, RegionView, ToolOutput
from tools_host.schema import TOOLS, Seconds, Tool, describe, parse_docstring


def described(function: Callable[..., Any]) -> Tool:
    return describe(function, paper="X", version="1", kinds=("image",))


def test_the_schema_of_every_argument_kind_is_json_schema() -> None:
    import jsonschema

    function = TOOLS["lab_all_types"].schema()["function"]
    properties = function["parameters"]["properties"]
    assert function["description"] == "Takes one argument of each kind."
    assert function["parameters"]["required"] == ["media", "point_2d", "count"]
    assert properties["media"] == {"type": "integer", "minimum": 1, "description": "Any medium."}
    assert properties["point_2d"]["maxItems"] == 2 and properties["point_2d"]["items"]["maximum"] == 1000
    assert properties["colour"]["enum"] == ["red", "blue"]
    assert {name: properties[name]["type"] for name in ("count", "ratio", "flag", "word")} == {
        "count": "integer",
        "ratio": "number",
        "flag": "boolean",
        "word": "string",
    }
    assert "rng" not in properties
    jsonschema.Draft202012Validator.check_schema(function["parameters"])
    jsonschema.validate({"media": 1, "point_2d": [1, 2], "count": 3}, function["parameters"])


def test_a_region_may_stand_in_for_a_box() -> None:
    parameters = TOOLS["lab_crop"].schema()["function"]["parameters"]
    assert list(parameters["properties"]) == ["media", "bbox_2d", "time_s", "kind", "region"]
    assert parameters["required"] == []


def test_a_region_of_its_own_is_left_to_the_tool() -> None:
    def measure(region: RegionView | None = None, media: MediaView | None = None, bbox_2d: Box | None = None) -> ToolOutput:
        """Measures.

        Args:
          region: A region.
          media: Or a medium.
          bbox_2d: With a box.
        """
        return ToolOutput()

    assert not described(measure).stands_in


def test_the_function_itself_is_returned_by_the_decorator() -> None:
    assert TOOLS["lab_all_types"].function is lab_all_types and callable(lab_all_types)


def no_docstring(media: MediaView) -> ToolOutput: ...


def no_annotation(media) -> ToolOutput:  # type: ignore[no-untyped-def]
    """Does.

    Args:
      media: A medium.
    """
    ...


def no_line(media: MediaView, time_s: Seconds | None = None) -> ToolOutput:
    """Does.

    Args:
      media: A medium.
    """
    ...


def unknown_type(media: bytes) -> ToolOutput:
    """Does.

    Args:
      media: A medium.
    """
    ...


def mixed_literal(media: Literal["a", 1]) -> ToolOutput:
    """Does.

    Args:
      media: A medium.
    """
    ...


def star(*media: MediaView) -> ToolOutput:
    """Does.

    Args:
      media: A medium.
    """
    ...


def optional_without_default(word: str | None) -> ToolOutput:
    """Does.

    Args:
      word: A word.
    """
    ...


def stray_line(word: str) -> ToolOutput:
    """Does.

    Args:
      word: A word.
      wrod: A slip.
    """
    ...


def positional_backend(backend: object) -> ToolOutput:
    """Does."""
    ...


def unknown_name(word: "Word") -> ToolOutput:  # type: ignore[name-defined]  # noqa: F821
    """Does.

    Args:
      word: A word.
    """
    ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (unknown_name, "name 'Word' is not defined; import it outside"),
        (no_docstring, "needs a docstring"),
        (no_annotation, "parameter 'media' of tool 'no_annotation' needs a type annotation"),
        (no_line, "parameter 'time_s' of tool 'no_line' needs a line under 'Args:'"),
        (unknown_type, "has the type <class 'bytes'>; known are MediaView"),
        (mixed_literal, "known are MediaView"),
        (star, "must be an ordinary parameter"),
        (optional_without_default, "needs the default None"),
        (stray_line, "describes wrod, which it does not take"),
        (positional_backend, "must be keyword-only"),
    ],
)
def test_a_bad_signature_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TypeError, match=message.replace("(", r"\(")):
        described(function)


def test_docstrings_may_go_on_over_lines_and_sections() -> None:
    summary, arguments = parse_docstring(
        "Finds\nthings.\n\nMore of it.\n\nArgs:\n  one: First\n    goes on: here.\n  two (int): Second.\n\nReturns:\n  it: all"
    )
    assert summary == "Finds things. More of it."
    assert arguments == {"one": "First goes on: here.", "two": "Second."}
