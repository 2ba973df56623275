"""From a final turn to a score in [0, 1]: answer extraction, and one comparison a kind of answer.

A verifier is a plain function `(answer, truth) -> float`, registered under the name that examples carry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pixelis_jax.trajectory.grammar import parse_turn
from pixelis_jax.verifiers import numeric, text
from tools_host.registry import Registry

Verifier = Callable[[str, Any], float]

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
