"""Runs episodes: the engine decodes turns, the tool pool answers calls, and both go on at the same time.

A slot that waits for its tool does not hold up the others; a finished episode's slot takes the next example at once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from pixelis_jax.encoding import Encoder, TextTokenizer, Thumbnail
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.engine import BlockResult, CacheFullError, Engine, SlotOptions
from pixelis_jax.rollout.replay import environment_record
from pixelis_jax.trajectory import (
    ACTION_ROLES,
    Example,
    Final,
    PolicyInfo,
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
from tools_host.media import MediaStore
from tools_host.protocol import Observation, ToolCall, ToolError, ToolOutput, ToolPool

NEVER_SAMPLED = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """When an episode ends without an answer: T_max calls, tokens of a turn, seconds on the wall."""

    max_steps: int = 6
    max_turn_tokens: int = 96
    wall_clock_s: float = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One episode to run. `seed` and `sample` are all its randomness; greedy when `temperature` is 0.

    `use_tools` False is the no-tools condition: the prompt names no tool and the token that opens a call is banned. `uris` are
    what the trajectory calls the example's media, by default their paths.
    """

    example: Example
    uris: tuple[str, ...] | None = None
    sample: int = 0
    seed: int = 0
    temperature: float = 0.0
    use_tools: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """A finished episode: what happened, and the tokens as they were sampled."""

    request: Request
    trajectory: Trajectory
    tokens: TokenRecord


