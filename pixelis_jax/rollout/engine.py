"""The rollout engine: a fixed number of sequences that are decoded together, each behind its own KV cache.

A prompt or an observation is a `Chunk`; it is prefilled behind what its slot already holds, so no token is computed twice, and
samples of one prompt share its prefill. A jitted block decodes every active slot until each has ended its turn or the block is
used up; nothing leaves the device in between. `begin` hands work to the device and returns at once; `finish` waits for it.
A slot with a grammar leaves the block at the token that opens a call, and goes on token by token under masks made on the host.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from pixelis_jax import sharding
from pixelis_jax.encoding import Chunk
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout import sampling
from pixelis_jax.rollout import slots as slots_lib
from pixelis_jax.rollout.call_grammar import CallGrammar, CallMasks, GrammarError
from pixelis_jax.rollout.sampling import Sampling
from pixelis_jax.rollout.tracing import Compilations, Tracer

# Tokens and frames that one prefill takes of a row. Each pair that occurs compiles once, so they are few and coarse; a longer
# chunk goes in several parts.
BUCKETS = ((32, 0), (128, 0), (128, 1), (256, 4), (1024, 0), (1024, 16))
# XLA's CPU backend takes another softmax for fewer scores than this, whose last bits differ.
_FEW_SCORES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotOptions:
    """What one episode asks of its slot.

    Attributes:
      key: uint32 `[2]`, all its randomness.
      temperature: 0 takes the most probable token.
      top_p, top_k, min_p: narrow the choice down; 1, 0 and 0 do not. The recorded log-probs do not know of them.
      ban_tools: forbids the token that opens a call.
      max_turn_tokens: of a turn.
      max_tokens: sampled tokens of the episode.
      grammar: what calls keep to, from the token that opens one to the end of the turn. The recorded log-probs do not know of it.
    """

    key: np.ndarray
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    ban_tools: bool = False
    max_turn_tokens: int = 128
    max_tokens: int = 2**31 - 1
    grammar: CallGrammar | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockResult:
    """A turn that ended. `log_probs` are those of `ids` under the static ban and the slot's temperature (1 when greedy).

    `forced` is true where the grammar left one choice; `margins` is as in `TokenRecord`.
    `ended` is `stop` (a stop sequence was sampled, whose last token is the last id), `length` (a limit) or `full` (the cache).
    """

    slot: int
    ids: np.ndarray
    log_probs: np.ndarray
    forced: np.ndarray
    ended: str
    margins: np.ndarray | None = None


class CacheFullError(Exception):
    """A chunk does not fit behind its slot's cache."""


class BudgetError(ValueError):
    """The slots would take more memory than they may."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefill:
    """Parts of chunks that one call takes, already on the device."""

    slots: tuple[int, ...]
    tokens: int
    batch: dict[str, jax.Array]


@dataclasses.dataclass(kw_only=True)
class Counters:
    """What an engine has done since it was made.

    Attributes:
      prompt_tokens, observation_tokens: tokens that were submitted, those of a shared prompt each time.
      shared_tokens: prompt tokens that another sample's prefill had computed.
      prefill_tokens: tokens computed in prefills, without padding.
      prefill_slots: the same with padding.
      prefills, blocks: calls.
      decoded: sampled tokens, those under a grammar included.
      active: slots that decoded, summed over blocks.
      masked_steps: calls that decoded one token of each slot under a grammar.
      masked, forced: tokens sampled under one, and those of them that it left no choice.
    """

    prompt_tokens: int = 0
    observation_tokens: int = 0
    shared_tokens: int = 0
    prefill_tokens: int = 0
    prefill_slots: int = 0
    prefills: int = 0
    blocks: int = 0
    decoded: int = 0
    active: int = 0
    masked_steps: int = 0
    masked: int = 0
    forced: int = 0


@dataclasses.dataclass(frozen=True)
class _Start:
    """An episode that begins in `target`, behind the prompt that `source` holds."""

    source: int
    target: int
    options: SlotOptions


@dataclasses.dataclass(frozen=True)
class _Flight:
    """A block under way: who decodes in it, and what it will have made."""

    decoding: tuple[int, ...]
    block: slots_lib.Block


class Engine:
    """Continuous decoding over a fixed number of slots. See `docs/rollout.md`."""

    def __init__(
        self,
        model: Qwen3VL,
        *,
        slots: int,
        capacity: int,
        stop: Sequence[Sequence[int]],
        banned_ids: Sequence[int],
        tool_open_id: int,
        patch_bucket: int,
        block: int = 32,
        prefill_rows: int = 2,
        buckets: Sequence[tuple[int, int]] = BUCKETS,
        page: int | None = None,
        windows: bool | None = None,
        byte_budget: int | None = None,
        mesh: Mesh | None = None,
        version: int = 0,
        tracer: Tracer | None = None,
        grammar: bool = False,
    ):
        """Allocates the slots.

        Args:
          model: The policy.
          slots: B, sequences that are decoded together.
          capacity: Most tokens of an episode, prompt and observations included.
          stop: Sequences of tokens that end a turn.
          banned_ids: Never sampled: vision and padding tokens (part of every log-prob's softmax).
          tool_open_id: The token that opens a call, banned on request of a slot.
          patch_bucket: S, patches that a frame is padded to.
          block: Most tokens decoded before the host looks.
          prefill_rows: R, chunks that one prefill takes, a multiple of the parts that a mesh makes of a batch. It does not depend
            on the slots, so that an episode is the same among many and alone, up to rounding.
          buckets: (tokens, frames) that one prefill takes of a chunk.
          page: Tokens of the cache that attention reads at a time; by default 64 with windows, which hold whole pages, else 128.
          windows: Whether a block of decoding takes filled pages out of the cache once, beside room for its own tokens, which
            costs their memory again, in place of cutting pages out at every token; by default on a CPU with unrolled layers,
            where cutting costs as much as attending.
          byte_budget: Most bytes of the slots on all devices together.
          mesh: Where the parameters lie; None for one device.
          version: Of the parameters.
          tracer: Takes spans and counters.
          grammar: Whether slots may have a grammar; compiles one program more.

        Raises:
          BudgetError: The slots are larger than the budget.
          ValueError: No bucket takes a frame, or a stop sequence is empty.
        """
        if not stop or not all(stop):
            raise ValueError("a turn needs at least one stop sequence, none of them empty")
        if not any(frames and tokens >= patch_bucket // 4 for tokens, frames in buckets):
            raise ValueError(f"no bucket of {list(buckets)} takes a frame of {patch_bucket // 4} tokens")
        self._graph, params = nnx.split(model)
        self._params, self._version = {version: params}, version
        self._config = model.config
        self._mesh, self._tracer = mesh, tracer or Tracer()
        self._compilations = Compilations() if self._tracer.on else None
        self._counted = time.perf_counter(), 0  # when, and the tokens decoded until then
        self._buckets = sorted(buckets, key=lambda bucket: bucket[0] + bucket[1] * patch_bucket)
        self._tool_open_id, self._block, self._rows = tool_open_id, block, prefill_rows
        self.patch_bucket, self.capacity, self.slots = patch_bucket, capacity, slots
        self.counters = Counters()
        self.cache_bytes = 0
        banned = np.zeros(self._config.text.vocab_size, bool)
        banned[list(banned_ids)] = True
        window = max(map(len, stop))
        stops = np.full((len(stop), window), -1, np.int32)
        for row, sequence in zip(stops, stop, strict=True):
            row[window - len(sequence) :] = sequence
        self._banned, self._stops = self._put(banned), self._put(stops)
        self._stop = tuple(map(tuple, stop))
        self._sampleable = _packed(~banned)
        if windows is None:
            windows = jax.default_backend() == "cpu" and not model.execution.scan_layers
        if page is None:
            page = 64 if windows else 128
        self._slots = self._allocate(model, window, page, byte_budget)
        self._page = self._slots.cache.page
        self._windows = self._choose_windows() if windows else ()
        self._length = np.zeros(slots, np.int64)
        self._free = list(range(slots))
        self._slot_version = [version] * slots
        self._prompts: dict[int, bytes] = {}  # slot -> what its cache begins with
        self._new_prompts: list[tuple[int, Chunk]] = []  # not yet laid out: those that come together share prefills
        self._prefills: list[Prefill] = []
        self._starts: list[_Start] = []
        self._decoding: dict[int, list[tuple[np.ndarray, ...]]] = {}  # ids, log-probs, forced, with experts also margins
        self._pending: set[int] = set()  # slots that wait for a prefill or their start
        self._flights: list[_Flight] = []
        self._takes_grammars = grammar
        self._grammars: dict[int, CallGrammar] = {}
        self._calls: dict[int, CallMasks] = {}  # slots inside a call

    @property
    def free_slots(self) -> int:
        """Slots that `submit` can take."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._pending or self._decoding)

    @property
    def version(self) -> int:
        """Of the parameters that new episodes get."""
        return self._version

    def version_of(self, slot: int) -> int:
        """Returns the version of the parameters that a slot's episode began with, and ends with."""
        return self._slot_version[slot]

    @property
    def can_update(self) -> bool:
        """Whether `update_params` would be taken: at most two versions live at a time."""
        return not self._live_versions() - {self._version}

    def update_params(self, model: Qwen3VL, version: int | None = None) -> None:
        """Gives new episodes new weights of the same architecture; an episode ends on the weights it began with.

        Args:
          model: The weights.
          version: Their number; by default the next one.

        Raises:
          ValueError: Episodes on older weights than the present ones are still under way, or the version is not new.
        """
        version = self._version + 1 if version is None else version
        live = self._live_versions()
        if not self.can_update:
            raise ValueError("episodes of two versions are under way; new weights wait until those of the older one have ended")
        if version in live:
            raise ValueError(f"episodes of version {version} are under way")
        self._flush()  # a prefill is of one version
        self._params = {number: params for number, params in self._params.items() if number in live}
        self._params[version] = nnx.split(model)[1]
        self._version = version

    def room(self, slot: int) -> int:
        """Returns how many more tokens a slot can take and still say one."""
        return int(self.capacity - 1 - self._length[slot])

    def submit(self, prompt: Chunk, options: SlotOptions) -> int:
        """Gives a new episode a free slot; returns the slot. A prompt that a slot still holds is not computed again.

        Raises:
          CacheFullError: The prompt is longer than the capacity.
          IndexError: No slot is free.
          ValueError: A grammar for an engine that was made without.
        """
        if options.grammar is not None and not self._takes_grammars:
            raise ValueError("this engine takes no grammars: make it with `grammar=True`")
        if len(prompt.ids) >= self.capacity:
            raise CacheFullError(f"a prompt of {len(prompt.ids)} tokens does not fit into a context of {self.capacity}")
        key = _digest(prompt)
        holders = [slot for slot, held in self._prompts.items() if held == key and self.version_of(slot) == self._version]
        slot = self._take_free(holders)
        if holders:
            self.counters.shared_tokens += len(prompt.ids)
        elif any(slot == begun.source for begun in self._starts):
            self._flush()  # the slot's old prompt is still to be copied
        self._slot_version[slot] = self._version
        if options.grammar is not None:
            self._grammars[slot] = options.grammar
        self._prompts[slot] = key
        self._length[slot] = len(prompt.ids)
        self.counters.prompt_tokens += len(prompt.ids)
        if not holders:
            self._new_prompts.append((slot, prompt))
        self._starts.append(_Start(holders[0] if holders else slot, slot, options))
        self._pending.add(slot)
        return slot

    def layout(self, items: Sequence[tuple[int, Chunk]]) -> list[Prefill]:
        """Pads observations to buckets and puts them on the device; `extend` takes the result. Safe in another thread.

        Args:
          items: (slot, observation), each with `room` for it.
        """
        return self._layout(items, prompt=False)

    def extend(self, items: Sequence[tuple[int, Chunk]], prefills: Sequence[Prefill] | None = None) -> None:
        """Puts observations behind slots whose turns have ended; the next turns are decoded from there.

        Args:
          items: (slot, observation).
          prefills: what `layout` made of them.

        Raises:
          CacheFullError: One does not fit; all slots are as they were.
        """
        for slot, chunk in items:
            if len(chunk.ids) > self.room(slot):
                raise CacheFullError(
                    f"{len(chunk.ids)} more tokens do not fit behind {self._length[slot]} in a context of {self.capacity}"
                )
        for slot, chunk in items:
            self._length[slot] += len(chunk.ids)
            self.counters.observation_tokens += len(chunk.ids)
        self._enqueue(self.layout(items) if prefills is None else prefills)

    def release(self, slot: int) -> None:
        """Frees a slot whose episode has ended."""
        self._decoding.pop(slot, None)
        if slot in self._pending:  # its prompt may be what others wait for: what is queued is done, then forgotten
            self._pending.remove(slot)
            self._flush()
        self._grammars.pop(slot, None)
        self._calls.pop(slot, None)
        self._free.append(slot)

    def step(self) -> list[BlockResult]:
        """Prefills what waits, decodes one block (inside calls: as many single tokens), and returns the turns that ended."""
        self.begin()
        return self.finish()

    def prefill(self) -> None:
        """Computes what waits, and waits for it: what `begin` would do first."""
        self._flush()
        jax.block_until_ready(self._slots.logits)

    def begin(self) -> None:
        """Hands the device what waits and a block of decoding, and does not wait for it."""
        self._flush()
        with self._context():
            for version, decoding in self._by_version(self._decoding.keys() - self._calls.keys()):
                self._flights.append(_Flight(decoding, self._decode(version, decoding, pages=self._filled(decoding))))
                self.counters.blocks += 1
                self.counters.active += len(decoding)

    def finish(self) -> list[BlockResult]:
        """Waits for the block; returns the turns that ended in it. Slots inside a call go on by as many tokens as a block has."""
        flights, self._flights = self._flights, []
        with self._tracer.span("decode", "device", slots=sum(len(flight.decoding) for flight in flights)):
            blocks = jax.device_get([flight.block for flight in flights])
        results = self._collect(flights, blocks, np.zeros(self.slots, bool))
        with self._tracer.span("calls", "device", slots=len(self._calls)) if self._calls else contextlib.nullcontext():
            for _ in range(self._block):
                if self._calls:
                    results += self._step_calls()
        if self._compilations is not None:
            self._draw(len({slot for flight in flights for slot in flight.decoding}), self._compilations.count)
        return results

    def warm_up(self) -> None:
        """Compiles everything that the engine can need, so that nothing compiles while episodes run."""
        with self._context():
            for tokens, frames in self._buckets:
                self._run_prefill(self._lay([], tokens, frames))
            self._run_starts([])
            for pages in self._windows or (None,):
                jax.block_until_ready(self._decode(self._version, (), pages=pages))
            if self._takes_grammars:
                nothing = np.zeros((self.slots, len(self._sampleable)), np.uint32)
                jax.block_until_ready(self._decode(self._version, (), allowed=nothing))
        self.counters = Counters()

    def _decode(
        self, version: int, decoding: Sequence[int], *, allowed: np.ndarray | None = None, pages: int | None = None
    ) -> slots_lib.Block:
        """A block in a window of so many pages, or one token of those that are `allowed`."""
        options: dict[str, Any] = {"block": self._block, "pages": pages}
        if allowed is not None:
            options = {"block": 1, "allowed": self._put(allowed, "batch")}
        elif self._takes_grammars:
            options["pauses"] = self._put(self._mark(self._grammars))
        self._slots, block = slots_lib.decode(
            self._graph, self._params[version], self._slots, self._put(self._mark(decoding)), self._banned, self._stops,
            tool_open_id=self._tool_open_id, capacity=self.capacity, **options,
        )  # fmt: skip
        return block

    def _choose_windows(self) -> tuple[int, ...]:
        """Sizes of windows, in pages, that give the same bits: in which one a slot decodes depends on the others."""
        cache = self._slots.cache
        keys = cache.layers[0][0]
        rows, heads = keys.sharding.shard_shape(keys.shape)[:2]
        scores = rows * heads * self._config.text.num_attention_heads // self._config.text.num_key_value_heads
        sizes = _doubled(cache.capacity // self._page)
        return tuple(size for size in sizes if scores * (self._block + size * self._page) >= _FEW_SCORES) or sizes

    def _filled(self, decoding: Sequence[int]) -> int | None:
        """Pages of a window that hold all that these slots have; None without windows."""
        most = -(-int(self._length[list(decoding)].max()) // self._page)
        return next((pages for pages in self._windows if pages >= most), None)

    def _collect(self, flights: Sequence[_Flight], blocks: Sequence[slots_lib.Block], forced: np.ndarray) -> list[BlockResult]:
        """Keeps what was decoded; `forced` `[B]` holds for all tokens of a slot. Returns the turns that have ended."""
        results = []
        for flight, block in zip(flights, blocks, strict=True):
            for slot in flight.decoding:
                if slot not in self._decoding:  # released meanwhile
                    continue
                count = int(block.counts[slot])
                ids, log_probs, *margins = (
                    np.asarray(array)[slot, :count] for array in (block.ids, block.log_probs, block.margins) if array is not None
                )
                self._length[slot] += count
                self.counters.decoded += count
                self._decoding[slot].append((ids, log_probs, np.full(count, forced[slot]), *margins))
                if block.ended[slot]:
                    self._calls.pop(slot, None)
                    results.append(self._finish(slot))
                elif slot in self._calls:
                    self._calls[slot].take(int(ids[0]))
                elif slot in self._grammars and ids[-1] == self._tool_open_id:
                    self._calls[slot] = self._grammars[slot].begin()
        return results

    def _step_calls(self) -> list[BlockResult]:
        """Decodes one token of each slot that is inside a call; returns the turns that ended with it."""
        allowed = np.zeros((self.slots, len(self._sampleable)), np.uint32)
        for slot, masks in self._calls.items():
            words = masks.allowed()
            allowed[slot, : len(words)] = words
        allowed &= self._sampleable
        choices = np.bitwise_count(allowed).sum(axis=1)
        if stuck := [slot for slot in self._calls if choices[slot] == 0]:
            raise GrammarError(f"the grammar of slot {stuck[0]} leaves no token")
        with self._context():
            flights = [
                _Flight(decoding, self._decode(version, decoding, allowed=allowed))
                for version, decoding in self._by_version(self._calls)
            ]
        self.counters.masked_steps += len(flights)
        self.counters.masked += len(self._calls)
        self.counters.forced += int((choices == 1).sum())
        return self._collect(flights, jax.device_get([flight.block for flight in flights]), choices == 1)

    def _draw(self, decoding: int, compilations: int) -> None:
        """Adds a point to each curve of the trace."""
        now, decoded = time.perf_counter(), self.counters.decoded
        before, then = self._counted
        self._counted = now, decoded
        busy = sorted(set(range(self.slots)) - set(self._free))
        for name, value in (
            ("slots decoding", decoding),
            ("slots taken", len(busy)),
            ("tokens a second", (decoded - then) / max(now - before, 1e-9)),
            ("tokens prefilled", self.counters.prefill_tokens),
            ("bytes of the cache in use", self.cache_bytes * self._length[busy].sum() / (self.slots * self.capacity)),
            ("compilations", compilations),
        ):
            self._tracer.count(name, float(value))

    def _by_version(self, slots: Iterable[int]) -> list[tuple[int, tuple[int, ...]]]:
        """(version, its slots), both in order."""
        groups: dict[int, list[int]] = {}
        for slot in sorted(slots):
            groups.setdefault(self.version_of(slot), []).append(slot)
        return [(version, tuple(groups[version])) for version in sorted(groups)]

    def _mark(self, slots: Iterable[int]) -> np.ndarray:
        """Which slots are meant, bool ``[B]``."""
        marked = np.zeros(self.slots, bool)
        marked[list(slots)] = True
        return marked

    def _live_versions(self) -> set[int]:
        return {self._slot_version[slot] for slot in set(range(self.slots)) - set(self._free)}

    def _allocate(self, model: Qwen3VL, window: int, page: int, byte_budget: int | None) -> slots_lib.Slots:
        # A block is merged whole, so a full row needs room for one more.
        tokens = self.capacity + self._block

        def make() -> slots_lib.Slots:
            return slots_lib.Slots.create(
                self._config, self.slots, tokens,
                dtype=model.precision.compute, execution=model.execution, window=window, page=page,
            )  # fmt: skip

        shapes = jax.eval_shape(make)
        self.cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        if byte_budget is not None and self.cache_bytes > byte_budget:
            most = byte_budget * self.slots // self.cache_bytes
            raise BudgetError(
                f"{self.slots} slots of {self.capacity} tokens take {self.cache_bytes:,} bytes, more than the budget of "
                f"{byte_budget:,}: it holds {most} slots"
            )
        places = None if self._mesh is None else slots_lib.slots_shardings(shapes, self._mesh)
        return jax.jit(make, out_shardings=places)()

    def _context(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _put(self, value: np.ndarray, *axes: str) -> jax.Array:
        if self._mesh is None:
            return jax.device_put(value)
        names = (*axes, *[None] * (value.ndim - len(axes)))
        return jax.device_put(value, NamedSharding(self._mesh, sharding.partition_spec(names, value.shape, self._mesh)))

    def _take_free(self, holders: Sequence[int]) -> int:
        """The slot that best takes a prompt: one that holds it, else one whose own prompt is held elsewhere, else the oldest."""
        held = collections.Counter(self._prompts.values())

        def worth(slot: int) -> int:
            return 0 if slot in holders else 1 if slot not in self._prompts or held[self._prompts[slot]] > 1 else 2

        if not self._free:
            raise IndexError("no slot is free")
        slot = min(self._free, key=worth)
        self._free.remove(slot)
        return slot

    def _enqueue(self, prefills: Sequence[Prefill]) -> None:
        self._prefills += prefills
        self._pending.update(slot for prefill in prefills for slot in prefill.slots)

    def _flush(self) -> None:
        """Hands all that waits to the device; its slots decode from now on."""
        prefills = self._layout(self._new_prompts, prompt=True) + self._prefills
        self._new_prompts, self._prefills = [], []
        starts, self._starts = self._starts, []
        with self._context(), self._tracer.span("dispatch", "host", prefills=len(prefills)):
            for prefill in prefills:
                self._run_prefill(prefill)
            for first in range(0, len(starts), self.slots):
                self._run_starts(starts[first : first + self.slots])
        for slot in self._pending:
            self._decoding[slot] = []
        self._pending.clear()

    def _run_prefill(self, prefill: Prefill) -> None:
        version = self.version_of(prefill.slots[0]) if prefill.slots else self._version
        self._slots = slots_lib.prefill(self._graph, self._params[version], self._slots, prefill.batch)
        self.counters.prefills += 1
        self.counters.prefill_tokens += prefill.tokens
        self.counters.prefill_slots += prefill.batch["ids"].size

    def _run_starts(self, starts: Sequence[_Start]) -> None:
        """One fixed shape: what lies behind the count is not read."""
        where = np.zeros((2, self.slots), np.int32)
        how = {name: np.zeros((self.slots, *shape), dtype) for name, (shape, dtype) in sampling.FIELDS.items()}
        for row, begun in enumerate(starts):
            where[:, row] = begun.source, begun.target
            for name, values in how.items():
                values[row] = getattr(begun.options, name)
        placed = Sampling(**{name: self._put(values) for name, values in how.items()})
        self._slots = slots_lib.start(self._slots, self._put(np.asarray(len(starts))), *map(self._put, where), placed)

    def _layout(self, items: Sequence[tuple[int, Chunk]], *, prompt: bool) -> list[Prefill]:
        """Cuts chunks into parts, and lays parts of one bucket side by side: the bucket of a part depends on it alone."""
        with self._tracer.span("layout", "pipeline", chunks=len(items)):
            parts = {slot: cut(chunk, self._buckets, self.patch_bucket) for slot, chunk in items}
            prefills = []
            for turn in range(max(map(len, parts.values()), default=0)):
                groups: dict[tuple[int, int], list[tuple[int, Chunk, bool, bool]]] = {}
                for slot, cuts in parts.items():
                    if turn < len(cuts):
                        bucket, part = cuts[turn]
                        groups.setdefault(bucket, []).append((slot, part, prompt, prompt and turn == 0))
                for bucket, rows in groups.items():
                    for first in range(0, len(rows), self._rows):
                        prefills.append(self._lay(rows[first : first + self._rows], *bucket))
        return prefills

    def _lay(self, items: Sequence[tuple[int, Chunk, bool, bool]], tokens: int, frames: int) -> Prefill:
        """One fixed batch shape a bucket: rows without a chunk are masked and write nowhere."""
        fields = slots_lib.prefill_fields(tokens, frames, self.patch_bucket, self._config.vision.patch_dim)
        batch = {name: np.zeros((self._rows, *shape), dtype) for name, (shape, dtype) in fields.items()}
        batch["slot"][:], batch["visual_index"][:] = self.slots, -1
        for row, (slot, chunk, prompt, fresh) in enumerate(items):
            count, shown = len(chunk.ids), len(chunk.grid)
            batch["slot"][row] = slot
            batch["ids"][row, :count] = chunk.ids
            batch["positions"][row, :count] = chunk.positions
            batch["visual_index"][row, :count] = chunk.visual_index
            batch["valid"][row, :count] = True
            batch["next_position"][row] = chunk.next_position
            batch["patches"][row, :shown] = chunk.patches
            batch["grid"][row, :shown] = chunk.grid
            batch["prompt"][row], batch["fresh"][row] = prompt, fresh
        return Prefill(
            slots=tuple(item[0] for item in items),
            tokens=sum(len(item[1].ids) for item in items),
            batch={name: self._put(array, "batch") for name, array in batch.items()},
        )

    def _finish(self, slot: int) -> BlockResult:
        ids, log_probs, forced, *margins = map(np.concatenate, zip(*self._decoding.pop(slot), strict=True))
        stopped = any(tuple(ids[-len(sequence) :].tolist()) == sequence for sequence in self._stop)
        ended = "stop" if stopped else "full" if self._length[slot] >= self.capacity else "length"
        return BlockResult(
            slot=slot, ids=ids, log_probs=log_probs, forced=forced, ended=ended, margins=margins[0] if margins else None
        )


def cut(chunk: Chunk, buckets: Sequence[tuple[int, int]], patch_bucket: int) -> list[tuple[tuple[int, int], Chunk]]:
    """Cuts a chunk into parts, each with the smallest bucket that holds it. A frame is never cut.

    Args:
      chunk: a prompt or an observation.
      buckets: (tokens, frames), in the order in which they are preferred.
      patch_bucket: S, patches that a frame is padded to.

    Returns:
      (bucket, part); a function of the chunk alone.
    """
    visual = patch_bucket // 4
    frame_of = np.where(chunk.visual_index >= 0, chunk.visual_index // visual, -1)
    total, parts, start, first_frame = len(chunk.ids), [], 0, 0
    most_tokens = max(tokens for tokens, _ in buckets)
    while start < total:
        end = min(total, start + most_tokens)
        while True:
            if end < total:  # not inside a frame
                while end > start and frame_of[end] >= 0 and frame_of[end] == frame_of[end - 1]:
                    end -= 1
            frames = len(np.unique(frame_of[start:end][frame_of[start:end] >= 0]))
            bucket = next((b for b in buckets if b[0] >= end - start and b[1] >= frames), None)
            if bucket is not None or end <= start + 1:
                break
            end -= 1  # too many frames: less of them
        if bucket is None or end == start:
            raise CacheFullError(f"a frame of {visual} tokens fits into none of the buckets {list(buckets)}")
        index = chunk.visual_index[start:end]
        part = dataclasses.replace(
            chunk,
            ids=chunk.ids[start:end],
            roles=chunk.roles[start:end],
            turns=chunk.turns[start:end],
            positions=chunk.positions[start:end],
            visual_index=np.where(index >= 0, index - first_frame * visual, -1),
            patches=chunk.patches[first_frame : first_frame + frames],
            grid=chunk.grid[first_frame : first_frame + frames],
        )
        parts.append((bucket, part))
        start, first_frame = end, first_frame + frames
    return parts


def _doubled(pages: int) -> tuple[int, ...]:
    """2, 4, ... and the last: sizes of windows, few enough to be compiled."""
    return (*itertools.takewhile(lambda size: size < pages, (2**power for power in range(1, pages))), pages)


def _packed(tokens: np.ndarray) -> np.ndarray:
    """Packs a set of tokens, bool `[V]`, to a bit each, as `sampling.unpack` reads it: uint32 `[ceil(V / 32)]`."""
    padded = np.zeros(-(-len(tokens) // 32) * 32, bool)
    padded[: len(tokens)] = tokens
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


def _digest(chunk: Chunk) -> bytes:
    """Names a chunk by all that the policy reads of it."""
    state = hashlib.blake2b(digest_size=16)
    for array in (chunk.ids, chunk.positions, chunk.visual_index, chunk.patches, chunk.grid):
        state.update(np.ascontiguousarray(array).data)
    return state.digest()
