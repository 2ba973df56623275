"""Sampled episodes as packed batches of one static shape, with what reinforcement learning knows of each token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from pixelis_jax.data.packing import make_packed_batch, plan_rows
from pixelis_jax.data.pipeline import Batch, Bucket
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.trajectory import ACTION_ROLES, DECISION_ROLES, Role

TOKEN_FIELDS = ("old_log_probs", "advantages", "learns", "decision", "seen", "step")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["batch", *TOKEN_FIELDS],
    meta_fields=["steps"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Packed rows, and what a policy gradient needs of their tokens.

    Attributes:
      batch: R rows of T tokens; its weights are above 0 on the tokens that could learn.
      old_log_probs: the sampler's, float32 ``[R, T]``.
      advantages: float32 ``[R, T]``.
      learns: 1 on tokens that learn, those of episodes that are masked left out, float32 ``[R, T]``.
      decision: 1 on those of them that decide something, float32 ``[R, T]``.
      seen: which observation of its row a token belongs to, the prompt of an episode being the first; -1 for none, int32
        ``[R, T]``.
      step: which step of its row a token belongs to, with what it observed; -1 for none, int32 ``[R, T]``.
      steps: S, static: observations and steps of a row that can be told apart.
    """

    batch: Batch
    old_log_probs: Float[Any, "R T"]
    advantages: Float[Any, "R T"]
    learns: Float[Any, "R T"]
    decision: Float[Any, "R T"]
    seen: Int[Any, "R T"]
    step: Int[Any, "R T"]
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """One episode for the trainer.

    Attributes:
      example: its tokens as they were sampled (`data.examples.encode_record`).
      log_probs: the sampler's, float32 ``[T]``.
    """

    example: EncodedExample
    log_probs: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What a microbatch has room for: R rows, T tokens, F frames, S patches a frame, C learning tokens a row."""

    rows: int
    tokens: int
    frames: int
    patches: int
    weighted: int

    @property
    def steps(self) -> int:
        """Observations, or steps, of a row that can be told apart: an observation has at least a handful of tokens."""
        return max(8, self.tokens // 8)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an episode stands in the microbatches: which one, its row, its first token, its first observation and step."""

    micro: int
    row: int
    token: int
    seen: int
    step: int


def turns_of(roles: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """Numbers the turns of an episode: prompt, then turn and observation by turns.

    Args:
      roles: of its tokens.

    Returns:
      The turn that each token was sampled in, or observed behind; -1 in the prompt.
    """
    acts = np.isin(roles, ACTION_ROLES)
    return (np.cumsum(acts & ~np.concatenate([[False], acts[:-1]])) - 1).astype(np.int32)


def observations_and_steps(roles: Int[np.ndarray, " T"]) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Finds what was seen, and the steps, in an episode's roles.

    Args:
      roles: of its tokens.

    Returns:
      The observation that each token belongs to, 0 for the prompt, and the step (a turn with what was observed behind it), each
      -1 for none. A turn without an observation is no step.
    """
    turn, acts = turns_of(roles), np.isin(roles, ACTION_ROLES)
    observed = np.unique(turn[(roles == Role.OBSERVATION) & (turn >= 0)])
    return np.where(acts, -1, turn + 1).astype(np.int32), np.where(np.isin(turn, observed), turn, -1).astype(np.int32)


def pack(episodes: Sequence[Sampled], shape: Shape, patch_size: int) -> tuple[list[MicroBatch], list[Place]]:
    """Packs episodes into microbatches of one shape; what their tokens are worth is still 0.

    Args:
      episodes: at least one.
      shape: of every microbatch; rows that nothing needs stay empty.
      patch_size: side of a patch in pixels.

    Returns:
      The microbatches, and where each episode stands.

    Raises:
      RecordError: an episode is larger than a row.
    """
    examples = [episode.example for episode in episodes]
    sizes = np.array([[len(e["ids"]), len(e["grid"]), np.count_nonzero(e["weights"])] for e in examples])
    rows = plan_rows(sizes, (shape.tokens, shape.frames, shape.weighted))
    bucket = Bucket(
        rows=shape.rows, tokens=shape.tokens, frames=shape.frames, patches=shape.patches, calls=1, weighted=shape.weighted
    )
    made: list[MicroBatch] = []
    places: dict[int, Place] = {}
    for first in range(0, len(rows), shape.rows):
        taken = rows[first : first + shape.rows]
        filled = [[examples[number] for number in row] for row in taken]
        filled += [[_nothing(examples[0])]] * (shape.rows - len(taken))
        kept = {
            name: np.full((shape.rows, shape.tokens), fill, dtype)
            for name, fill, dtype in (
                ("old_log_probs", 0, np.float32),
                ("advantages", 0, np.float32),
                ("learns", 0, np.float32),
                ("decision", 0, np.float32),
                ("seen", -1, np.int32),
                ("step", -1, np.int32),
            )
        }
        for row, numbers in enumerate(taken):
            token = seen = step = 0
            for number in numbers:
                example, here = examples[number], slice(token, token + len(examples[number]["ids"]))
                places[number] = Place(len(made), row, token, seen, step)
                kept["old_log_probs"][row, here] = episodes[number].log_probs
                kept["learns"][row, here] = example["weights"] > 0
                kept["decision"][row, here] = np.isin(example["roles"], DECISION_ROLES) & (example["weights"] > 0)
                found = observations_and_steps(example["roles"])
                for name, index, start in zip(("seen", "step"), found, (seen, step), strict=True):
                    kept[name][row, here] = np.where(index >= 0, index + start, -1)
                token, seen, step = here.stop, 1 + kept["seen"][row].max(), 1 + kept["step"][row].max()
        batch = make_packed_batch(filled, bucket, patch_size)
        made.append(MicroBatch(batch=batch, steps=shape.steps, **kept))
    return made, [places[number] for number in range(len(episodes))]


def with_advantages(
    micros: Sequence[MicroBatch],
    places: Sequence[Place],
    advantages: Sequence[Float[np.ndarray, " T"]],
    learns: Sequence[bool],
    anchored: Sequence[bool] | None = None,
) -> list[MicroBatch]:
    """Fills in what each token is worth.

    Args:
      micros: as `pack` made them.
      places: of the episodes.
      advantages: of the tokens of each episode.
      learns: False for an episode that is masked.
      anchored: False for an episode whose divergence does not count; by default as `learns`.

    Returns:
      The microbatches.
    """
    worth = [np.zeros_like(micro.advantages) for micro in micros]
    kept = [np.zeros_like(micro.advantages) for micro in micros]
    held = [np.zeros_like(micro.advantages) for micro in micros]
    for place, values, learn, anchor in zip(places, advantages, learns, anchored or learns, strict=True):
        here = slice(place.token, place.token + len(values))
        worth[place.micro][place.row, here] = values
        kept[place.micro][place.row, here] = learn
        held[place.micro][place.row, here] = anchor
    return [
        dataclasses.replace(
            micro,
            advantages=value,
            learns=micro.learns * keep,
            decision=micro.decision * hold,
        )
        for micro, value, keep, hold in zip(micros, worth, kept, held, strict=True)
    ]


def _nothing(like: EncodedExample) -> dict[str, np.ndarray]:
    """An example of no tokens."""
    return {name: array[:0] for name, array in like.items()}
