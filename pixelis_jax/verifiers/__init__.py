"""From a final turn to a score in [0, 1]: answer extraction, and one comparison a kind of answer.

A verifier is a plain function `(answer, truth) -> float`, registered under the name that examples carry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pixelis_jax.trajectory.grammar import parse_turn
from pixelis_jax.verifiers import numeric, text
from tools_host.registry import Registry

Verifier = Callable[[str, Any], float]
Equivalence = Callable[[str, str], bool]

VERIFIERS: Registry[Verifier] = Registry("verifier")
"""Every verifier by the name that an example carries."""

VERIFIERS.register("exact")(text.exact)
VERIFIERS.register("choice")(text.choice)
VERIFIERS.register("anls")(text.anls)
VERIFIERS.register("number")(numeric.number)
VERIFIERS.register("time")(numeric.time)


def extract_answer(raw: str) -> str | None:
    """The answer of a last turn: the text in `<answer>...</answer>`, else the whole turn.

    None if the turn holds a call.
    """
    return parse_turn(raw).answer


def verify(name: str, answer: str | None, truth: Any) -> float:
    """Scores an answer.

    Args:
      name: Of the verifier.
      answer: As extracted; None scores 0.
      truth: What the verifier compares with, see its own docstring.

    Returns:
      A score in [0, 1].

    Raises:
      UnknownNameError: if there is no such verifier.
      ValueError: if `truth` is not what the verifier needs.
    """
    verifier = VERIFIERS[name]
    return 0.0 if answer is None else verifier(answer, truth)


def equivalence(name: str, truth: Any) -> Equivalence:
    """The benchmark's own idea of two answers being the same, for votes: each would earn the full score were the other the truth.

    Only what a question gives away is taken from its truth (options, tolerances), never the right answer. The relation is made
    symmetric; a tolerance keeps it from being transitive.

    Args:
      name: Of the verifier. One that is not of this package is given the other answer's text as its truth.
      truth: Of the example.

    Raises:
      UnknownNameError: if there is no such verifier.
    """
    verifier = VERIFIERS[name]
    label = _LABELS.get(name, _text_label)

    def earns(answer: str, other: str) -> bool:
        as_truth = label(other, truth)
        return as_truth is not None and verifier(answer, as_truth) == 1.0

    def equivalent(a: str, b: str) -> bool:
        return text.normalise(a) == text.normalise(b) or earns(a, b) or earns(b, a)

    return equivalent


def _text_label(answer: str, truth: Any) -> Any:
    return answer


def _choice_label(answer: str, truth: Any) -> Any:
    labels = [{**truth, "answer": index} for index in range(len(truth["options"]))]
    return next((label for label in labels if text.choice(answer, label) == 1.0), None)


def _value_label(value: float | None, truth: Any) -> Any:
    if value is None or not math.isfinite(value):
        return None
    return {**truth, "value": value} if isinstance(truth, dict) else value


_LABELS: dict[str, Callable[[str, Any], Any]] = {
    "choice": _choice_label,
    "number": lambda answer, truth: _value_label(numeric.the_number(answer), truth),
    "time": lambda answer, truth: _value_label(numeric.the_time(answer), truth),
}
"""Puts an answer in the right one's place; None for an answer that could not be one."""
