"""Answers a query that has no label: samples trajectories, checks what their calls found, votes (docs/ttrl.md).

Nothing here changes a parameter or the memory: a query is answered first, and learnt from behind (`adaptation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pixelis_jax import voting
from pixelis_jax.data.audit import perceptual_hash
from pixelis_jax.encoding import Encoder, Thumbnail
from pixelis_jax.memory import KeyMaker, Memory, Neighbour
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Agent, Episode, Request
from pixelis_jax.rollout.probes import GroupFidelity, Probes
from pixelis_jax.trajectory import Example, PolicyInfo, Trajectory
from pixelis_jax.verifiers import Equivalence, equivalence
from tools_host.media import MediaStore

VOTES = ("trajectories", "answers", "majority", "process")
EXEMPLARS = ("short_faithful", "random")
_TEXT_BUCKET = 64  # tokens: keys compile once a shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A question without its answer.

    Attributes:
      example: its `truth` and `gold` are None.
      equivalent: which answers count as one.
    """

    example: Example
    equivalent: Equivalence


def unlabelled(example: Example) -> Query:
    """Takes the label away; what a question gives away itself (options, tolerances) stays in `equivalent`."""
    stripped = dataclasses.replace(example, truth=None, gold=None)
    return Query(example=stripped, equivalent=equivalence(example.verifier, example.truth))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """A query with its vote.

    Attributes:
      query: what was asked.
      greedy: one trajectory at temperature 0: what prequential accuracy scores.
      samples: those that vote.
      key: where the query lies in the memory, float32 ``[D]``.
      phash: of its first medium; None without one.
      neighbours: what the memory found, best first.
      fidelity: of the samples.
      vote: over them.
      exemplar: number of the sample that may be learnt from, or None.
      reason: why nothing may be, or None.
    """

    query: Query
    greedy: Episode
    samples: tuple[Episode, ...]
    key: np.ndarray
    phash: int | None
    neighbours: tuple[Neighbour, ...]
    fidelity: GroupFidelity
    vote: voting.Vote
    exemplar: int | None
    reason: str | None

    @property
    def answer(self) -> str | None:
        """What is said: the winner's answer, or the greedy one if no sample has one that counts."""
        return self.vote.answer if self.vote.winner is not None else self.greedy.trajectory.answer


