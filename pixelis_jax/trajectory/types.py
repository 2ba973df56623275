"""What an episode is: plain data, compared by value. The JSON form is described in `docs/trajectory.md`."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tools_host.protocol import Media, Observation, ToolCall

SCHEMA = "pixelis.trajectory/1"

Stopped = Literal["answer", "max_steps", "max_tokens", "context_full", "wall_clock", "cancelled", "error"]


class Role(enum.IntEnum):
    """What a token is for (`docs/architecture.md`, "Token roles and log-probs").

    The numbers are stored in `.npz` files.
    """

    PROMPT = 0
    OBSERVATION = 1
    THOUGHT = 2
    FORMAT = 3
    OPERATION = 4
    ARGUMENT = 5
    ANSWER = 6


DECISION_ROLES = (Role.THOUGHT, Role.OPERATION, Role.ARGUMENT, Role.ANSWER)
"""Roles of the tokens in which the policy decides something."""

ACTION_ROLES = (*DECISION_ROLES, Role.FORMAT)
"""Roles of the tokens that the policy writes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where an example comes from."""

    dataset: str
    split: str = ""
    item: str = ""
    licence: str = ""
    url: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """Which weights wrote a trajectory."""

    model: str
    step: int = 0
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolInfo:
    """Which implementation of a tool answered."""

    backend: str
    version: str
    weights_sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A turn with a call and what came back.

    Attributes:
      raw: The turn as written, without the end-of-turn token.
      thought: Its text outside the call.
      call: The call, or None if it did not parse; then `observation.error` says why.
      observation: What the model read next.
      imitate: False for a step that supervised training shows but does not imitate (traps, mistakes that are corrected
        later).
      elapsed_ms: Time of the call in milliseconds; never compared.
    """

    raw: str
    thought: str
    call: ToolCall | None
    observation: Observation
    imitate: bool = True
    elapsed_ms: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Final:
    """The turn without a call that ends an episode."""

    raw: str
    thought: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """An episode: question, media, steps and answer.

    Attributes:
      id: Unique name; also that of its `TokenRecord` file.
      example: Id of the example that was asked.
      question: Text; `<media 1>` stands for a medium, and media that are not named stand before the text.
      media: Media by id, those of the question first, then the derived ones in the order in which they were made.
      steps: Turns with a call.
      final: The last turn; None if the episode ended without one.
      answer: The answer, or None.
      stopped: Why the episode ended.
      group: Id of the sampling group, or None.
      sample: Index within the group.
      seed: Seed of the sampler.
      scores: Verdicts, rewards and metrics by name.
    """

    id: str
    example: str
    question: str
    media: tuple[Media, ...]
    steps: tuple[Step, ...]
    final: Final | None
    answer: str | None
    stopped: Stopped
    source: Source
    group: str | None = None
    sample: int = 0
    seed: int = 0
    policy: PolicyInfo | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tools: Mapping[str, ToolInfo] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def medium(self, media_id: int) -> Media:
        """The medium with an id; raises KeyError if the episode has none."""
        for medium in self.media:
            if medium.id == media_id:
                return medium
        raise KeyError(media_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A question with a checkable answer.

    Attributes:
      id: Unique name.
      question: Text; `<media 1>` stands for a medium.
      media: Paths of the images and videos; ids count from 1 in this order.
      verifier: Name in `pixelis_jax.verifiers.VERIFIERS`.
      truth: What the verifier compares with; any JSON value.
      source: Where it comes from.
      family: Kind of question, for tables by family.
      gold: A trajectory that answers it, or None.
    """

    id: str
    question: str
    media: tuple[str, ...]
    verifier: str
    truth: Any
    source: Source
    family: str = ""
    gold: Trajectory | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenRecord:
    """The tokens of one trajectory as they were sampled; training never tokenises again.

    Attributes:
      ids: int32 `[T]`.
      roles: int8 `[T]`, values of `Role`.
      log_probs: float32 `[T]`, the sampler's log-probability (before top-p, top-k, min-p and grammar masks); 0 where
        not sampled.
      forced: bool `[T]`, True where the grammar left one choice.
      policy_step: int32 `[T]`, version of the weights that wrote the token; -1 where not sampled.
      media_spans: int32 `[M, 4]`: start and end (exclusive) of a run of vision tokens, media id, index of the frame
        pair.
      margins: float32 `[T]`, of each sampled token how close the closest choice of experts was among all tokens before it, on
        which its log-probability rests: where that is about 1e-6 or less, the trainer may route one of them elsewhere and find
        another log-probability. Infinite where not sampled; None if the policy has no experts.
    """

    ids: np.ndarray
    roles: np.ndarray
    log_probs: np.ndarray
    forced: np.ndarray
    policy_step: np.ndarray
    media_spans: np.ndarray
    margins: np.ndarray | None = None
