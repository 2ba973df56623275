"""The compiled programs of a run, over shapes in place of numbers: what `pixelis plan` lowers.

This is the one module of the package that knows how the policy is built and stepped.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelis_jax import losses, policy, sharding
from pixelis_jax.data.pipeline import Batch
from pixelis_jax.plan.flops import Work
from pixelis_jax.plan.topologies import PlanError
from pixelis_jax.rollout import engine
from pixelis_jax.training import loop, sft
from pixelis_jax.training.optimizer import create_optimizer
from pixelis_jax.training.state import TrainState, create_state

PyTree = Any
PRESETS: Mapping[str, Callable[[], policy.Qwen3VLConfig]] = {
    "qwen3_vl_2b": policy.qwen3_vl_2b,
    "qwen3_vl_4b": policy.qwen3_vl_4b,
    "qwen3_vl_8b": policy.qwen3_vl_8b,
    "qwen3_vl_32b": policy.qwen3_vl_32b,
    "tiny": functools.partial(policy.tiny, vocab_size=1024),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One jitted function with abstract arguments that know where they lie.

    Attributes:
      step: what one step is, in words.
      lower: gives the `jax.stages.Lowered`.
      arguments: the arguments by kind (``parameters``, ``optimizer``, ``cache``, ``inputs``), trees of
        `jax.ShapeDtypeStruct` with shardings.
      work: what one step computes.
    """

    step: str
    lower: Callable[[], jax.stages.Lowered]
    arguments: Mapping[str, PyTree]
    work: Work


def model_config(config: ConfigDict) -> policy.Qwen3VLConfig:
    """Returns the architecture that ``config.model`` names, with ``config.layers`` decoder layers where that is given."""
    model = PRESETS[config.model]()
    if config.layers is None:
        return model
    return dataclasses.replace(model, text=dataclasses.replace(model.text, num_hidden_layers=config.layers))