class Answerer:
    """Answers one query after another with an agent."""

    def __init__(self, config: ConfigDict, agent: Agent, probes: Probes, keys: KeyMaker, encoder: Encoder, *, policy: str = ""):
        """Binds the parts.

        Args:
          config: ``seed``, ``samples``, ``temperature``, ``use_tools``, ``rollout.max_steps``, ``vote`` (``kind``, one of
            `VOTES`, ``temperature``, and as `voting.Limits`), ``exemplar`` (one of `EXEMPLARS`), ``evidence``,
            ``memory.neighbours``.
          agent: runs the episodes.
          probes: over the same tools.
          keys: of the frozen policy.
          encoder: of the same model directory.
          policy: what trajectories call the policy.
        """
        self._config, self._agent, self._probes, self._keys, self._encoder = config, agent, probes, keys, encoder
        self._policy, self._store = policy, MediaStore(2**26)
        vote = config.vote
        self._limits = voting.Limits(votes=vote.votes, mass=vote.mass, margin=vote.margin, agree=vote.agree)

    @property
    def key_size(self) -> int:
        """D, numbers of a key."""
        return self._keys.dim

    def update_policy(self, model: Qwen3VL, step: int) -> None:
        """Answers with new weights from here on; the engine keeps them, so they must not be donated."""
        self._agent.update_policy(model, PolicyInfo(model=self._policy, step=step))

    def sample(self, queries: Sequence[Query]) -> list[Episode]:
        """One trajectory of each query at the sampling temperature: the probe set."""
        return self._run([self._request(query, 1, self._config.temperature) for query in queries])

    def answer(self, query: Query, memory: Memory | None) -> Answered:
        """Answers a query.

        Raises:
          tools_host.media.MediaError: A medium cannot be read.
        """
        config = self._config
        requests = [self._request(query, 0, 0.0)]
        requests += [self._request(query, number, config.temperature) for number in range(1, config.samples + 1)]
        greedy, *samples = self._run(requests)
        trajectories = [episode.trajectory for episode in samples]
        pending = self._probes.begin(trajectories, query.example.media)
        key = self._key(query, greedy.thumbnails)
        media = query.example.media
        phash = perceptual_hash(Path(media[0]), self._store) if media else None
        neighbours: Sequence[Neighbour] = ()
        if memory is not None:
            neighbours = memory.retrieve(key, phash=phash, query_id=query.example.id, k=config.memory.neighbours)
        fidelity = pending.result()
        vote = self._vote(query, trajectories, np.asarray(fidelity.fidelity), neighbours)
        exemplar, reason = self._exemplar(vote, trajectories, fidelity, query.example.id)
        return Answered(
            query=query,
            greedy=greedy,
            samples=tuple(samples),
            key=key,
            phash=phash,
            neighbours=tuple(neighbours),
            fidelity=fidelity,
            vote=vote,
            exemplar=exemplar,
            reason=reason,
        )

    def _request(self, query: Query, sample: int, temperature: float) -> Request:
        config = self._config
        return Request(
            example=query.example, sample=sample, seed=config.seed, temperature=temperature, use_tools=config.use_tools
        )

    def _run(self, requests: Sequence[Request]) -> list[Episode]:
        episodes = {episode.request.id: episode for episode in self._agent.run(requests)}
        return [episodes[request.id] for request in requests]

    def _key(self, query: Query, thumbnails: Mapping[int, Thumbnail]) -> np.ndarray:
        shown = [
            (thumbnails[number], index)
            for number in range(1, len(query.example.media) + 1)
            for index in range(thumbnails[number].shown.grid[0])
        ]
        frames = 1 << (len(shown) - 1).bit_length() if shown else 0
        grid = np.zeros((1, frames, 2), np.int32)
        for place, (thumbnail, _) in enumerate(shown):
            grid[0, place] = thumbnail.shown.grid[1:]
        text = self._encoder.tokenizer.encode(query.example.question)
        length = -(-max(len(text), 1) // _TEXT_BUCKET) * _TEXT_BUCKET
        ids = np.zeros((1, length), np.int32)
        ids[0, : len(text)] = text
        mask = np.arange(length)[None] < len(text)
        return self._keys(ids, mask, self._encoder.patches(shown, frames)[None], grid)[0]

    def _vote(
        self, query: Query, trajectories: Sequence[Trajectory], fidelity: np.ndarray, neighbours: Sequence[Neighbour]
    ) -> voting.Vote:
        vote, limits = self._config.vote, self._limits
        answers = [voting.counted_answer(trajectory) for trajectory in trajectories]
        kinds: dict[str, Callable[[], voting.Vote]] = {
            "trajectories": lambda: voting.vote_over_trajectories(
                trajectories,
                fidelity,
                query.equivalent,
                most_calls=self._config.rollout.max_steps,
                neighbours=[(neighbour.operations, neighbour.score) for neighbour in neighbours],
                temperature=vote.temperature,
                limits=limits,
            ),
            "answers": lambda: voting.answer_consistency(answers, query.equivalent, temperature=vote.temperature, limits=limits),
            "majority": lambda: voting.majority(answers, query.equivalent, limits),
            "process": lambda: voting.process_scoring(
                answers, query.equivalent, fidelity, temperature=vote.temperature, limits=limits
            ),
        }
        return kinds[vote.kind]()

    def _exemplar(
        self, vote: voting.Vote, trajectories: Sequence[Trajectory], fidelity: GroupFidelity, query: str
    ) -> tuple[int | None, str | None]:
        """Who may be learnt from, or why nobody."""
        if vote.abstention is not None:
            return None, vote.abstention
        chosen = self._chosen(vote, trajectories, fidelity, query)
        if chosen is None:
            return None, "no_exemplar"
        if self._config.evidence and fidelity.measured[chosen] is None:
            return None, "no_evidence"
        return chosen, None

    def _chosen(self, vote: voting.Vote, trajectories: Sequence[Trajectory], fidelity: GroupFidelity, query: str) -> int | None:
        """Which of the winners shows it best."""
        if self._config.exemplar == "random":
            seed = int.from_bytes(query.encode()) % 2**63 + self._config.seed
            return voting.random_exemplar(vote, seed)
        count = len(trajectories)
        if self._config.vote.kind == "process":
            vote = dataclasses.replace(vote, fidelity=fidelity.fidelity)
        if not vote.fidelity:  # a vote that looks at answers alone knows nothing of either
            vote = dataclasses.replace(vote, fidelity=(0.0,) * count)
        if not vote.scores:
            nothing = voting.Score(agreement=0.0, fidelity=0.0, support=0.0, length=0.0, total=0.0)
            vote = dataclasses.replace(vote, scores=(nothing,) * count)
        return voting.exemplar(vote, trajectories)
