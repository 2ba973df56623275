"""The compiled programs of a run, over shapes in place of numbers: what `pixelis plan` lowers.

This is the one module of the package that knows how the policy is built and stepped.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelis_jax import policy, sharding
from pixelis_jax.data.pipeline import Batch
from pixelis_jax.plan.flops import Work
from pixelis_jax.plan.topologies import PlanError, mesh_sizes
from pixelis_jax.policy import weights
from pixelis_jax.rollout import slots as slots_lib
from pixelis_jax.training import loop, sft
from pixelis_jax.training.log_probs import token_log_probs
from pixelis_jax.training.microbatches import TOKEN_FIELDS, MicroBatch, Shape
from pixelis_jax.training.optimizer import create_optimizer
from pixelis_jax.training.policy_update import Reference, Scale, make_accumulate
from pixelis_jax.training.state import TrainState, create_state, split_parameters

PyTree = Any
MODELS: Mapping[str, Callable[[], policy.Qwen3VLConfig]] = policy.PRESETS | {
    "tiny": functools.partial(policy.tiny, vocab_size=1024)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One jitted function with abstract arguments that know where they lie.

    Attributes:
      step: what one step is, in words.
      lower: gives the `jax.stages.Lowered`; to be called with the mesh as that of the context (`loop.on_mesh`).
      arguments: the arguments by kind (``parameters``, ``optimizer``, ``cache``, ``inputs``), trees of `jax.ShapeDtypeStruct`
        with shardings.
      work: what one step computes.
      loops: how often those loops turn whose length depends on data, from the outermost to the innermost.
    """

    step: str
    lower: Callable[[], jax.stages.Lowered]
    arguments: Mapping[str, PyTree]
    work: Work
    loops: tuple[int, ...] = (1,)


def model_config(config: ConfigDict) -> policy.Qwen3VLConfig:
    """Returns the architecture that ``config.model`` names, with ``config.layers`` decoder layers where that is given."""
    model = MODELS[config.model]()
    if config.layers is None:
        return model
    return dataclasses.replace(model, text=dataclasses.replace(model.text, num_hidden_layers=config.layers))


def adapters(config: ConfigDict) -> policy.Lora | None:
    """Returns the adapters that ``config.lora`` asks for; None for rank 0."""
    return policy.Lora(**config.lora) if config.lora.rank else None


def make_mesh(config: ConfigDict, devices: list[jax.Device]) -> Mesh:
    """Lays the mesh of ``config.mesh`` over devices, which need not be there.

    Raises:
      PlanError: an axis that does not exist, or sizes that do not cover the devices.
    """
    if unknown := config.mesh.keys() - sharding.MESH_AXES.keys():
        raise PlanError(f"no mesh axis {sorted(unknown)[0]!r} (known: {', '.join(sharding.MESH_AXES)})")
    return sharding.create_mesh(**mesh_sizes(config.mesh, len(devices)), devices=devices)


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
      ConfigError: a field of ``execution`` or ``lora`` is not one that the policy takes, or a base in few bits is to be trained.
    """
    asked = [("model", config.model, MODELS), ("trainable", config.trainable, sft.TRAINABLE)]
    for what, value, known in (*asked, *(("program", other, PROGRAMS) for other in config.programs)):
        if value not in known:
            raise PlanError(f"no {what} {value!r} (known: {', '.join(known)})")
    sft.check_base(config.trainable, config.lora.base)
    if (config.trainable == "adapters") != bool(config.lora.rank):
        raise PlanError(f"lora.rank is {config.lora.rank}, but trainable is {config.trainable!r}: adapters go with adapters")
    ways = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes_of("batch"))
    for field in ("train.rows", "sample.slots", "sample.prefill_rows"):
        group, _, key = field.partition(".")
        if config[group][key] % ways:
            raise PlanError(f"{field} is {config[group][key]}, no multiple of the {ways} parts that the mesh makes of a batch")
    return PROGRAMS[name](config, mesh)


def _sft(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _model(config, backward=True)
    make_heads = functools.partial(policy.AuxiliaryHeads, operations=config.operations, precision=_precision(config))
    heads_graph, heads = nnx.split(nnx.eval_shape(lambda: make_heads(model_config(config).text.hidden_size, rngs=nnx.Rngs(0))))
    optimizer = create_optimizer(config.optimizer, config.total_steps)
    state = _train_state(params, heads, optimizer, config.trainable, mesh)
    loss = sft.make_loss(graph, heads_graph, config, _banned(config))
    update = loop.make_update(loss, optimizer, state)
    batch = _batch(config, mesh)
    return Program(
        step=f"one update, {_rows(config.train)}",
        lower=lambda: update.lower(state, batch),
        arguments={
            "parameters": [state.params, state.frozen, state.heads],
            "optimizer": state.opt_state,
            "inputs": batch,
        },
        work=_train_work(config, scored=config.train.weighted, **_PASSES[config.trainable]),
    )


# Forward passes that a part of the model costs in training, by `sft.TRAINABLE`. A frozen decoder lets the gradient through to its
# adapters; no gradient reaches a frozen vision tower.
_PASSES = {
    "all": {"decoder_passes": 3, "vision_passes": 3},
    "decoder": {"decoder_passes": 3, "vision_passes": 1},
    "adapters": {"decoder_passes": 2, "adapter_passes": 3, "vision_passes": 1},
}


def _from_episodes(config: ConfigDict, mesh: Mesh, objective: str) -> Program:
    """The gradient of a phase that learns from its own episodes."""
    graph, params = _model(config, backward=True)
    optimizer = create_optimizer(config.optimizer, config.total_steps)
    state = _train_state(params, nnx.State({}), optimizer, config.trainable, mesh)
    train, size = config.train, model_config(config).text.hidden_size
    steps = Shape(rows=train.rows, tokens=train.tokens, frames=0, patches=0, weighted=train.weighted).steps
    formats = dict.fromkeys(TOKEN_FIELDS, jnp.float32) | {"seen": jnp.int32, "step": jnp.int32}
    fields = _by_row(train.rows, {name: ((train.tokens,), dtype) for name, dtype in formats.items()}, mesh)
    micro = MicroBatch(batch=_batch(config, mesh), steps=steps, **fields)
    compute = _precision(config).compute
    known = {"hidden": ((train.weighted, size), compute)} | dict.fromkeys(("seen", "step"), ((steps, size), jnp.float32))
    made: Any = _by_row(train.rows, known, mesh)
    reference = Reference(**made)
    number: Any = _array((), jnp.float32, mesh)
    scale = Scale(token=number, decision=number, beta=number)
    accumulate = make_accumulate(graph, config, _banned(config), objective)
    # The embeddings of the reference are read once more, for its logits; their gradient is nobody's.
    scored = train.weighted * 2 + train.weighted // 3
    return Program(
        step=f"gradients of one microbatch, {_rows(train)}, with the exact KL",
        lower=lambda: accumulate.lower(state, state.params, state.params, micro, reference, scale),
        arguments={
            # The anchor's are as many as those that are trained.
            "parameters": [state.params, state.frozen, state.params],
            "optimizer": state.opt_state,
            "inputs": [state.params, micro, reference],
        },
        work=_train_work(config, scored=scored, **_PASSES[config.trainable]),
    )


def _reference(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _placed_model(config, mesh)
    batch = _batch(config, mesh)
    banned = _banned(config)

    def log_probs(params: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden, _ = sft.encode(model, batch, config.pixels)
        # The last position predicts nothing; it stays, because a length of 8,191 divides over no mesh.
        targets = jnp.roll(batch.ids, -1, axis=1)
        chunks = {"chunk": config.loss.chunk, "vocab_chunk": config.loss.vocab_chunk}
        return token_log_probs(model, hidden, targets, banned, **chunks)

    return Program(
        step=f"one pass, {_rows(config.train)}",
        lower=lambda: jax.jit(log_probs).lower(params, batch),
        arguments={"parameters": params, "inputs": batch},
        work=_train_work(config, scored=config.train.tokens),
    )


def _prefill(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _placed_model(config, mesh)
    state = _slots(config, mesh)
    sample = config.sample
    rows, tokens, frames = sample.prefill_rows, sample.prefill_tokens, sample.prefill_frames
    shapes = slots_lib.prefill_fields(tokens, frames, config.patches, model_config(config).vision.patch_dim)
    batch = _by_row(rows, shapes, mesh)
    return Program(
        step=f"{rows} chunks of {tokens} tokens and {frames} frames behind caches of {sample.capacity}",
        lower=lambda: slots_lib.prefill.lower(graph, params, state, batch),
        arguments={"parameters": params, "cache": state, "inputs": batch},
        work=Work(rows=rows, tokens=tokens, cached=sample.capacity, frames=frames, patches=config.patches, scored=1),
        loops=(_pages(config),),
    )


def _decode(config: ConfigDict, mesh: Mesh) -> Program:
    graph, params = _placed_model(config, mesh)
    state = _slots(config, mesh)
    slots, block = config.sample.slots, config.sample.block
    active = _array((slots,), jnp.bool_, mesh, "batch")
    banned = _array((model_config(config).text.vocab_size,), jnp.bool_, mesh)
    stops = _array((1, 1), jnp.int32, mesh)
    options = {"tool_open_id": 1, "block": block, "capacity": config.sample.capacity}
    return Program(
        step=f"{block} tokens of each of {slots} slots, one after the other, with caches of {config.sample.capacity}",
        lower=lambda: slots_lib.decode.lower(graph, params, state, active, banned, stops, **options),
        arguments={"parameters": params, "cache": state, "inputs": [active, banned, stops]},
        work=Work(rows=slots, tokens=1, cached=config.sample.capacity, scored=1, turns=block),
        loops=(block, _pages(config)),
    )


PROGRAMS: Mapping[str, Callable[[ConfigDict, Mesh], Program]] = {
    "sft": _sft,
    "ccrft": functools.partial(_from_episodes, objective="clipped"),
    "reference": _reference,
    "prefill": _prefill,
    "decode": _decode,
    "ttrl": functools.partial(_from_episodes, objective="imitation"),
}


def _rows(train: ConfigDict) -> str:
    return f"{train.rows} rows of {train.tokens} tokens and {train.frames} frames"


def _train_work(config: ConfigDict, *, scored: int, **passes: int) -> Work:
    train = config.train
    return Work(rows=train.rows, tokens=train.tokens, frames=train.frames, patches=config.patches, scored=scored, **passes)


def _precision(config: ConfigDict) -> policy.Precision:
    return policy.Precision(params=jnp.dtype(config.precision.params), compute=jnp.dtype(config.precision.compute))


def _execution(config: ConfigDict, *, backward: bool = False) -> policy.Execution:
    """How the policy is computed; without a backward pass there is nothing to compute again."""
    execution = policy.Execution(**config.execution)
    return execution if backward else dataclasses.replace(execution, remat="none")


def _banned(config: ConfigDict) -> np.ndarray:
    return np.zeros(model_config(config).text.vocab_size, bool)


def _model(config: ConfigDict, *, backward: bool = False) -> tuple[nnx.GraphDef, nnx.State]:
    execution = _execution(config, backward=backward)
    return nnx.split(weights.abstract_model(model_config(config), _precision(config), execution, adapters(config)))


def _placed_model(config: ConfigDict, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    graph, state = _model(config)
    return graph, _place(state, sharding.state_shardings(state, mesh))


def _place(tree: PyTree, places: PyTree) -> PyTree:
    """Shapes with shardings."""
    return jax.tree.map(lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place), tree, places)


def _array(shape: tuple[int, ...], dtype: Any, mesh: Mesh, *axes: str | None) -> jax.ShapeDtypeStruct:
    """An array whose first dimensions have logical axes."""
    names = (*axes, *[None] * (len(shape) - len(axes)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding.partition_spec(names, shape, mesh)))


def _by_row(rows: int, shapes: Mapping[str, tuple[tuple[int, ...], Any]], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: _array((rows, *shape), dtype, mesh, "batch") for name, (shape, dtype) in shapes.items()}


def _train_state(
    params: nnx.State, heads: nnx.State, optimizer: optax.GradientTransformation, trainable: str, mesh: Mesh
) -> TrainState:
    """What `create_state` makes, as shapes."""
    places = sft.state_shardings(params, heads, mesh, trainable)
    trained, frozen = split_parameters(nnx.to_pure_dict(params), sft.TRAINABLE[trainable])
    make = functools.partial(create_state, optimizer=optimizer, shardings=places)
    state = jax.eval_shape(
        lambda trained, heads, frozen: make(trained, heads, rng=jax.random.key(0), frozen=frozen),
        trained,
        nnx.to_pure_dict(heads),
        frozen,
    )
    whole = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        state.opt_state,
        {name: places[name] for name in ("params", "heads")},
        transform_non_params=lambda _: whole,
    )
    return _place(state, TrainState(step=whole, rng=whole, opt_state=moments, **places))  # type: ignore[arg-type]


def _batch(config: ConfigDict, mesh: Mesh) -> Batch:
    train, patch_dim = config.train, model_config(config).vision.patch_dim
    tokens, calls = train.tokens, train.calls
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
    return Batch(**_by_row(train.rows, shapes, mesh), weighted=train.weighted)


def _pages(config: ConfigDict) -> int:
    """Pages of a full cache."""
    return -(-config.sample.capacity // config.sample.page)


def _slots(config: ConfigDict, mesh: Mesh) -> slots_lib.Slots:
    """The slots of an engine, as shapes."""
    sample = config.sample
    make = functools.partial(
        slots_lib.Slots.create,
        model_config(config),
        sample.slots,
        sample.capacity + sample.block,
        dtype=_precision(config).compute,
        execution=_execution(config),
        window=1,
        page=sample.page,
    )
    shapes = jax.eval_shape(make)
    return _place(shapes, slots_lib.slots_shardings(shapes, mesh))