@dataclasses.dataclass(kw_only=True)
class _Running:
    """An episode under way in a slot."""

    request: Request
    environment: EpisodeEnvironment
    thumbnails: dict[int, Thumbnail]
    position: int
    started: float
    steps: list[Step] = dataclasses.field(default_factory=list)
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    pending: tuple[str, str, ToolCall | None, float] | None = None

    def add(self, ids: np.ndarray, roles: np.ndarray, log_probs: np.ndarray | None, spans: np.ndarray) -> None:
        """Appends tokens; `spans` are relative to them."""
        offset = sum(len(piece[0]) for piece in self.pieces)
        spans = spans + np.asarray([offset, offset, 0, 0], np.int32) if len(spans) else spans
        log_probs = np.zeros(len(ids), np.float32) if log_probs is None else log_probs
        self.pieces.append((ids, roles, log_probs, spans))


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
    ):
        """Binds an engine to a tool pool.

        Args:
          engine: Decodes; its slots bound how many episodes run together.
          encoder: Of the same model directory.
          pool: Runs the calls.
          tools: What the environment offers.
          limits: When an episode ends without an answer.
          policy: Named in the trajectories.
          on_step: Called with each step as it happens.
        """
        self._engine, self._encoder, self._pool, self._tools = engine, encoder, pool, tools
        self._limits = limits or EpisodeLimits()
        self._policy, self._on_step = policy, on_step
        tools.load()
        self._schemas = tools.schemas()
        self._versions = {name: ToolInfo(**fields) for name, fields in tools.tool_versions().items()}
        self._store = MediaStore(tools.cache_bytes)
        self._running: dict[int, _Running] = {}
        # By slot: equal calls of two episodes that are under way together share one future.
        self._calls: dict[int, concurrent.futures.Future[ToolOutput | ToolError]] = {}

    def run(self, requests: Iterable[Request]) -> Iterator[Episode]:
        """Yields episodes as they end, which is not the order of `requests`.

        A caller that stops before the end leaves free slots behind.

        Raises:
          tools_host.media.MediaError: A medium of an example cannot be read.
        """
        waiting = iter(requests)
        exhausted = False
        try:
            while True:
                while not exhausted and self._engine.free_slots:
                    request = next(waiting, None)
                    if request is None:
                        exhausted = True
                    elif (episode := self._open(request)) is not None:
                        yield episode
                if exhausted and not self._running:
                    return
                for result in self._engine.step():
                    if (episode := self._turn(result)) is not None:
                        yield episode
                idle = not self._engine.busy and (exhausted or not self._engine.free_slots)
                yield from self._observations(block=idle)
        finally:
            for slot in self._running:
                self._engine.release(slot)
            self._running.clear()
            self._calls.clear()

    def _open(self, request: Request) -> Episode | None:
        """Gives a request a slot; a prompt that does not fit is an episode that has ended."""
        environment = EpisodeEnvironment(request.example.media, self._tools, uris=request.uris, store=self._store)
        thumbnails: dict[int, Thumbnail] = {}
        for medium in environment.media:
            thumbnails[medium.id] = self._show(environment, medium.id)
        prompt = self._encoder.prompt
        segments = render_prompt(
            request.example.question,
            environment.media,
            tools=prompt.tools if request.use_tools else "none",
            schemas=self._schemas,
            style=prompt.style,
        )
        chunk = self._encoder.encode(segments, thumbnails)
        key = np.asarray(jax.random.key_data(_episode_key(request)), np.uint32)
        options = SlotOptions(
            key=key,
            temperature=request.temperature,
            ban_tools=not request.use_tools,
            max_turn_tokens=self._limits.max_turn_tokens,
        )
        running = _Running(
            request=request,
            environment=environment,
            thumbnails=thumbnails,
            position=chunk.next_position,
            started=time.monotonic(),
        )
        running.add(chunk.ids, chunk.roles, None, chunk.media_spans)
        try:
            slot = self._engine.submit(chunk, options)
        except CacheFullError:
            return self._episode(running, "context_full", None, None)
        self._running[slot] = running
        return None

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
        running.add(result.ids, roles, result.log_probs, np.zeros((0, 4), np.int32))
        running.position += len(result.ids)
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
        if time.monotonic() - running.started > self._limits.wall_clock_s:
            return self._close(result.slot, "wall_clock", Final(raw=raw, thought=turn.thought), None)
        prepared = turn.error or running.environment.prepare(turn.call)  # type: ignore[arg-type]
        running.pending = (raw, turn.thought, turn.call, time.monotonic())
        if isinstance(prepared, ToolError):
            future: concurrent.futures.Future[ToolOutput | ToolError] = concurrent.futures.Future()
            future.set_result(prepared)
        else:
            future = self._pool.submit(prepared)
        self._calls[result.slot] = future
        return None

    def _observations(self, *, block: bool) -> Iterator[Episode]:
        """Takes the calls that are done; `block` waits for one."""
        if not self._calls:
            return
        if block:
            concurrent.futures.wait(self._calls.values(), return_when=concurrent.futures.FIRST_COMPLETED)
        for slot in sorted(slot for slot, future in self._calls.items() if future.done()):
            if (episode := self._observe(slot, self._calls.pop(slot).result())) is not None:
                yield episode

    def _observe(self, slot: int, output: ToolOutput | ToolError) -> Episode | None:
        running = self._running[slot]
        assert running.pending is not None
        raw, thought, call, started = running.pending
        running.pending = None
        observation: Observation = running.environment.observe(call, output)
        for media_id in observation.media:
            running.thumbnails[media_id] = self._show(running.environment, media_id)
        step = Step(
            raw=raw,
            thought=thought,
            call=call,
            observation=observation,
            elapsed_ms=round(1000 * (time.monotonic() - started), 1),
        )
        running.steps.append(step)
        if self._on_step is not None:
            self._on_step(running.request, step)
        segments = render_observation(observation, running.environment.media, style=self._encoder.prompt.style)
        chunk = self._encoder.encode(segments, running.thumbnails, start=running.position)
        try:
            self._engine.extend(slot, chunk)
        except CacheFullError:
            # The step is kept, since its tool did run; the tokens end with the turn that called it.
            return self._close(slot, "context_full", None, None)
        running.add(chunk.ids, chunk.roles, None, chunk.media_spans)
        running.position = chunk.next_position
        return None

    def _close(self, slot: int, stopped: Stopped, final: Final | None, answer: str | None) -> Episode:
        running = self._running.pop(slot)
        self._engine.release(slot)
        return self._episode(running, stopped, final, answer)

    def _episode(self, running: _Running, stopped: Stopped, final: Final | None, answer: str | None) -> Episode:
        request = running.request
        example = request.example
        trajectory = Trajectory(
            id=f"{example.id}-{request.seed}-{request.sample}" + ("" if request.use_tools else "-no_tools"),
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
            policy=self._policy,
            sampling={
                "temperature": request.temperature,
                "use_tools": request.use_tools,
                "family": example.family,
                "truth": example.truth,
                "environment": environment_record(self._tools),
            },
            tools=self._versions,
        )
        ids, roles, log_probs, spans = (np.concatenate(parts) for parts in zip(*running.pieces, strict=True))
        sampled = np.isin(roles, ACTION_ROLES)
        version = self._policy.step if self._policy is not None else 0
        tokens = TokenRecord(
            ids=ids.astype(np.int32),
            roles=roles.astype(np.int8),
            log_probs=log_probs.astype(np.float32),
            forced=np.zeros(len(ids), bool),
            policy_step=np.where(sampled, version, -1).astype(np.int32),
            media_spans=spans.astype(np.int32).reshape(-1, 4),
        )
        return Episode(request=request, trajectory=trajectory, tokens=tokens)


def make_engine(model: Qwen3VL, encoder: Encoder, *, slots: int, capacity: int, block: int = 32) -> Engine:
    """An engine whose special tokens are those of the encoder's tokenizer."""
    stop_id, tool_open_id = special_ids(encoder.tokenizer)
    return Engine(
        model,
        slots=slots,
        capacity=capacity,
        stop_id=stop_id,
        banned_ids=banned_ids(encoder),
        tool_open_id=tool_open_id,
        patch_bucket=encoder.prompt.patch_bucket,
        block=block,
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


def _episode_key(request: Request) -> jax.Array:
    """All the randomness of an episode: fold_in(seed, example, sample)."""
    key = jax.random.key(request.seed)
    for part in (_stable_hash(request.example.id), request.sample):
        key = jax.random.fold_in(key, part)
    return key


def _stable_hash(text: str) -> int:
    """31 bits that depend on the text alone (Python's own hash changes from run to run)."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF
