"""Which answers count as the same (algorithms.md, section 3, step 4)."""

from collections.abc import Callable, Sequence

from pixelis_jax.trajectory import Trajectory

NO_CLASS = -1
"""Class of a trajectory whose answer does not count."""


def counted_answer(trajectory: Trajectory) -> str | None:
    """The answer that a trajectory votes with; None if it gave none, a blank one, or was stopped at a limit."""
    answer = trajectory.answer if trajectory.stopped == "answer" else None
    return answer if answer is not None and answer.strip() else None


def answer_classes(answers: Sequence[str | None], equivalent: Callable[[str, str], bool]) -> tuple[int, ...]:
    """Sorts answers into classes, numbered as they come up.

    An answer joins the first class whose first answer it is equivalent to. Asking in both directions makes the relation
    symmetric. Comparing with the first answer alone keeps a chain of answers, each within a tolerance of the next, from growing
    into one class; the price is that classes then depend on the order. An equivalence relation gives its own classes, in any
    order.

    Args:
      answers: of each trajectory; None does not count.
      equivalent: the benchmark's own idea of two answers being the same (`verifiers.equivalence`).

    Returns:
      The class of each, `NO_CLASS` for None.
    """
    first: list[str] = []
    classes: list[int] = []
    for answer in answers:
        if answer is None:
            classes.append(NO_CLASS)
            continue
        same = (number for number, other in enumerate(first) if equivalent(other, answer) or equivalent(answer, other))
        number = next(same, len(first))
        if number == len(first):
            first.append(answer)
        classes.append(number)
    return tuple(classes)
