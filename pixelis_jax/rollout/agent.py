"""Runs episodes: the engine decodes turns, the tool pool answers calls, and both go on at the same time.

A slot that waits for its tool does not hold up the others; a finished episode's slot takes the next example at once. While the
device decodes, one thread makes completed calls into prefills (`observations`) and this one prepares the prompts to come.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pixelis_jax.encoding import Chunk, Encoder, TextTokenizer, Thumbnail
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.call_grammar import CallGrammar
from pixelis_jax.rollout.engine import BlockResult, CacheFullError, Engine, Prefill, SlotOptions
from pixelis_jax.rollout.observations import ObservationPipeline
from pixelis_jax.rollout.replay import environment_record
from pixelis_jax.rollout.tracing import Tracer
from pixelis_jax.trajectory import (
    ACTION_ROLES,
    Example,
    Final,
    PolicyInfo,
    Source,
    Step,
    TokenRecord,
    ToolInfo,
    Trajectory,
    parse_turn,
    render_observation,
    render_prompt,
    roles_of,
)
from pixelis_jax.trajectory.grammar import CALL_OPEN, END_OF_TURN
from pixelis_jax.trajectory.types import Stopped
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.media import MediaError, MediaStore
from tools_host.protocol import Observation, ToolCall, ToolError, ToolOutput, ToolPool

NEVER_SAMPLED = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """When an episode ends without an answer: T_max calls, tokens of a turn and of the episode, seconds on the wall.

    With `deterministic`, what depends on the clock (the wall, a tool's time limit) fails the run, and ends in no trajectory.
    """

    max_steps: int = 6
    max_turn_tokens: int = 96
    max_tokens: int = 2**31 - 1
    wall_clock_s: float = 600.0
    deterministic: bool = False


class ClockError(RuntimeError):
    """A deterministic run met a limit of time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One episode to run. `seed` and `sample` are all its randomness; greedy when `temperature` is 0.

    `top_p`, `top_k` and `min_p` narrow the choice down (`SlotOptions`); reinforcement learning leaves them as they are.
    `constrain` keeps calls to the grammar of the tools that are offered (`CallGrammar`); the engine must have been made for it.
    `use_tools` False is the no-tools condition: the prompt names no tool and the token that opens a call is banned. `uris` are
    what the trajectory calls the example's media, by default their paths.
    """

    example: Example
    uris: tuple[str, ...] | None = None
    sample: int = 0
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    constrain: bool = False
    use_tools: bool = True

    @property
    def id(self) -> str:
        """Names the episode; its trajectory has the same name."""
        return f"{self.example.id}-{self.seed}-{self.sample}" + ("" if self.use_tools else "-no_tools")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """A finished episode: what happened, the tokens as they were sampled, and what the policy saw of each medium."""

    request: Request
    trajectory: Trajectory
    tokens: TokenRecord
    thumbnails: Mapping[int, Thumbnail]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A request with its prompt."""

    request: Request
    environment: EpisodeEnvironment
    thumbnails: dict[int, Thumbnail]
    chunk: Chunk


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A turn whose call is under way."""

    raw: str
    thought: str
    call: ToolCall | None
    started: float


@dataclasses.dataclass(frozen=True)
class _Completed:
    """A call that has completed."""

    slot: int
    output: ToolOutput | ToolError


@dataclasses.dataclass(frozen=True)
class _Observed:
    """An observation as tokens. It does not fit where `fits` is false."""

    slot: int
    step: Step
    chunk: Chunk
    fits: bool


@dataclasses.dataclass(kw_only=True)
class _Running:
    """An episode under way in a slot."""

    request: Request
    environment: EpisodeEnvironment
    thumbnails: dict[int, Thumbnail]
    position: int
    started: float
    steps: list[Step] = dataclasses.field(default_factory=list)
    pieces: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    has_margins: bool = False
    pending: _Pending | None = None

    def add_chunk(self, chunk: Chunk) -> None:
        """Appends a prompt or an observation."""
        count = len(chunk.ids)
        self._add(chunk.ids, chunk.roles, np.zeros(count, np.float32), np.zeros(count, bool), None, chunk.media_spans)

    def add_turn(self, result: BlockResult, roles: np.ndarray) -> None:
        """Appends what the policy said."""
        self._add(result.ids, roles, result.log_probs, result.forced, result.margins, np.zeros((0, 4), np.int32))
        self.position += len(result.ids)

    def _add(
        self,
        ids: np.ndarray,
        roles: np.ndarray,
        log_probs: np.ndarray,
        forced: np.ndarray,
        margins: np.ndarray | None,
        spans: np.ndarray,
    ) -> None:
        offset = sum(len(piece[0]) for piece in self.pieces)
        spans = spans + np.asarray([offset, offset, 0, 0], np.int32) if len(spans) else spans
        self.has_margins |= margins is not None
        margins = np.full(len(ids), np.inf, np.float32) if margins is None else margins
        self.pieces.append((ids, roles, log_probs, forced, margins, spans))


class Agent:
    """Episodes on an engine. See `docs/architecture.md`, "The flow"."""

    def __init__(
        self,
        engine: Engine,
        encoder: Encoder,
        pool: ToolPool,
        tools: ToolsConfig,
        *,
        limits: EpisodeLimits | None = None,
        policy: PolicyInfo | None = None,
        on_step: Callable[[Request, Step], None] | None = None,
        tracer: Tracer | None = None,
    ):
        """Binds an engine to a tool pool.

        Args:
          engine: Decodes; its slots bound how many episodes run together.
          encoder: Of the same model directory.
          pool: Runs the calls.
          tools: What the environment offers.
          limits: When an episode ends without an answer.
          policy: Named in the trajectories of the engine's present weights.
          on_step: Called with each step as it happens.
          tracer: Takes spans and counters.
        """
        self._engine, self._encoder, self._pool, self._tools = engine, encoder, pool, tools
        self._limits = limits or EpisodeLimits()
        self._policies = {engine.version: policy}
        self._on_step, self._tracer = on_step, tracer or Tracer()
        _episode_key(Request(example=_NOBODY))  # compiles what makes a key, before the first episode waits for it
        tools.load()
        self._schemas = tools.schemas()
        self._versions = {name: ToolInfo(**fields) for name, fields in tools.tool_versions().items()}
        self._store = MediaStore(tools.cache_bytes)
        self._running: dict[int, _Running] = {}
        self._pipeline: ObservationPipeline[_Completed, _Observed] | None = None
        self._ahead: collections.deque[_Prepared | MediaError] = collections.deque()
        self._last: _Prepared | None = None

    def run(self, requests: Iterable[Request]) -> Iterator[Episode]:
        """Yields episodes as they end, which is not the order of `requests`. Samples of one example share their prompt's prefill
        when they follow each other.

        A caller that stops before the end leaves free slots behind.

        Raises:
          tools_host.media.MediaError: A medium of an example cannot be read.
          ClockError: A deterministic run met a limit of time.
        """
        waiting = iter(requests)
        self._pipeline = ObservationPipeline(encode=self._encode, lay_out=self._lay_out, most=self._engine.slots)
        try:
            while True:
                while self._engine.free_slots and (self._ahead or self._look_ahead(waiting)):
                    if (episode := self._open(self._ahead.popleft())) is not None:
                        yield episode
                yield from self._observations(block=False)
                self._tracer.count("episodes that wait for a tool", sum(r.pending is not None for r in self._running.values()))
                if self._engine.busy:
                    self._engine.begin()
                    with self._tracer.span("prompts", "host"):  # while the device decodes
                        while len(self._ahead) < self._engine.slots and self._look_ahead(waiting):
                            pass
                    for result in self._engine.finish():
                        if (episode := self._turn(result)) is not None:
                            yield episode
                elif self._running:
                    yield from self._observations(block=True)
                elif not self._ahead:
                    return
        finally:
            for slot in self._running:
                self._engine.release(slot)
            self._running.clear()
            self._ahead.clear()
            self._pipeline.close()
            self._pipeline = None

    def update_policy(self, model: Qwen3VL, policy: PolicyInfo) -> None:
        """Gives new episodes new weights; those under way end on the weights that they began with.

        Raises:
          ValueError: Episodes on older weights than the present ones are still under way.
        """
        self._engine.update_params(model, policy.step)
        self._policies = {
            version: info for version, info in self._policies.items() if version in map(self._engine.version_of, self._running)
        }
        self._policies[policy.step] = policy

    def state(self) -> dict[str, Any]:
        """Returns what a run that was stopped now would have to run again: episodes under way, and calls not yet answered.

        An episode depends on its request and the weights alone, so running it again gives the same one; its calls are submitted
        again with it, and what tools have memoised is answered from there.
        """
        pending = self._pipeline.state() if self._pipeline is not None else {"pending": []}
        return {"episodes": sorted(running.request.id for running in self._running.values()), **pending}

    def _look_ahead(self, waiting: Iterator[Request]) -> bool:
        """Prepares the next request; false if there is none. What is wrong with it is raised when its turn comes."""
        request = next(waiting, None)
        if request is None:
            return False
        try:
            self._ahead.append(self._prepare(request))
        except MediaError as error:
            self._ahead.append(error)
        return True

    def _prepare(self, request: Request) -> _Prepared:
        last = self._last
        environment = EpisodeEnvironment(request.example.media, self._tools, uris=request.uris, store=self._store)
        same = last is not None and last.request.example == request.example and last.request.use_tools == request.use_tools
        if last is not None and same:
            thumbnails, chunk = dict(last.thumbnails), last.chunk
            for medium in environment.media:
                environment.set_shown(medium.id, thumbnails[medium.id].shown)
        else:
            thumbnails = {medium.id: self._show(environment, medium.id) for medium in environment.media}
            prompt = self._encoder.prompt
            segments = render_prompt(
                request.example.question,
                environment.media,
                tools=prompt.tools if request.use_tools else "none",
                schemas=self._schemas,
                style=prompt.style,
            )
            chunk = self._encoder.encode(segments, thumbnails)
        self._last = _Prepared(request=request, environment=environment, thumbnails=thumbnails, chunk=chunk)
        return self._last

    def _open(self, prepared: _Prepared | MediaError) -> Episode | None:
        """Gives a request a slot; a prompt that does not fit is an episode that has ended."""
        if isinstance(prepared, MediaError):
            raise prepared
        request, chunk = prepared.request, prepared.chunk
        options = SlotOptions(
            key=_episode_key(request),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            ban_tools=not request.use_tools,
            max_turn_tokens=self._limits.max_turn_tokens,
            max_tokens=self._limits.max_tokens,
            grammar=self._grammar if request.constrain and request.use_tools else None,
        )
        running = _Running(
            request=request,
            environment=prepared.environment,
            thumbnails=prepared.thumbnails,
            position=chunk.next_position,
            started=time.monotonic(),
        )
        running.add_chunk(chunk)
        try:
            slot = self._engine.submit(chunk, options)
        except CacheFullError:
            return self._episode(running, self._engine.version, "context_full", None, None)
        self._running[slot] = running
        return None

    @functools.cached_property
    def _grammar(self) -> CallGrammar:
        return CallGrammar(self._encoder.tokenizer, self._tools.call_schema())

    def _show(self, environment: EpisodeEnvironment, media_id: int) -> Thumbnail:
        """Makes the thumbnail of a medium and tells the environment what it was."""
        medium = environment.media[media_id - 1]
        if medium.kind == "image":
            thumbnail = self._encoder.image(environment.pixels(media_id))
        else:
            times, frames = environment.frames_shown(media_id, self._encoder.prompt.video_frames)
            thumbnail = self._encoder.video(frames, times)
        environment.set_shown(media_id, thumbnail.shown)
        return thumbnail

    def _turn(self, result: BlockResult) -> Episode | None:
        """A turn has ended: calls a tool, or ends the episode."""
        running = self._running[result.slot]
        tokenizer = self._encoder.tokenizer
        roles = roles_of(result.ids, tokenizer.token_bytes)
        running.add_turn(result, roles)
        raw = tokenizer.decode(result.ids).removesuffix(END_OF_TURN)
        turn = parse_turn(raw)
        if result.ended != "stop":
            stopped: Stopped = "context_full" if result.ended == "full" else "max_tokens"
            return self._close(result.slot, stopped, Final(raw=raw, thought=turn.thought), None)
        if turn.answer is not None:
            return self._close(result.slot, "answer", Final(raw=raw, thought=turn.thought), turn.answer)
        if not running.request.use_tools:
            # The opening token is banned, but its text can still be spelled; no tool was offered, so it is only text.
            return self._close(result.slot, "answer", Final(raw=raw, thought=""), raw.strip())
        if len(running.steps) >= self._limits.max_steps:
            return self._close(result.slot, "max_steps", Final(raw=raw, thought=turn.thought), None)
        if (took := time.monotonic() - running.started) > self._limits.wall_clock_s:
            if self._limits.deterministic:
                raise ClockError(f"episode {running.request.id} took {took:.0f} s, more than {self._limits.wall_clock_s:g} s")
            return self._close(result.slot, "wall_clock", Final(raw=raw, thought=turn.thought), None)
        assert self._pipeline is not None  # a run is under way
        prepared = turn.error or running.environment.prepare(turn.call)  # type: ignore[arg-type]
        running.pending = _Pending(raw, turn.thought, turn.call, time.monotonic())
        self._pipeline.expect(_call_name(running))
        if isinstance(prepared, ToolError):
            self._pipeline.put(_Completed(result.slot, prepared))
        else:
            # Equal calls of two episodes that are under way together may share one future.
            self._pool.submit(prepared).add_done_callback(self._hand_over(result.slot, self._pipeline))
        return None

    def _hand_over(self, slot: int, pipeline: ObservationPipeline[_Completed, _Observed]) -> Callable[[Any], None]:
        begin = time.perf_counter()

        def done(future: concurrent.futures.Future[ToolOutput | ToolError]) -> None:
            self._tracer.add("tool", "tool", begin, time.perf_counter(), lane=slot)
            pipeline.put(_Completed(slot, future.result()))

        return done

    def _encode(self, completed: _Completed) -> _Observed:
        """In the pipeline's thread. The episode waits for this, so nobody else touches it."""
        running = self._running[completed.slot]
        pending = running.pending
        assert pending is not None
        if self._limits.deterministic and isinstance(completed.output, ToolError) and completed.output.code == "timeout":
            raise ClockError(f"a call of episode {running.request.id} ran into its time limit")
        with self._tracer.span("encode", "pipeline"):
            observation: Observation = running.environment.observe(pending.call, completed.output)
            for media_id in observation.media:
                running.thumbnails[media_id] = self._show(running.environment, media_id)
            segments = render_observation(observation, running.environment.media, style=self._encoder.prompt.style)
            chunk = self._encoder.encode(segments, running.thumbnails, start=running.position)
        step = Step(
            raw=pending.raw,
            thought=pending.thought,
            call=pending.call,
            observation=observation,
            elapsed_ms=round(1000 * (time.monotonic() - pending.started), 1),
        )
        return _Observed(completed.slot, step, chunk, fits=len(chunk.ids) <= self._engine.room(completed.slot))

    def _lay_out(self, batch: list[_Observed]) -> Sequence[Prefill]:
        return self._engine.layout([(observed.slot, observed.chunk) for observed in batch if observed.fits])

    def _observations(self, *, block: bool) -> Iterator[Episode]:
        """Takes the observations that are ready; `block` waits for one."""
        assert self._pipeline is not None
        for batch, prefills in self._pipeline.take(block=block):
            for observed in batch:
                running = self._running[observed.slot]
                self._pipeline.taken(_call_name(running))
                running.pending = None
                running.steps.append(observed.step)
                if self._on_step is not None:
                    self._on_step(running.request, observed.step)
                if observed.fits:
                    running.add_chunk(observed.chunk)
                    running.position = observed.chunk.next_position
            self._engine.extend([(observed.slot, observed.chunk) for observed in batch if observed.fits], prefills)
            for observed in batch:
                if not observed.fits:
                    # The step is kept, since its tool did run; the tokens end with the turn that called it.
                    yield self._close(observed.slot, "context_full", None, None)

    def _close(self, slot: int, stopped: Stopped, final: Final | None, answer: str | None) -> Episode:
        running = self._running.pop(slot)
        version = self._engine.version_of(slot)
        self._engine.release(slot)
        return self._episode(running, version, stopped, final, answer)

    def _episode(self, running: _Running, version: int, stopped: Stopped, final: Final | None, answer: str | None) -> Episode:
        request = running.request
        example = request.example
        trajectory = Trajectory(
            id=request.id,
            example=example.id,
            question=example.question,
            media=tuple(running.environment.media),
            steps=tuple(running.steps),
            final=final,
            answer=answer,
            stopped=stopped,
            source=example.source,
            group=example.id,
            sample=request.sample,
            seed=request.seed,
            policy=self._policies[version],
            sampling={
                "temperature": request.temperature,
                **{name: getattr(request, name) for name, off in _NARROWS.items() if getattr(request, name) != off},
                "use_tools": request.use_tools,
                "family": example.family,
                "truth": example.truth,
                "environment": environment_record(self._tools),
            },
            tools=self._versions,
        )
        ids, roles, log_probs, forced, margins, spans = (np.concatenate(parts) for parts in zip(*running.pieces, strict=True))
        sampled = np.isin(roles, ACTION_ROLES)
        tokens = TokenRecord(
            ids=ids.astype(np.int32),
            roles=roles.astype(np.int8),
            log_probs=log_probs.astype(np.float32),
            forced=forced,
            policy_step=np.where(sampled, version, -1).astype(np.int32),
            media_spans=spans.astype(np.int32).reshape(-1, 4),
            margins=margins.astype(np.float32) if running.has_margins else None,
        )
        return Episode(request=request, trajectory=trajectory, tokens=tokens, thumbnails=running.thumbnails)


_NOBODY = Example(id="", question="", media=(), verifier="exact", truth="", source=Source(dataset=""))
_NARROWS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "constrain": False}


