"""Answers that are words."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

_ARTICLES = re.compile(r"^(?:the|an|a)\s+")
_CHOICE = re.compile(r"^\W*(?:(?:the\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?\W*([a-z])(?:\s*[).:,]|\s*$)", re.IGNORECASE)


def normalise(answer: str) -> str:
    """NFKC, case folded, single spaces, without an article in front or punctuation around."""
    folded = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return _ARTICLES.sub("", folded.strip(string.punctuation + " "))


def exact(answer: str, truth: Any) -> float:
    """1 if the normalised answer equals the truth: a string, or a list of strings of which any will do."""
    return float(normalise(answer) in {normalise(text) for text in texts(truth)})


def choice(answer: str, truth: Any) -> float:
    """Multiple choice.

    Args:
      answer: A letter (`B`, `(b)`, `The answer is B.`), or the words of an option.
      truth: `{"options": [...], "answer": index}`; options are lettered from A.

    Returns:
      1 if the answer names the right option, by its words or else by its letter.
    """
    if not isinstance(truth, dict) or not isinstance(truth.get("options"), list) or "answer" not in truth:
        raise ValueError(f"choice needs {{'options': [...], 'answer': index}}, got {truth!r}")
    options, right = [normalise(option) for option in truth["options"]], truth["answer"]
    words = normalise(answer)
    if words in options:
        return float(options.index(words) == right)
    match = _CHOICE.match(answer.strip())
    return float(match is not None and string.ascii_uppercase.index(match[1].upper()) == right)


def anls(answer: str, truth: Any) -> float:
    """Average normalised Levenshtein similarity (ST-VQA, https://arxiv.org/abs/1905.13648): `1 - distance / length`.

    Similarities below 0.5 score 0. Truth: a string, or a list of strings of which the best counts.
    """
    answer = " ".join(answer.casefold().split())
    similarity = max(_similarity(answer, " ".join(text.casefold().split())) for text in texts(truth))
    return similarity if similarity >= 0.5 else 0.0


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions cost 1."""
    row = list(range(len(b) + 1))
    for index, item in enumerate(a, start=1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(b, start=1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (item != other))
            diagonal, row[column] = row[column], cost
    return row[-1]


def texts(truth: Any) -> list[str]:
    """The strings that a truth allows; raises ValueError if it is neither a string nor a list of strings."""
    allowed = [truth] if isinstance(truth, str) else truth
    if not isinstance(allowed, list) or not allowed or not all(isinstance(text, str) for text in allowed):
        raise ValueError(f"the truth must be a string or a list of strings, got {truth!r}")
    return allowed


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1.0 if longest == 0 else 1.0 - edit_distance(a, b) / longest
