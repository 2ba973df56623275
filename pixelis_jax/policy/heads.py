"""Auxiliary heads: where, when and which operation, read from a hidden state or a visual token (the policy runs without)."""

import jax
from flax import nnx, struct

from pixelis_jax.policy import layers
from pixelis_jax.policy.config import Precision

INKS = 12
"""Nothing, and the kinds of what can stand on a thing, for the patch head."""

# A visual token is a block of 2 x 2 patches.
_MERGE_UNIT = 4


@struct.dataclass
class HeadOutputs:
    """Predictions of the auxiliary heads.

    Attributes:
      box: x1, y1, x2, y2 relative to the medium, in [0, 1], ``[N, 4]``.
      point: x, y in [0, 1], ``[N, 2]``.
      span: start, end relative to the clip, in [0, 1], ``[N, 2]``.
      operation: logits over the tools, ``[N, operations]``.
    """

    box: jax.Array
    point: jax.Array
    span: jax.Array
    operation: jax.Array


class AuxiliaryHeads(nnx.Module):
    """Box, point, span and operation from the hidden state at a call's last operation token; boxes from visual tokens."""

    def __init__(self, hidden_size: int, *, operations: int = 6, precision: Precision | None = None, rngs: nnx.Rngs):
        """Creates the heads.

        Args:
          hidden_size: width of the hidden states.
          operations: number of tools.
          precision: number formats; float32 by default.
          rngs: stream ``params``.
        """
        sizes = {"box": 4, "point": 2, "span": 2, "operation": operations, "patches": _MERGE_UNIT * (1 + 4 + INKS)}
        self.heads = nnx.Dict(
            {
                name: layers.Linear(
                    hidden_size,
                    size,
                    axes=("embed", None),
                    bias=True,
                    stddev=0.02,
                    precision=precision or Precision(),
                    rngs=rngs,
                )
                for name, size in sizes.items()
            }
        )

    def __call__(self, hidden: jax.Array) -> HeadOutputs:
        """Predicts from hidden states ``[N, D]``."""
        logits = {name: head(hidden) for name, head in self.heads.items() if name != "patches"}
        places = {name: jax.nn.sigmoid(logits[name]) for name in ("box", "point", "span")}
        return HeadOutputs(**places, operation=logits["operation"])

    def patches(self, visual: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Says of each patch whether a thing covers it, that thing's box, and what stands at the patch.

        Args:
          visual: visual tokens of one frame a row, ``[B, S / 4, D]``.

        Returns:
          Logits ``[B, S]``; x1, y1, x2, y2 in [0, 1], ``[B, S, 4]``; logits of what stands there, ``[B, S, INKS]``.
        """
        out = self.heads["patches"](visual).reshape(visual.shape[0], -1, 1 + 4 + INKS)
        return out[..., 0], jax.nn.sigmoid(out[..., 1:5]), out[..., 5:]
