"""Supervised fine-tuning on demonstrated trajectories (algorithms.md, section 1)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from pixelis_jax import losses, sharding
from pixelis_jax.data.packing import PackedPlan, PackedSource
from pixelis_jax.data.pipeline import Batch, BatchPlan, BatchSource, iterate
from pixelis_jax.data.records import MERGE_UNIT, RecordSource
from pixelis_jax.policy import AuxiliaryHeads, ConfigError, Qwen3VL, VisionInputs, patch_coordinates
from pixelis_jax.policy.adapters import is_adapter
from pixelis_jax.training import loop
from pixelis_jax.training.log_probs import token_log_probs
from pixelis_jax.training.state import PyTree, join_parameters, split_parameters
from pixelis_jax.trajectory import Role

# Streams of random numbers that a run folds into its seed.
_HEADS_STREAM = 1

# What `config.trainable` may say: path of a parameter of the policy -> whether it is trained.
TRAINABLE: Mapping[str, Callable[[tuple[Any, ...]], bool]] = {
    "all": lambda path: True,
    "decoder": lambda path: path[0] != "visual",
    "adapters": is_adapter,
}

# Share of a patch or of a mark, whichever is smaller, from which the mark counts as standing at the patch.
_STANDS = 0.4


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    model: Qwen3VL,
    *,
    banned_ids: Sequence[int] = (),
    data: epath.PathLike | None = None,
) -> tuple[Qwen3VL, loop.Result]:
    """Fine-tunes a policy.

    Args:
      config: as `loop.run`, and ``data`` (path of the records), ``buckets`` (``tokens``, ``frames``,
        ``tokens_per_batch``, ``pack``), ``mesh`` (`sharding.create_mesh`), ``operations`` (number of tools), ``loss``
        (``heads_weight``, ``beta``, ``iou_weight``, ``chunk``, ``vocab_chunk``), ``trainable`` (one of `TRAINABLE`),
        ``pixels`` (``mean``, ``std``, of three channels).
      workdir: the run's directory; a run that was stopped goes on.
      model: the initial policy; left as it is.
      banned_ids: tokens that the sampler never emits; they take no probability here either.
      data: the records, where ``config.data`` is empty because they lie in the work directory, which may be moved.

    Returns:
      The trained policy, and how the run ended.

    Raises:
      WorkdirError: the directory is another run's, or no work directory.
      RecordError: the data cannot be read, or an example fits into no bucket.
      ConfigError: the model's base cannot be trained as `config.trainable` says, or the patch head would meet packed rows.
    """
    check_base(config.trainable, model.lora.base if model.lora else "")
    check_packing(config)
    mesh = sharding.create_mesh(**config.mesh)
    banned = np.isin(np.arange(model.config.text.vocab_size), banned_ids)
    key = jax.random.fold_in(jax.random.key(config.seed), _HEADS_STREAM)
    precision = model.precision
    heads = AuxiliaryHeads(
        model.config.text.hidden_size, operations=config.operations, precision=precision, rngs=nnx.Rngs(params=key)
    )
    graph, state = nnx.split(model)
    params, frozen = split_parameters(nnx.to_pure_dict(state), TRAINABLE[config.trainable])
    heads_graph, head_params = nnx.split(heads)
    source = RecordSource(data or config.data)
    batches = plan_batches(source, config, mesh, model.config.vision.patch_size)
    phase = loop.Phase(
        name="sft",
        params=params,
        heads=nnx.to_pure_dict(head_params),
        frozen=frozen,
        shardings=state_shardings(state, head_params, mesh, config.trainable),
        loss=make_loss(graph, heads_graph, config, banned),
        batches=iterate(batches),
    )
    result = loop.run(phase, config, workdir, mesh)
    trained = join_parameters(result.state.params, result.state.frozen)
    return nnx.merge(graph, nnx.State(trained)), result


def plan_batches(source: RecordSource, config: ConfigDict, mesh: jax.sharding.Mesh, patch_size: int) -> BatchSource:
    """Plans the batches of a run.

    Args:
      source: the examples.
      config: ``buckets``, ``seed`` and ``total_steps``.
      mesh: rows are a multiple of the parts that it makes of a batch.
      patch_size: side of a patch in pixels.

    Returns:
      This process's part of every batch, packed where ``buckets.pack`` says so.

    Raises:
      RecordError: an example fits into no bucket.
    """
    options: dict[str, Any] = {
        **{name: config.buckets[name] for name in ("tokens", "frames", "tokens_per_batch")},
        "rows_multiple": math.prod(mesh.shape[axis] for axis in sharding.mesh_axes_of("batch")),
        "seed": config.seed,
        "batches": config.total_steps,
    }
    part: dict[str, int] = {"process": jax.process_index(), "processes": jax.process_count()}
    if config.buckets.pack:
        return PackedSource(source, PackedPlan(source.sizes, **options), patch_size=patch_size, **part)
    return BatchSource(source, BatchPlan(source.sizes, **options), patch_size=patch_size, **part)


def check_packing(config: ConfigDict) -> None:
    """Refuses packed rows where something reads one example a row.

    Args:
      config: ``buckets.pack`` and ``loss.patches_weight``.

    Raises:
      ConfigError: the patch head, which reads the first frame of a row, is asked too.
    """
    if config.buckets.pack and config.loss.patches_weight:
        raise ConfigError(
            f"buckets.pack needs loss.patches_weight 0, got {config.loss.patches_weight}: the patch head reads one example a row"
        )


def check_base(trainable: str, base: str) -> None:
    """Refuses to train what is stored in few bits.

    Args:
      trainable: one of `TRAINABLE`.
      base: of `policy.Lora`.

    Raises:
      ConfigError: more than the adapters is to be trained.
    """
    if base and trainable != "adapters":
        raise ConfigError(f"lora.base is {base!r}, but trainable is {trainable!r}: kernels in few bits are frozen")


def state_shardings(params: nnx.State, heads: nnx.State, mesh: jax.sharding.Mesh, trainable: str) -> dict[str, PyTree]:
    """Where the parts of a training state lie.

    Args:
      params: of the policy.
      heads: of the auxiliary heads.
      mesh: the devices.
      trainable: one of `TRAINABLE`.

    Returns:
      ``params``, ``frozen`` and ``heads``: nested dicts of `NamedSharding`.
    """
    trained, frozen = split_parameters(nnx.to_pure_dict(sharding.state_shardings(params, mesh)), TRAINABLE[trainable])
    return {"params": trained, "frozen": frozen, "heads": nnx.to_pure_dict(sharding.state_shardings(heads, mesh))}


def make_loss(
    graph: nnx.GraphDef[Qwen3VL], heads_graph: nnx.GraphDef[AuxiliaryHeads], config: ConfigDict, banned: np.ndarray
) -> Callable[[PyTree, PyTree, Batch, jax.Array], tuple[jax.Array, loop.Metrics]]:
    """Builds `L = L_imit + heads_weight * mean of the heads that apply`.

    Args:
      graph: structure of the policy.
      heads_graph: structure of the auxiliary heads.
      config: as in `train`.
      banned: tokens that take no probability, bool ``[V]``.

    Returns:
      (params, heads, batch, key) -> (loss, metrics).
    """

    def loss(params: PyTree, heads: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, loop.Metrics]:
        del key  # nothing is drawn
        model = nnx.merge(graph, nnx.State(params))
        hidden, visual = encode(model, batch, config.pixels)
        imitation, metrics = imitate(model, hidden, batch, banned, config.loss)
        auxiliary = nnx.merge(heads_graph, nnx.State(heads))
        grounding, head_metrics = ground(auxiliary, hidden, batch, config.loss)
        total = imitation + config.loss.heads_weight * grounding
        if config.loss.patches_weight and visual is not None:
            if batch.valid.dtype != bool:
                raise ValueError("the patch head reads one example a row: packed rows need loss.patches_weight 0")
            seen = see(auxiliary, visual, batch, config.loss)
            total += config.loss.patches_weight * seen
            metrics |= {"heads/patches": clu_metrics.Average.from_model_output(seen)}
        return total, metrics | head_metrics

    return loss


def encode(model: Qwen3VL, batch: Batch, pixels: ConfigDict) -> tuple[jax.Array, jax.Array | None]:
    """Runs the policy over a batch.

    Args:
      model: the policy.
      batch: B rows of T tokens.
      pixels: ``mean`` and ``std`` of the channels.

    Returns:
      Hidden states ``[B, T, D]``, and the visual tokens ``[B, F * S/4, D]`` if there are frames.
    """
    visual = None
    if batch.patches.shape[1]:
        channels = batch.patches.shape[-1] // 3  # a patch is channel-major
        mean, std = (np.repeat(np.float32(pixels[name]), channels) for name in ("mean", "std"))
        patches = (batch.patches.astype(jnp.float32) * np.float32(1 / 255) - mean) / std
        visual = model.encode_vision(VisionInputs(patches=patches, grid=batch.grid))
    hidden, _ = model(
        batch.ids,
        batch.positions,
        visual=visual,
        visual_index=None if visual is None else batch.visual_index,
        attention_mask=batch.valid,
    )
    return hidden, None if visual is None else visual.tokens


def imitate(
    model: Qwen3VL, hidden: jax.Array, batch: Batch, banned: np.ndarray, config: ConfigDict
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the imitation loss.

    Args:
      model: gives the unembedding.
      hidden: ``[B, T, D]``.
      batch: the tokens and their weights.
      banned: bool ``[V]``.
      config: ``chunk`` and ``vocab_chunk``: positions of a row, and tokens of the vocabulary, of which logits exist at a time.

    Returns:
      The loss and the mean negative log-probability of each role.
    """
    select = functools.partial(losses.select_weighted, capacity=batch.weighted)
    selected = jax.vmap(select)(hidden[:, :-1], batch.weights[:, 1:])
    # Padded slots point past the end; clamped, they read some token, which then weighs nothing.
    index = jnp.minimum(selected.positions + 1, batch.ids.shape[1] - 1)
    targets, roles = (jnp.take_along_axis(array, index, axis=1) for array in (batch.ids, batch.roles))
    log_probs = token_log_probs(
        model, selected.hidden, targets, banned, chunk=config.chunk, vocab_chunk=config.vocab_chunk
    ).ravel()
    weights, roles = selected.weights.ravel(), roles.ravel()
    metrics = {"imitation": average(-log_probs, weights)}
    for role in Role:
        if role not in (Role.PROMPT, Role.OBSERVATION):
            metrics[f"nll/{role.name.lower()}"] = average(-log_probs, (weights > 0) & (roles == role))
    return losses.imitation_loss(log_probs, weights), metrics


def ground(heads: AuxiliaryHeads, hidden: jax.Array, batch: Batch, config: ConfigDict) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the loss of the auxiliary heads.

    Args:
      heads: the heads.
      hidden: ``[B, T, D]``.
      batch: where the calls are, and what they point at.
      config: ``beta`` and ``iou_weight``.

    Returns:
      The mean over the heads that apply, and each head's loss.
    """
    at_calls = jnp.take_along_axis(hidden, batch.op_position[:, :, None], axis=1)
    predicted = heads(at_calls.reshape(-1, hidden.shape[-1]).astype(jnp.float32))
    box = functools.partial(losses.box_loss, beta=config.beta, iou_weight=config.iou_weight)
    point = functools.partial(losses.point_loss, beta=config.beta)
    span = functools.partial(losses.span_loss, beta=config.beta, iou_weight=config.iou_weight)
    values = {
        "box": jax.vmap(box)(predicted.box, batch.box.reshape(-1, 4)),
        "point": jax.vmap(point)(predicted.point, batch.point.reshape(-1, 2)),
        "span": jax.vmap(span)(predicted.span, batch.span.reshape(-1, 2)),
        "operation": jax.vmap(losses.operation_loss)(predicted.operation, batch.op_id.ravel()),
    }
    called = batch.op_valid & (batch.op_id >= 0)
    valid = {"box": batch.box_valid, "point": batch.point_valid, "span": batch.span_valid, "operation": called}
    valid = {name: mask.ravel() for name, mask in valid.items()}
    metrics = {f"heads/{name}": average(values[name], valid[name]) for name in values}
    return losses.mean_over_heads(values, valid), metrics


def see(heads: AuxiliaryHeads, visual: jax.Array, batch: Batch, config: ConfigDict) -> jax.Array:
    """Computes the loss of the patch head on captions: at each patch of the first frame, is there a thing, what is its box, and
    does a string, a mark or a bar stand there.

    A caption asks for boxes through attention that does not exist yet; this asks each visual token directly.

    Args:
      heads: the heads.
      visual: visual tokens ``[B, F * S/4, D]``.
      batch: captions; `records.FIELDS` says how they keep the boxes.
      config: ``beta`` and ``iou_weight``.

    Returns:
      Cross-entropy of the things + loss of the boxes where there is a thing + cross-entropy of what stands there, where
      something does and where nothing does.
    """
    slots = batch.patches.shape[2]
    first = visual[:, : slots // MERGE_UNIT].astype(jnp.float32)
    there, predicted, inked = heads.patches(first)  # [B, S], [B, S, 4], [B, S, I]
    grid = batch.grid[:, 0]
    row, column = patch_coordinates(grid, slots, math.isqrt(MERGE_UNIT))
    corner = jnp.stack([column, row], axis=-1) / grid[:, None, ::-1]  # [B, S, 2]
    side = 1 / grid[:, None, ::-1]
    caption = batch.op_valid & (batch.op_id < 0)
    real = (jnp.arange(slots) < grid.prod(axis=-1, keepdims=True)) & jnp.any(caption, axis=-1, keepdims=True)
    box = batch.box[:, None]  # [B, 1, K, 4]

    centre = (corner + side / 2)[:, :, None]
    inside = jnp.all((centre > box[..., :2]) & (centre < box[..., 2:]), axis=-1) & (caption & batch.box_valid)[:, None]
    covered = jnp.any(inside, axis=-1)
    target = jnp.take_along_axis(batch.box, jnp.argmax(inside, axis=-1)[..., None], axis=1)
    thing = losses.masked_mean(optax.losses.sigmoid_binary_cross_entropy(there, covered.astype(jnp.float32)), real)
    box_loss = functools.partial(losses.box_loss, beta=config.beta, iou_weight=config.iou_weight)
    fit = losses.masked_mean(jax.vmap(jax.vmap(box_loss))(predicted, target), real & covered)

    # A mark can be smaller than a patch: it stands where most of it lies, or where it fills most of the patch.
    low, high = jnp.maximum(corner[:, :, None], box[..., :2]), jnp.minimum((corner + side)[:, :, None], box[..., 2:])
    smaller = jnp.minimum(jnp.prod(box[..., 2:] - box[..., :2], axis=-1), jnp.prod(side, axis=-1)[..., None])
    shared = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1) / jnp.maximum(smaller, 1e-9)
    shared = jnp.where((caption & ~batch.box_valid)[:, None], shared, 0.0)
    stands = jnp.max(shared, axis=-1) > _STANDS
    kind = jnp.maximum(-1 - jnp.take_along_axis(batch.op_id, jnp.argmax(shared, axis=-1), axis=1), 0)
    ink = optax.losses.softmax_cross_entropy_with_integer_labels(inked, jnp.where(stands, kind, 0))
    return thing + fit + losses.masked_mean(ink, real & stands) + losses.masked_mean(ink, real & ~stands)


def average(values: jax.Array, weights: jax.Array) -> clu_metrics.Average:
    """Weighted mean of values, both ``[*n]``, as a metric; a value of weight 0 may be anything."""
    weights = weights.astype(jnp.float32)
    return clu_metrics.Average(total=jnp.sum(jnp.where(weights > 0, values * weights, 0.0)), count=jnp.sum(weights))