def _call_name(running: _Running) -> str:
    return f"{running.request.id}/{len(running.steps) + 1}"


def make_engine(model: Qwen3VL, encoder: Encoder, *, slots: int, capacity: int, **options: Any) -> Engine:
    """An engine whose special tokens are those of the encoder's tokenizer; `options` as `Engine`."""
    stop_id, tool_open_id = special_ids(encoder.tokenizer)
    return Engine(
        model,
        slots=slots,
        capacity=capacity,
        stop=[[stop_id]],
        banned_ids=banned_ids(encoder),
        tool_open_id=tool_open_id,
        patch_bucket=encoder.prompt.patch_bucket,
        **options,
    )


def special_ids(tokenizer: TextTokenizer) -> tuple[int, int]:
    """Ids of the token that ends a turn and of the one that opens a call.

    Raises:
      ValueError: The vocabulary lacks one of the tokens that episodes need, banned ones included.
    """
    never_sampled_ids(tokenizer)
    return tokenizer.id(END_OF_TURN), tokenizer.id(CALL_OPEN)


def banned_ids(encoder: Encoder) -> list[int]:
    """Ids that take no probability, in the sampler and in the trainer alike: vision and padding tokens, and embedding rows
    beyond the tokenizer's vocabulary."""
    return [*never_sampled_ids(encoder.tokenizer), *range(encoder.tokenizer.size, encoder.model.text.vocab_size)]


def never_sampled_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids of vision and padding tokens."""
    return [tokenizer.id(token) for token in NEVER_SAMPLED]


def _episode_key(request: Request) -> np.ndarray:
    """All the randomness of an episode, as `SlotOptions.key`: fold_in(seed, example, sample)."""
    return np.asarray(_folded(_seed_key(request.seed), _stable_hash(request.example.id), request.sample))


_seed_key = functools.lru_cache(maxsize=8)(jax.random.key)


@jax.jit
def _folded(key: jax.Array, example: int, sample: int) -> jax.Array:
    """One call to the device in place of four: it idles while an episode waits for its key."""
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, example), sample))


def _stable_hash(text: str) -> int:
    """31 bits that depend on the text alone (Python's own hash changes from run to run)."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF
