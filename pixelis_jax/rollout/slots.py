"""What the slots hold on the device, and the three programs that change it: prefill, start, decode.

Each has one shape (prefill: one a bucket), so that nothing compiles once all have run, and a row of a batch never depends on
the rows beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding

from pixelis_jax import sharding
from pixelis_jax.policy import Execution, KVCache, Qwen3VL, Qwen3VLConfig, Tail, VisionInputs, Window
from pixelis_jax.rollout import sampling
from pixelis_jax.rollout.sampling import Sampling


@struct.dataclass
class Slots:
    """A row a slot.

    Attributes:
      cache: keys and values.
      logits: of the next token, float32 ``[B, V]``.
      position: of the next token, int32 ``[B]``.
      prompt_logits, prompt_position, prompt_length: as they were behind the prompt, from which other samples of it start.
      prompt_margin: the same of the cache's `margin`; None without experts.
      recent: the last tokens of the turn, newest last, -1 before its start, int32 ``[B, W]``.
      turn_tokens, sampled: tokens of the turn, of the episode, int32 ``[B]``.
      how: how each slot samples.
    """

    cache: KVCache
    logits: jax.Array
    position: jax.Array
    prompt_logits: jax.Array
    prompt_position: jax.Array
    prompt_length: jax.Array
    recent: jax.Array
    turn_tokens: jax.Array
    sampled: jax.Array
    how: Sampling
    prompt_margin: jax.Array | None = None

    @classmethod
    def create(
        cls, config: Qwen3VLConfig, slots: int, tokens: int, *, dtype: Any, execution: Execution, window: int, page: int
    ) -> "Slots":
        """Returns free slots of `tokens` tokens each."""
        logits, zeros = jnp.zeros((slots, config.text.vocab_size), jnp.float32), jnp.zeros(slots, jnp.int32)
        cache = KVCache.create(config, slots, tokens, dtype=dtype, execution=execution, page=page)
        return cls(
            cache=cache,
            logits=logits,
            position=zeros,
            prompt_logits=logits,
            prompt_position=zeros,
            prompt_length=zeros,
            recent=jnp.full((slots, window), -1, jnp.int32),
            turn_tokens=zeros,
            sampled=zeros,
            how=Sampling.create(slots),
            prompt_margin=cache.margin,
        )


def slots_shardings(slots: Slots, mesh: Mesh) -> Any:
    """Returns where the slots lie on a mesh: rows over the batch axes, heads of the cache and the vocabulary over tensor."""

    def place(*axes: str | None) -> Any:
        return lambda x: NamedSharding(mesh, sharding.partition_spec((*axes, *(None,) * (x.ndim - len(axes))), x.shape, mesh))

    by_row = jax.tree.map(place("batch"), slots)
    by_word = functools.partial(jax.tree.map, place("batch", "act_vocab"))
    cache = dataclasses.replace(
        by_row.cache,
        layers=jax.tree.map(place("batch", "act_kv_heads"), slots.cache.layers),
        stacked=jax.tree.map(place("layers", "batch", "act_kv_heads"), slots.cache.stacked),
    )
    return dataclasses.replace(by_row, cache=cache, logits=by_word(slots.logits), prompt_logits=by_word(slots.prompt_logits))


def prefill_fields(tokens: int, frames: int, patches: int, patch_dim: int) -> Mapping[str, tuple[tuple[int, ...], Any]]:
    """Returns what `prefill` reads of each chunk: name -> shape and number format.

    Args:
      tokens: T.
      frames: F.
      patches: S, patches of a frame.
      patch_dim: P, numbers of a patch.
    """
    return {
        "slot": ((), jnp.int32),
        "ids": ((tokens,), jnp.int32),
        "positions": ((tokens, 3), jnp.int32),
        "visual_index": ((tokens,), jnp.int32),
        "valid": ((tokens,), jnp.bool_),
        "next_position": ((), jnp.int32),
        "patches": ((frames, patches, patch_dim), jnp.float32),
        "grid": ((frames, 2), jnp.int32),
        "fresh": ((), jnp.bool_),
        "prompt": ((), jnp.bool_),
    }


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(graph: nnx.GraphDef[Qwen3VL], params: nnx.State, slots: Slots, batch: dict[str, jax.Array]) -> Slots:
    """Runs up to R chunks behind their slots. A row whose slot is out of range writes nothing.

    Args:
      graph: structure of the policy.
      params: its parameters.
      slots: donated.
      batch: `prefill_fields`, R of each. ``prompt``: the chunk belongs to a prompt; ``fresh``: it is the first part of one.

    Returns:
      The slots; a new turn begins in those of the chunks.
    """
    model = nnx.merge(graph, params)
    slot, fresh = batch["slot"], batch["fresh"]
    visual = None
    if batch["grid"].shape[1]:
        visual = model.encode_vision(VisionInputs(patches=batch["patches"], grid=batch["grid"]))
    hidden, cache = model(
        batch["ids"],
        batch["positions"],
        visual=visual,
        visual_index=None if visual is None else batch["visual_index"],
        attention_mask=batch["valid"],
        cache=slots.cache.at(slot, empty=fresh),
    )
    assert cache is not None  # one went in
    last = jnp.maximum(batch["valid"].sum(axis=1) - 1, 0)
    logits = model.unembed(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])

    def put(old: jax.Array, new: jax.Array | int) -> jax.Array:
        return old.at[slot].set(new, mode="drop")

    # Kept behind every chunk of a prompt; what later chunks overwrite does no harm.
    prompt = jnp.where(batch["prompt"], slot, slots.position.shape[0])
    margin = slots.prompt_margin
    if margin is not None and cache.margin is not None:
        margin = margin.at[prompt].set(jnp.take(cache.margin, slot, mode="clip"), mode="drop")
    return dataclasses.replace(
        slots,
        cache=cache.at(None),
        logits=put(slots.logits, logits),
        position=put(slots.position, batch["next_position"]),
        prompt_logits=slots.prompt_logits.at[prompt].set(logits, mode="drop"),
        prompt_position=slots.prompt_position.at[prompt].set(batch["next_position"], mode="drop"),
        prompt_length=slots.prompt_length.at[prompt].set(cache.held, mode="drop"),
        recent=put(slots.recent, -1),
        turn_tokens=put(slots.turn_tokens, 0),
        prompt_margin=margin,
    )


@functools.partial(jax.jit, donate_argnums=0)
def start(slots: Slots, count: jax.Array, source: jax.Array, target: jax.Array, how: Sampling) -> Slots:
    """Begins episodes behind prompts that were prefilled.

    Args:
      slots: donated.
      count: episodes that begin.
      source: slot that holds the prompt, perhaps with an episode behind it, int32 ``[N]``.
      target: slot of the episode, perhaps the same one, int32 ``[N]``.
      how: how each episode samples, ``[N]``.

    Returns:
      The slots.
    """

    def body(index: jax.Array, slots: Slots) -> Slots:
        origin, slot = source[index], target[index]
        length = slots.prompt_length[origin]

        def put(x: jax.Array, value: Any) -> jax.Array:
            return x.at[slot].set(value)

        logits, position = slots.prompt_logits[origin], slots.prompt_position[origin]
        margin = None if slots.prompt_margin is None else slots.prompt_margin[origin]
        return dataclasses.replace(
            slots,
            # Also where both are the same: a branch would copy the whole cache, not the row.
            cache=slots.cache.copy_row(origin, slot, length, margin),
            logits=put(slots.logits, logits),
            position=put(slots.position, position),
            prompt_logits=put(slots.prompt_logits, logits),
            prompt_position=put(slots.prompt_position, position),
            prompt_length=put(slots.prompt_length, length),
            recent=put(slots.recent, -1),
            turn_tokens=put(slots.turn_tokens, 0),
            sampled=put(slots.sampled, 0),
            how=jax.tree.map(lambda old, new: put(old, new[index]), slots.how, how),
            prompt_margin=None if slots.prompt_margin is None else put(slots.prompt_margin, margin),
        )

    return jax.lax.fori_loop(0, count, body, slots)


@struct.dataclass
class Block:
    """What a block decoded.

    Attributes:
      ids: int32 ``[B, N]``.
      log_probs: of the policy, float32 ``[B, N]``.
      counts: tokens of each slot, int32 ``[B]``.
      ended: whether the turn has ended, bool ``[B]``.
      margins: how close the closest choice of experts was among all tokens before each one, float32 ``[B, N]``; None without
        experts.
    """

    ids: jax.Array
    log_probs: jax.Array
    counts: jax.Array
    ended: jax.Array
    margins: jax.Array | None = None


@functools.partial(jax.jit, static_argnums=0, static_argnames=("tool_open_id", "block", "capacity", "pages"), donate_argnums=2)
def decode(
    graph: nnx.GraphDef[Qwen3VL],
    params: nnx.State,
    slots: Slots,
    active: jax.Array,
    banned: jax.Array,
    stops: jax.Array,
    *,
    tool_open_id: int,
    block: int,
    capacity: int,
    pages: int | None = None,
    pauses: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> tuple[Slots, Block]:
    """Decodes until every active slot has ended its turn, or pauses, or `block` tokens are used up.

    Args:
      graph: structure of the policy.
      params: its parameters.
      slots: donated.
      active: which slots decode, bool ``[B]``.
      banned: tokens without probability, bool ``[V]``.
      stops: sequences that end a turn, right-aligned, -1 in front, int32 ``[K, W]``.
      tool_open_id: banned where a slot has ``ban_tools``.
      block: N, most tokens.
      capacity: most tokens of an episode.
      pages: of the cache that active slots have filled, or more: they are taken out of it once a block. None: each step looks how
        many there are and cuts them out one by one, which takes no memory for a copy.
      pauses: slots that stop behind the token that opens a call, their turn not ended, bool ``[B]``.
      allowed: tokens that each slot may take in this block, a bit each (`sampling.unpack`), uint32 ``[B, ceil(V / 32)]``.

    Returns:
      The slots and what was decoded. Log-probs do not know of `allowed`.
    """
    model = nnx.merge(graph, params)
    rows, how, cache = active.shape[0], slots.how, slots.cache
    draws = jnp.any(active & (how.temperature > 0))
    narrows = jnp.any(active & ((how.top_p < 1) | (how.top_k > 0) | (how.min_p > 0)))

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        tail, logits, recent, going, made = carry
        scaled = sampling.scale(logits, banned, tool_open_id, how)
        choices = scaled if allowed is None else jnp.where(sampling.unpack(allowed, scaled.shape[-1]), scaled, -jnp.inf)
        token = sampling.choose(choices, slots.sampled + made.counts, how, draws=draws, narrows=narrows)
        found = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
        log_prob = found - jax.nn.logsumexp(scaled, axis=-1)
        step, margin = tail.step, tail.margin
        if isinstance(tail, Window):
            hidden, tail = model.decode_in_window(token, slots.position + made.counts, tail)
        else:
            hidden, tail = model.decode(token, slots.position + made.counts, cache, tail)
        recent = jnp.where(going[:, None], jnp.roll(recent, -1, axis=1).at[:, -1].set(token), recent)
        counts = made.counts + going.astype(jnp.int32)
        stopped = jnp.any(jnp.all((recent[:, None] == stops) | (stops == -1), axis=-1), axis=-1)
        over = stopped | (slots.turn_tokens + counts >= how.max_turn_tokens) | (slots.sampled + counts >= how.max_tokens)
        over |= cache.length + counts >= capacity
        made = Block(
            ids=made.ids.at[:, step].set(jnp.where(going, token, 0)),
            log_probs=made.log_probs.at[:, step].set(jnp.where(going, log_prob, 0.0)),
            counts=counts,
            ended=made.ended | (going & over),
            margins=None if made.margins is None else made.margins.at[:, step].set(margin),
        )
        if margin is not None:  # a row that has ended goes on decoding garbage
            tail = dataclasses.replace(tail, margin=jnp.where(going, tail.margin, margin))
        logits = jnp.where(going[:, None], model.unembed(hidden), logits)
        going &= ~over
        if pauses is not None:
            going &= ~(pauses & (token == tool_open_id))
        return tail, logits, recent, going, made

    made = Block(
        ids=jnp.zeros((rows, block), jnp.int32),
        log_probs=jnp.zeros((rows, block), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        margins=None if cache.margin is None else jnp.zeros((rows, block), jnp.float32),
    )
    dtype = jax.tree.leaves((cache.layers, cache.stacked))[0].dtype
    tail: Tail | Window
    if pages is None:
        tail = Tail.create(model.config, rows, block, dtype=dtype, execution=model.execution, margin=cache.margin)
    else:
        tail = cache.window(pages, block)
    carry = (tail, slots.logits, slots.recent, active, made)
    tail, logits, recent, _, made = jax.lax.while_loop(lambda carry: jnp.any(carry[3]) & (carry[0].step < block), body, carry)
    slots = dataclasses.replace(
        slots,
        cache=cache.merge(tail.tail if isinstance(tail, Window) else tail, made.counts),
        logits=logits,
        recent=recent,
        position=slots.position + made.counts,
        turn_tokens=slots.turn_tokens + made.counts,
        sampled=slots.sampled + made.counts,
    )
    return slots, made
