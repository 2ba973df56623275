"""How alike two trajectories are: in answers, operations, and where they looked (algorithms.md, section 3, step 4)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pixelis_jax.trajectory import Place, footprint_iou
from pixelis_jax.verifiers.text import edit_distance
from pixelis_jax.voting.answers import NO_CLASS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityWeights:
    """What each likeness weighs. With a sum of 1, so are similarities in [0, 1]."""

    answer: float = 0.4
    operations: float = 0.3
    footprint: float = 0.3

    @property
    def total(self) -> float:
        """Similarity of a trajectory to itself."""
        return self.answer + self.operations + self.footprint


def operation_similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """Computes `1 - edit distance / longer length` of two sequences of operations; 1 if both are empty."""
    longer = max(len(a), len(b))
    return 1.0 - edit_distance(a, b) / longer if longer else 1.0


def similarity_matrix(
    classes: Sequence[int],
    operations: Sequence[Sequence[str]],
    footprints: Sequence[Sequence[Place]],
    weights: SimilarityWeights,
) -> Float[np.ndarray, "N N"]:
    """Computes `S_ij = w_a [same answer] + w_o (1 - edit distance / longer length) + w_f footprint IoU`.

    Args:
      classes: of the answers (`answer_classes`); an answer that does not count is like no other, not even another such.
      operations: of each trajectory (`trajectory.operations`).
      footprints: of each trajectory (`trajectory.footprint`); two empty ones overlap fully, an empty one with none.
      weights: of the three.

    Returns:
      The matrix: symmetric, with `weights.total` on the diagonal.

    Raises:
      ValueError: the three are not of one length.
    """
    if not len(classes) == len(operations) == len(footprints):
        raise ValueError(
            f"{len(classes)} classes, {len(operations)} operations and {len(footprints)} footprints: one a trajectory"
        )
    matrix = np.full((len(classes), len(classes)), weights.total)
    for i in range(len(classes)):
        for j in range(i):
            same = float(classes[i] == classes[j] != NO_CLASS)
            ordered = operation_similarity(operations[i], operations[j])
            overlap = footprint_iou(footprints[i], footprints[j])
            matrix[i, j] = matrix[j, i] = weights.answer * same + weights.operations * ordered + weights.footprint * overlap
    return matrix
