"""The registry: duplicates are refused, unknown names are explained."""

import pytest

from tools_host.registry import Registry, UnknownNameError


def test_entries_come_in_registration_order() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert list(registry) == ["two", "one"] and registry["one"] == 1 and len(registry) == 2 and "two" in registry


def test_a_duplicate_is_refused() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="number 'one' is registered twice"):
        registry.register("one")(1)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    registry: Registry[int] = Registry("tool")
    registry.register("segment")(1)
    registry.register("zoom")(2)
    with pytest.raises(UnknownNameError) as caught:
        registry["segmnt"]
    assert str(caught.value) == "unknown tool 'segmnt'; did you mean 'segment'? (known: segment, zoom)"
    assert registry.get("absent") is None


def test_a_decorated_class_stays_itself() -> None:
    registry: Registry[type] = Registry("family")

    @registry.register("a")
    class Family:
        pass

    assert registry["a"] is Family
