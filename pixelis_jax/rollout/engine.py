"""The rollout engine: a fixed number of sequences that are decoded together, each behind its own KV cache.

A prompt or an observation is a `Chunk`; it is prefilled behind what its slot already holds, so no token is computed twice. A
jitted block decodes every active slot until each has ended its turn or the block is used up; nothing leaves the device in
between.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from pixelis_jax.encoding import Chunk
from pixelis_jax.policy import KVCache, Qwen3VL, VisionInputs

# Few and coarse: each pair of buckets that occurs compiles once, which costs more than the padding of a small chunk.
CHUNK_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FRAME_BUCKETS = (0, 1, 4, 16, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotOptions:
    """What one episode asks of its slot. `key` (uint32 `[2]`) is all its randomness; `ban_tools` forbids the tool-open token."""

    key: np.ndarray
    temperature: float = 1.0
    ban_tools: bool = False
    max_turn_tokens: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockResult:
    """A turn that ended. `log_probs` are those of `ids` under the static ban and the slot's temperature (1 when greedy).

    `ended` is `stop` (the end token was sampled and is the last id), `length` (the turn's limit) or `full` (the cache).
    """

    slot: int
    ids: np.ndarray
    log_probs: np.ndarray
    ended: str


class CacheFullError(Exception):
    """A chunk does not fit behind its slot's cache."""


@struct.dataclass
class _State:
    """What lives on the device, a row a slot: cache, logits of the next token `[B, V]`, and what sampling needs, `[B]` each."""

    cache: KVCache
    logits: jax.Array
    position: jax.Array
    key: jax.Array
    sampled: jax.Array
    turn_tokens: jax.Array
    temperature: jax.Array
    ban_tools: jax.Array
    turn_limit: jax.Array


class Engine:
    """Continuous decoding over a fixed number of slots. See `docs/architecture.md`, "The flow"."""

    def __init__(
        self,
        model: Qwen3VL,
        *,
        slots: int,
        capacity: int,
        stop_id: int,
        banned_ids: Sequence[int],
        tool_open_id: int,
        patch_bucket: int,
        block: int = 32,
        prefill_rows: int = 4,
    ):
        """Allocates the slots.

        Args:
          model: The policy.
          slots: B, sequences that are decoded together.
          capacity: Most tokens of an episode, prompt and observations included.
          stop_id: The token that ends a turn.
          banned_ids: Never sampled: vision and padding tokens (part of every log-prob's softmax).
          tool_open_id: The token that opens a call, banned on request of a slot.
          patch_bucket: S, patches that a frame is padded to.
          block: Most tokens decoded before the host looks.
          prefill_rows: Chunks that one prefill takes.
        """
        self._graph, self._params = nnx.split(model)
        self._config = model.config
        vocab = self._config.text.vocab_size
        banned = np.zeros(vocab, bool)
        banned[list(banned_ids)] = True
        self._banned = jnp.asarray(banned)
        self._stop_id, self._tool_open_id = stop_id, tool_open_id
        self._block, self._prefill_rows = block, min(prefill_rows, slots)
        self.patch_bucket, self.capacity, self.slots = patch_bucket, capacity, slots
        self._state = _State(
            cache=KVCache.create(self._config, slots, capacity, dtype=model.precision.compute, execution=model.execution),
            logits=jnp.zeros((slots, vocab), jnp.float32),
            position=jnp.zeros(slots, jnp.int32),
            key=jnp.zeros((slots, 2), jnp.uint32),
            sampled=jnp.zeros(slots, jnp.int32),
            turn_tokens=jnp.zeros(slots, jnp.int32),
            temperature=jnp.ones(slots, jnp.float32),
            ban_tools=jnp.zeros(slots, bool),
            turn_limit=jnp.zeros(slots, jnp.int32),
        )
        self._length = np.zeros(slots, np.int64)
        self._free = list(range(slots))[::-1]
        self._waiting: list[tuple[int, Chunk, SlotOptions | None]] = []
        self._decoding: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    @property
    def free_slots(self) -> int:
        """Slots that `submit` can take."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._waiting or self._decoding)

    def update_params(self, model: Qwen3VL) -> None:
        """Takes new weights of the same architecture. The slots must be free: an episode ends on the weights it began with."""
        if self.free_slots != self.slots:
            raise ValueError(f"{self.slots - self.free_slots} episodes are under way; new weights wait until they have ended")
        _, self._params = nnx.split(model)

    def submit(self, prompt: Chunk, options: SlotOptions) -> int:
        """Gives a new episode a free slot; returns the slot.

        Raises:
          CacheFullError: The prompt is longer than the capacity.
          IndexError: No slot is free.
        """
        if len(prompt.ids) >= self.capacity:
            raise CacheFullError(f"a prompt of {len(prompt.ids)} tokens does not fit into a context of {self.capacity}")
        slot = self._free.pop()
        self._length[slot] = 0
        self._enqueue(slot, prompt, options)
        return slot

    def extend(self, slot: int, observation: Chunk) -> None:
        """Puts an observation behind a slot whose turn has ended; the next turn is decoded from there.

        Raises:
          CacheFullError: It does not fit; the slot is as it was.
        """
        if self._length[slot] + len(observation.ids) >= self.capacity:
            raise CacheFullError(
                f"{len(observation.ids)} more tokens do not fit behind {self._length[slot]} in a context of {self.capacity}"
            )
        self._enqueue(slot, observation, None)

    def release(self, slot: int) -> None:
        """Frees a slot whose episode has ended."""
        self._decoding.pop(slot, None)
        self._waiting = [item for item in self._waiting if item[0] != slot]
        self._free.append(slot)

    def step(self) -> list[BlockResult]:
        """Prefills what waits, decodes one block, and returns the turns that ended in it."""
        while self._waiting:
            self._prefill(self._waiting[: self._prefill_rows])
            del self._waiting[: self._prefill_rows]
        if not self._decoding:
            return []
        active = np.zeros(self.slots, bool)
        active[list(self._decoding)] = True
        self._state, ids, log_probs, counts, ended = _decode_block(
            self._graph, self._params, self._state, jnp.asarray(active), self._banned,
            stop_id=self._stop_id, tool_open_id=self._tool_open_id, block=self._block,
        )  # fmt: skip
        ids, log_probs, counts, ended = jax.device_get((ids, log_probs, counts, ended))
        results = []
        for slot in sorted(self._decoding):
            count = int(counts[slot])
            self._length[slot] += count
            self._decoding[slot].append((ids[slot, :count], log_probs[slot, :count]))
            if ended[slot]:
                results.append(self._finish(slot))
        return results

    def _finish(self, slot: int) -> BlockResult:
        parts = self._decoding.pop(slot)
        ids = np.concatenate([part[0] for part in parts])
        ended = "full" if self._length[slot] >= self.capacity else "length"
        if len(ids) and ids[-1] == self._stop_id:
            ended = "stop"
        return BlockResult(slot=slot, ids=ids, log_probs=np.concatenate([part[1] for part in parts]), ended=ended)

    def _enqueue(self, slot: int, chunk: Chunk, options: SlotOptions | None) -> None:
        self._length[slot] += len(chunk.ids)
        self._waiting.append((slot, chunk, options))

    def _prefill(self, items: Sequence[tuple[int, Chunk, SlotOptions | None]]) -> None:
        """One fixed batch shape a bucket: rows without a chunk are masked and write nowhere."""
        rows = self._prefill_rows
        tokens = _bucket(max(len(chunk.ids) for _, chunk, _ in items), CHUNK_BUCKETS)
        frames = _bucket(max(len(chunk.grid) for _, chunk, _ in items), FRAME_BUCKETS)
        vision = self._config.vision
        patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        batch = {
            "slot": np.full(rows, self.slots, np.int32),
            "ids": np.zeros((rows, tokens), np.int32),
            "positions": np.zeros((rows, tokens, 3), np.int32),
            "visual_index": np.full((rows, tokens), -1, np.int32),
            "valid": np.zeros((rows, tokens), bool),
            "next_position": np.zeros(rows, np.int32),
            "patches": np.zeros((rows, frames, self.patch_bucket, patch_size), np.float32),
            "grid": np.zeros((rows, frames, 2), np.int32),
            "fresh": np.zeros(rows, bool),
            "key": np.zeros((rows, 2), np.uint32),
            "temperature": np.ones(rows, np.float32),
            "ban_tools": np.zeros(rows, bool),
            "turn_limit": np.zeros(rows, np.int32),
        }
        for row, (slot, chunk, options) in enumerate(items):
            count, shown = len(chunk.ids), len(chunk.grid)
            batch["slot"][row] = slot
            batch["ids"][row, :count] = chunk.ids
            batch["positions"][row, :count] = chunk.positions
            batch["visual_index"][row, :count] = chunk.visual_index
            batch["valid"][row, :count] = True
            batch["next_position"][row] = chunk.next_position
            batch["patches"][row, :shown] = chunk.patches
            batch["grid"][row, :shown] = chunk.grid
            if options is not None:
                batch["fresh"][row] = True
                batch["key"][row] = options.key
                batch["temperature"][row] = options.temperature
                batch["ban_tools"][row] = options.ban_tools
                batch["turn_limit"][row] = options.max_turn_tokens
            self._decoding[slot] = []
        self._state = _prefill(self._graph, self._params, self._state, jax.tree.map(jnp.asarray, batch))


def _bucket(value: int, buckets: Sequence[int]) -> int:
    for bucket in buckets:
        if value <= bucket:
            return bucket
    raise CacheFullError(f"{value} is more than the largest bucket, {buckets[-1]}")


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(graph: nnx.GraphDef, params: nnx.State, state: _State, batch: dict[str, jax.Array]) -> _State:
    """Runs up to R chunks behind their slots. Rows whose slot is out of range read slot B - 1 and write nothing."""
    model = nnx.merge(graph, params)
    slot, fresh = batch["slot"], batch["fresh"]
    rows = state.cache.take(slot).reset(fresh)
    visual = None
    if batch["grid"].shape[1]:
        visual = model.encode_vision(VisionInputs(patches=batch["patches"], grid=batch["grid"]))
    hidden, rows = model(
        batch["ids"],
        batch["positions"],
        visual=visual,
        visual_index=None if visual is None else batch["visual_index"],
        attention_mask=batch["valid"],
        cache=rows,
    )
    last = jnp.maximum(batch["valid"].sum(axis=1) - 1, 0)
    logits = model.unembed(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[slot].set(new, mode="drop")

    def keep(old: jax.Array, new: jax.Array) -> jax.Array:
        kept = jnp.take(old, slot, axis=0, mode="clip")
        return put(old, jnp.where(fresh.reshape(-1, *[1] * (old.ndim - 1)), new, kept))

    return _State(
        cache=state.cache.put(slot, rows),
        logits=put(state.logits, logits),
        position=put(state.position, batch["next_position"]),
        key=keep(state.key, batch["key"]),
        sampled=keep(state.sampled, jnp.zeros_like(slot)),
        turn_tokens=put(state.turn_tokens, jnp.zeros_like(slot)),
        temperature=keep(state.temperature, batch["temperature"]),
        ban_tools=keep(state.ban_tools, batch["ban_tools"]),
        turn_limit=keep(state.turn_limit, batch["turn_limit"]),
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames=("stop_id", "tool_open_id", "block"), donate_argnums=2)
def _decode_block(
    graph: nnx.GraphDef,
    params: nnx.State,
    state: _State,
    active: jax.Array,
    banned: jax.Array,
    *,
    stop_id: int,
    tool_open_id: int,
    block: int,
) -> tuple[_State, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Decodes until every active slot has ended its turn or `block` tokens are used up.

    Returns:
      The state, ids `[B, block]`, log-probs `[B, block]`, tokens sampled `[B]`, and whether the turn ended `[B]`.
    """
    model = nnx.merge(graph, params)
    slots = active.shape[0]
    vocab = jnp.arange(state.logits.shape[-1])

    def sample(state: _State) -> tuple[jax.Array, jax.Array]:
        ban = banned | (state.ban_tools[:, None] & (vocab == tool_open_id))
        greedy = state.temperature <= 0
        logits = jnp.where(ban, -jnp.inf, state.logits) / jnp.where(greedy, 1.0, state.temperature)[:, None]
        keys = jax.vmap(jax.random.fold_in)(state.key, state.sampled)
        drawn = jax.vmap(jax.random.categorical)(keys, logits)
        token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]

    def body(carry):  # type: ignore[no-untyped-def]
        state, active, step, ids, log_probs, counts, ended = carry
        token, log_prob = sample(state)
        ids = ids.at[:, step].set(jnp.where(active, token, 0))
        log_probs = log_probs.at[:, step].set(jnp.where(active, log_prob, 0.0))
        hidden, cache = model(
            token[:, None],
            jnp.broadcast_to(state.position[:, None, None], (slots, 1, 3)),
            attention_mask=active[:, None],
            cache=state.cache,
        )
        one = active.astype(jnp.int32)
        turn_tokens = state.turn_tokens + one
        state = state.replace(
            cache=cache,
            logits=jnp.where(active[:, None], model.unembed(hidden[:, 0]), state.logits),
            position=state.position + one,
            sampled=state.sampled + one,
            turn_tokens=turn_tokens,
        )
        over = (token == stop_id) | (turn_tokens >= state.turn_limit) | (cache.length >= cache.capacity)
        now = active & over
        return state, active & ~over, step + 1, ids, log_probs, counts + one, ended | now

    carry = (
        state,
        active,
        jnp.int32(0),
        jnp.zeros((slots, block), jnp.int32),
        jnp.zeros((slots, block), jnp.float32),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros(slots, bool),
    )
    state, _, _, ids, log_probs, counts, ended = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]) & (carry[2] < block), body, carry
    )
    return state, ids, log_probs, counts, ended