def mesh_axes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the size of every axis of `sharding.MESH_AXES`, in their order; axes that are not named have size 1.

    Raises:
      PlanError: an axis that does not exist.
    """
    if unknown := sizes.keys() - sharding.MESH_AXES.keys():
        raise PlanError(f"no mesh axis {sorted(unknown)[0]!r} (known: {', '.join(sharding.MESH_AXES)})")
    return {name: sizes.get(name, 1) for name in sharding.MESH_AXES}


def build(name: str, config: ConfigDict, mesh: Mesh) -> Program:
    """Builds one of `PROGRAMS` for a mesh.

    Args:
      name: a key of `PROGRAMS`.
      config: see `configs/plan_8b.py`.
      mesh: the devices, which need not be there.

    Returns:
      The program, not yet lowered.

    Raises:
      PlanError: the config asks for something that does not exist, or for rows that do not divide over the mesh.
    """
    for what, value, known in (("model", config.model, PRESETS), *(("program", other, PROGRAMS) for other in config.programs)):
        if value not in known:
            raise PlanError(f"no {what} {value!r} (known: {', '.join(known)})")
    if config.remat not in ("none", "full"):
        raise PlanError(f"remat is {config.remat!r}, expected none or full")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for field in ("train.rows", "sample.slots", "sample.prefill_rows"):
        group, _, key = field.partition(".")
        if config[group][key] % ways:
            raise PlanError(f"{field} is {config[group][key]}, no multiple of the {ways} parts of a batch (mesh.data * mesh.fsdp)")
    return PROGRAMS[name](config, mesh)


def _sft(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _model(config, mesh, remat=config.remat)
    heads_module = nnx.eval_shape(
        lambda: policy.AuxiliaryHeads(
            model_config(config).text.hidden_size,
            operations=config.operations,
            precision=_precision(config),
            rngs=nnx.Rngs(0),
        )
    )
    heads_graph, heads = _split(heads_module, mesh)
    optimizer = create_optimizer(config.optimizer, config.total_steps)
    state = _train_state(nnx.to_pure_dict(params), nnx.to_pure_dict(heads), optimizer, mesh)
    banned = np.zeros(model_config(config).text.vocab_size, bool)
    loss = sft.make_loss(graph, heads_graph, config, banned)
    update = loop.make_update(loss, optimizer, state)
    batch = _batch(config, mesh)
    return Program(
        step=f"one update, {_rows(config.train)}",
        lower=lambda: update.lower(state, batch),
        arguments={"parameters": [state.params, state.heads], "optimizer": state.opt_state, "inputs": batch},
        work=_train_work(config, scored=config.train.weighted, passes=3),
    )


def _reference(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _model(config, mesh)
    batch = _batch(config, mesh)

    def log_probs(params: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden, _ = sft.encode(model, batch, config.pixels)
        flat = losses.token_log_probs(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]),
            model.unembedding_matrix(),
            batch.ids[:, 1:].ravel(),
            chunk=config.loss.chunk,
        )
        return flat.reshape(batch.ids.shape[0], -1)

    return Program(
        step=f"one pass, {_rows(config.train)}",
        lower=lambda: jax.jit(log_probs).lower(params, batch),
        arguments={"parameters": params, "inputs": batch},
        work=_train_work(config, scored=config.train.tokens - 1, passes=1),
    )


def _prefill(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _model(config, mesh)
    state = _engine_state(config, mesh)
    vision, sample = model_config(config).vision, config.sample
    rows, tokens = sample.prefill_rows, sample.prefill_tokens
    shapes = {
        "slot": ((rows,), jnp.int32),
        "ids": ((rows, tokens), jnp.int32),
        "positions": ((rows, tokens, 3), jnp.int32),
        "visual_index": ((rows, tokens), jnp.int32),
        "valid": ((rows, tokens), jnp.bool_),
        "next_position": ((rows,), jnp.int32),
        "patches": ((rows, sample.prefill_frames, config.patches, vision.patch_dim), jnp.float32),
        "grid": ((rows, sample.prefill_frames, 2), jnp.int32),
        "fresh": ((rows,), jnp.bool_),
        "key": ((rows, 2), jnp.uint32),
        "temperature": ((rows,), jnp.float32),
        "ban_tools": ((rows,), jnp.bool_),
        "turn_limit": ((rows,), jnp.int32),
    }
    batch = {name: _array(shape, dtype, mesh, "batch") for name, (shape, dtype) in shapes.items()}
    return Program(
        step=f"{rows} chunks of {tokens} tokens behind caches of {sample.capacity}",
        lower=lambda: engine._prefill.lower(graph, params, state, batch),
        arguments={"parameters": params, "cache": state, "inputs": batch},
        work=Work(
            rows=rows,
            tokens=tokens,
            cached=sample.capacity,
            frames=sample.prefill_frames,
            patches=config.patches,
            scored=1,
        ),
    )


def _decode(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _model(config, mesh)
    state = _engine_state(config, mesh)
    active = _array((config.sample.slots,), jnp.bool_, mesh, "batch")
    banned = _array((model_config(config).text.vocab_size,), jnp.bool_, mesh)
    return Program(
        step=f"a token of each of {config.sample.slots} slots with caches of {config.sample.capacity}",
        lower=lambda: engine._decode_block.lower(
            graph, params, state, active, banned, stop_id=0, tool_open_id=1, block=config.sample.block
        ),
        arguments={"parameters": params, "cache": state, "inputs": [active, banned]},
        work=Work(rows=config.sample.slots, tokens=1, cached=config.sample.capacity, scored=1),
    )


PROGRAMS: Mapping[str, Callable[[ConfigDict, Mesh], Program]] = {
    "sft": _sft,
    "reference": _reference,
    "prefill": _prefill,
    "decode": _decode,
}


def _rows(train: ConfigDict) -> str:
    return f"{train.rows} rows of {train.tokens} tokens and {train.frames} frames"


def _train_work(config: ConfigDict, *, scored: int, passes: int) -> Work:
    train = config.train
    return Work(
        rows=train.rows,
        tokens=train.tokens,
        frames=train.frames,
        patches=config.patches,
        scored=scored,
        decoder_passes=passes,
        vision_passes=passes,
    )


def _precision(config: ConfigDict) -> policy.Precision:
    return policy.Precision(params=jnp.dtype(config.precision.params), compute=jnp.dtype(config.precision.compute))


def _model(config: ConfigDict, mesh: Mesh, *, remat: str = "none") -> tuple[nnx.GraphDef, nnx.State]:
    make = functools.partial(policy.Qwen3VL, model_config(config), precision=_precision(config), remat=remat == "full")
    return _split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), mesh)


def _split(module: nnx.Module, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    graph, state = nnx.split(module)
    return graph, jax.tree.map(_placed, state, sharding.state_shardings(state, mesh))


def _placed(array: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)


def _array(shape: tuple[int, ...], dtype: Any, mesh: Mesh, *axes: str | None) -> jax.ShapeDtypeStruct:
    """An array whose first dimensions have logical axes."""
    names = (*axes, *[None] * (len(shape) - len(axes)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding.partition_spec(names, shape, mesh)))


def _train_state(params: PyTree, heads: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """What `create_state` makes, as shapes."""
    trainable = {"params": params, "heads": heads}
    places = jax.tree.map(lambda array: array.sharding, trainable)
    make = functools.partial(create_state, optimizer=optimizer, shardings=places)
    state = jax.eval_shape(lambda params, heads: make(params, heads, rng=jax.random.key(0)), params, heads)
    whole = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, place: place, state.opt_state, places, transform_non_params=lambda _: whole
    )
    return TrainState(
        step=_placed(state.step, whole),
        params=params,
        heads=heads,
        opt_state=jax.tree.map(_placed, state.opt_state, moments),
        rng=_placed(state.rng, whole),
    )


def _batch(config: ConfigDict, mesh: Mesh) -> Batch:
    train, patch_dim = config.train, model_config(config).vision.patch_dim
    rows, tokens, calls = train.rows, train.tokens, train.calls
    shapes = {
        "ids": ((tokens,), jnp.int32),
        "weights": ((tokens,), jnp.float32),
        "roles": ((tokens,), jnp.int8),
        "positions": ((tokens, 3), jnp.int32),
        "visual_index": ((tokens,), jnp.int32),
        "valid": ((tokens,), jnp.bool_),
        "patches": ((train.frames, config.patches, patch_dim), jnp.uint8),
        "grid": ((train.frames, 2), jnp.int32),
        "op_position": ((calls,), jnp.int32),
        "op_id": ((calls,), jnp.int32),
        "op_valid": ((calls,), jnp.bool_),
        "box": ((calls, 4), jnp.float32),
        "box_valid": ((calls,), jnp.bool_),
        "point": ((calls, 2), jnp.float32),
        "point_valid": ((calls,), jnp.bool_),
        "span": ((calls, 2), jnp.float32),
        "span_valid": ((calls,), jnp.bool_),
    }
    arrays = {name: _array((rows, *shape), dtype, mesh, "batch") for name, (shape, dtype) in shapes.items()}
    return Batch(**arrays, weighted=train.weighted)


def _engine_state(config: ConfigDict, mesh: Mesh) -> Any:
    model, sample = model_config(config), config.sample
    cache = jax.eval_shape(
        lambda: policy.KVCache.create(model, sample.slots, sample.capacity, dtype=_precision(config).compute)
    )

    def place(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("batch", "kv_heads") if array.ndim == 4 else ("batch",)
        return _array(array.shape, array.dtype, mesh, *axes)

    slots = functools.partial(_array, mesh=mesh)
    return engine._State(
        cache=jax.tree.map(place, cache),
        logits=_array((sample.slots, model.text.vocab_size), jnp.float32, mesh, "batch"),
        position=_array((sample.slots,), jnp.int32, mesh, "batch"),
        key=_array((sample.slots, 2), jnp.uint32, mesh, "batch"),
        sampled=_array((sample.slots,), jnp.int32, mesh, "batch"),
        turn_tokens=_array((sample.slots,), jnp.int32, mesh, "batch"),
        temperature=_array((sample.slots,), jnp.float32, mesh, "batch"),
        ban_tools=_array((sample.slots,), jnp.bool_, mesh, "batch"),
        turn_limit=_array((sample.slots,), jnp.int32, mesh, "batch"),
    )
