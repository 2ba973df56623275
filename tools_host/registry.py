"""The one registry class of the project: for tools, back-ends, verifiers, scene families and benchmarks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(KeyError):
    """A name that a registry does not hold; its text names the nearest known one."""

    def __str__(self) -> str:
        # KeyError would print the quoted repr of a message that is already one clear line.
        return str(self.args[0])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'zoom'?`, or nothing if no known name is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, in the order in which they were registered.

    Args:
      noun: What one entry is, for error messages, e.g. `tool`.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Gives a decorator that adds an object under `name` and returns it unchanged.

        Raises:
          ValueError: If `name` is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry called `name`.

        Raises:
          UnknownNameError: If there is none (a `KeyError`).
        """
        if name in self._entries:
            return self._entries[name]
        guess = did_you_mean(str(name), self._entries)
        raise UnknownNameError(f"unknown {self.noun} {name!r}{guess} (known: {', '.join(self._entries) or 'none'})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
