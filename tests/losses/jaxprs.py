"""What a traced function makes on its way."""

from typing import Any

import jax
import numpy as np


def largest_array(jaxpr: Any) -> int:
    """Elements of the largest array that any equation, nested ones too, makes."""
    largest = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.outvars]
        largest = max([largest, *(int(np.prod(shape)) for shape in shapes)])
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                largest = max(largest, largest_array(inner))
    return largest
