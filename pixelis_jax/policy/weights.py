"""Published safetensors in and out.

One table relates every published tensor to one parameter. Reading and writing prove a bijection: each tensor is used
once, each parameter is filled, and anything else is an error that names the tensors.
"""

import dataclasses
import functools
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from pixelis_jax.policy.adapters import init_adapters, is_adapter
from pixelis_jax.policy.config import ConfigError, Execution, Lora, Precision, Qwen3VLConfig
from pixelis_jax.policy.model import Qwen3VL
from pixelis_jax.policy.quantization import quantize
from pixelis_jax.sharding import parameter_sharding

INDEX = "model.safetensors.index.json"
Path = tuple[Hashable, ...]
_SCALE = "kernel_scale"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F64": np.float64}


class WeightsError(ValueError):
    """A directory that does not hold exactly the tensors of its configuration."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a published tensor and a parameter lay out the same numbers.

    Attributes:
      read: published array, shape of the parameter -> parameter.
      write: parameter, shape of the published array -> published array.
      shape: shape of the parameter, configuration -> shape of the published array.
    """

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    shape: Callable[[tuple[int, ...], Qwen3VLConfig], tuple[int, ...]]


def _conv_shape(shape: tuple[int, ...], config: Qwen3VLConfig) -> tuple[int, ...]:
    vision = config.vision
    return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)


# As it is, up to a split of the leading axis: norms, tables, biases.
COPY = Layout(lambda x, shape: x.reshape(shape), lambda x, shape: x.reshape(shape), lambda shape, _: shape)
JOINED = dataclasses.replace(COPY, shape=lambda shape, _: (math.prod(shape),))
# Published kernels are [out, in, ...]; ours are [in, out...].
LINEAR = Layout(
    read=lambda x, shape: x.reshape(len(x), -1).T.reshape(shape),
    write=lambda x, shape: x.reshape(len(x), -1).T.reshape(shape),
    shape=lambda shape, _: (math.prod(shape[1:]), shape[0]),
)
CONV = dataclasses.replace(LINEAR, shape=_conv_shape)


# Experts: published [experts, in, out], without the transposition of other kernels.
EXPERTS_GATE_UP = dataclasses.replace(COPY, shape=lambda shape, _: (*shape[:2], 2 * shape[3]))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table: a parameter's path, how it is laid out, and its row where layers are stacked."""

    path: Path
    layout: Layout
    row: int | None = None


def weight_table(config: Qwen3VLConfig, execution: Execution | None = None) -> dict[str, Entry]:
    """Returns published name -> parameter for every tensor of a model that is computed as `execution` says."""
    execution = execution or Execution()
    visual, text = "model.visual.", "model.language_model."
    table = {
        f"{visual}patch_embed.proj.weight": Entry(("visual", "patch_embed", "kernel"), CONV),
        f"{visual}patch_embed.proj.bias": Entry(("visual", "patch_embed", "bias"), COPY),
        f"{visual}pos_embed.weight": Entry(("visual", "positions", "table"), COPY),
        f"{text}embed_tokens.weight": Entry(("decoder", "embedding"), COPY),
        f"{text}norm.weight": Entry(("decoder", "norm", "scale"), COPY),
    }
    for index in range(config.vision.depth):
        place = _place("visual", "blocks", index, 0 if execution.scan_layers else config.vision.depth)
        table |= _at(place, _vision_block, f"{visual}blocks.{index}.")
    table |= _merger(f"{visual}merger.", ("visual", "merger"))
    for index in range(len(config.vision.deepstack_visual_indexes)):
        table |= _merger(f"{visual}deepstack_merger_list.{index}.", ("visual", "deepstack_mergers", index))
    unrolled = config.unrolled_layers(execution)
    feed_forward = _experts if config.text.num_experts else _mlp
    for index in range(config.text.num_hidden_layers):
        place = _place("decoder", "layers", index, unrolled)
        table |= _at(place, _attention, f"{text}layers.{index}.") | _at(place, feed_forward, f"{text}layers.{index}.mlp.")
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Entry(("lm_head", "kernel"), LINEAR)
    return table


def _place(tower: str, layers: str, index: int, unrolled: int) -> tuple[Path, int | None]:
    """Path of a layer, and its row in the stack of the layers behind the unrolled ones."""
    return ((tower, layers, index), None) if index < unrolled else ((tower, "stacked"), index - unrolled)


def _at(place: tuple[Path, int | None], part: Callable[[str, Path], dict[str, Entry]], name: str) -> dict[str, Entry]:
    path, row = place
    return {key: dataclasses.replace(entry, row=row) for key, entry in part(name, path).items()}


def _linear(name: str, path: Path) -> dict[str, Entry]:
    return {f"{name}.weight": Entry((*path, "kernel"), LINEAR), f"{name}.bias": Entry((*path, "bias"), COPY)}


def _layer_norm(name: str, path: Path) -> dict[str, Entry]:
    return {f"{name}.weight": Entry((*path, "scale"), COPY), f"{name}.bias": Entry((*path, "bias"), COPY)}


def _vision_block(name: str, path: Path) -> dict[str, Entry]:
    return {
        f"{name}attn.qkv.weight": Entry((*path, "attn", "qkv"), LINEAR),
        f"{name}attn.qkv.bias": Entry((*path, "attn", "qkv_bias"), JOINED),
        **_linear(f"{name}attn.proj", (*path, "attn", "proj")),
        **_layer_norm(f"{name}norm1", (*path, "norm1")),
        **_layer_norm(f"{name}norm2", (*path, "norm2")),
        **_linear(f"{name}mlp.linear_fc1", (*path, "mlp", "fc1")),
        **_linear(f"{name}mlp.linear_fc2", (*path, "mlp", "fc2")),
    }


def _merger(name: str, path: Path) -> dict[str, Entry]:
    return {
        **_layer_norm(f"{name}norm", (*path, "norm")),
        **_linear(f"{name}linear_fc1", (*path, "fc1")),
        **_linear(f"{name}linear_fc2", (*path, "fc2")),
    }


def _attention(name: str, path: Path) -> dict[str, Entry]:
    kernels = {
        f"{name}self_attn.{part}.weight": Entry((*path, "attn", part, "kernel"), LINEAR)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    head_norms = {f"{name}self_attn.{part}.weight": Entry((*path, "attn", part, "scale"), COPY) for part in ("q_norm", "k_norm")}
    norms = {
        f"{name}input_layernorm.weight": Entry((*path, "input_norm", "scale"), COPY),
        f"{name}post_attention_layernorm.weight": Entry((*path, "post_attention_norm", "scale"), COPY),
    }
    return kernels | head_norms | norms


def _mlp(name: str, path: Path) -> dict[str, Entry]:
    return {
        f"{name}{part}.weight": Entry((*path, "mlp", part, "kernel"), LINEAR) for part in ("gate_proj", "up_proj", "down_proj")
    }


def _experts(name: str, path: Path) -> dict[str, Entry]:
    return {
        f"{name}gate.weight": Entry((*path, "mlp", "router"), LINEAR),
        f"{name}experts.gate_up_proj": Entry((*path, "mlp", "gate_up"), EXPERTS_GATE_UP),
        f"{name}experts.down_proj": Entry((*path, "mlp", "down"), COPY),
    }


def abstract_model(
    config: Qwen3VLConfig, precision: Precision | None = None, execution: Execution | None = None, lora: Lora | None = None
) -> Qwen3VL:
    """Returns the model with shapes in place of numbers; costs no memory."""
    return nnx.eval_shape(lambda: Qwen3VL(config, precision=precision, execution=execution, lora=lora, rngs=nnx.Rngs(0)))


def published_names(config: Qwen3VLConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every published tensor of a model.

    Args:
      config: architecture.

    Returns:
      Published name -> published shape.

    Raises:
      WeightsError: the table and the parameters of the model are no bijection.
    """
    return _published(_parameters(abstract_model(config)), weight_table(config), config)


def _published(
    parameters: Mapping[Path, nnx.Param], table: Mapping[str, Entry], config: Qwen3VLConfig
) -> dict[str, tuple[int, ...]]:
    """Shapes of all published tensors, once it is proven that they fill each parameter, and each row of a stack, once."""
    targets = [(entry.path, entry.row) for entry in table.values()]
    stacked = {path for path, row in targets if row is not None}
    rows = {(path, row) for path, p in parameters.items() for row in (range(p.shape[0]) if path in stacked else (None,))}
    if len(set(targets)) != len(targets) or set(targets) != rows:
        difference = sorted({str(path) for path, _ in set(targets) ^ rows}) or ["a parameter is filled twice"]
        raise WeightsError(f"the weight table does not cover the parameters: {', '.join(difference)}")
    return {
        name: entry.layout.shape(parameters[entry.path].shape[0 if entry.row is None else 1 :], config)
        for name, entry in table.items()
    }


def load(
    directory: epath.PathLike,
    config: Qwen3VLConfig | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    compute_dtype: jax.typing.DTypeLike | None = None,
    execution: Execution | None = None,
    lora: Lora | None = None,
) -> Qwen3VL:
    """Reads a model in the published layout, one tensor at a time, each straight to where it lives on the mesh.

    Args:
      directory: holds config.json and safetensors files.
      config: overrides config.json.
      mesh: where to place the parameters; None leaves them on the default device.
      dtype: number format of the parameters.
      compute_dtype: number format of the computation, `dtype` by default.
      execution: how the model is computed; layer by layer by default.
      lora: adapters, which change nothing before they are trained; none by default. A base in few bits is quantised tensor by
        tensor, where it lives.

    Returns:
      The model.

    Raises:
      WeightsError: the directory is no model, or its tensors are not exactly those of the configuration.
    """
    directory = epath.Path(directory)
    if config is None:
        try:
            config = Qwen3VLConfig.from_json(directory)
        except ConfigError as error:
            raise WeightsError(f"{directory} is not a Qwen3-VL model: {error}") from error
    files = _locate(directory)
    model = abstract_model(config, Precision(params=dtype, compute=compute_dtype or dtype), execution, lora)
    parameters, table = _parameters(model), weight_table(config, execution)
    expected = _published(parameters, table, config)
    _check_names(directory, expected, files)
    stored = _stored(model)
    placements = {path: None if mesh is None else parameter_sharding(parameter, mesh) for path, parameter in stored.items()}
    stacks: dict[Path, jax.Array] = {}
    for file in sorted(set(files.values())):
        for name, array in _read_tensors(directory / file, [name for name in files if files[name] == file]):
            entry = table[name]
            if array.shape != expected[name]:
                raise WeightsError(f"{directory}: {name} has shape {array.shape}, config.json says {expected[name]}")
            parameter, placement = parameters[entry.path], placements[entry.path]
            shape = parameter.shape if entry.row is None else parameter.shape[1:]
            value = entry.layout.read(array, shape).astype(dtype, copy=False)
            placed = _to_device(value, placement if entry.row is None else _row_placement(placement))
            for path, part in _parts(entry.path, placed, stored, lora).items():
                target, place = stored[path], placements[path]
                if entry.row is None:
                    target.set_value(part if place is None else jax.device_put(part, place))
                else:
                    if path not in stacks:
                        stacks[path] = jnp.zeros(target.shape, target.dtype, device=place)
                    stacks[path] = _set_row(stacks[path], part, entry.row)
            del array, value, placed
    for path, stacked in stacks.items():
        stored[path].set_value(stacked)
    if lora is not None:
        init_adapters(model, jax.random.key(0), mesh)
    return model


def restack(model: Qwen3VL, execution: Execution | None = None, lora: Lora | None = None) -> Qwen3VL:
    """Returns the same weights for another `execution`, and with fresh adapters where `lora` asks for them.

    Args:
      model: without adapters; its arrays are shared where nothing has to be stacked or quantised.
      execution: of the new model; layer by layer by default.
      lora: adapters of the new model.

    Raises:
      WeightsError: the model has a base in few bits.
    """
    _check_plain(model)
    target = abstract_model(model.config, model.precision, execution, lora)
    found, wanted = _parameters(model), _stored(target)
    old, new = weight_table(model.config, model.execution), weight_table(model.config, execution)
    rows: dict[Path, dict[int | None, jax.Array]] = {}
    for name, entry in new.items():
        source = old[name]
        value = found[source.path][...]
        for path, part in _parts(entry.path, value if source.row is None else value[source.row], wanted, lora).items():
            rows.setdefault(path, {})[entry.row] = part
    for path, parts in rows.items():
        wanted[path].set_value(parts[None] if None in parts else jnp.stack([parts[row] for row in range(len(parts))]))
    if lora is not None:
        init_adapters(target, jax.random.key(0))
    return target


def _to_device(value: np.ndarray, placement: NamedSharding | None) -> jax.Array:
    if placement is None:
        return jax.device_put(value)
    # Each process places what its own devices hold.
    return jax.make_array_from_callback(value.shape, placement, lambda index: value[index])


def _row_placement(placement: NamedSharding | None) -> NamedSharding | None:
    """Where a row of a stack lives: as the stack, without its first axis."""
    return None if placement is None else NamedSharding(placement.mesh, PartitionSpec(*placement.spec[1:]))


@functools.partial(jax.jit, donate_argnums=0)
def _set_row(stacked: jax.Array, row: jax.Array, index: int) -> jax.Array:
    return stacked.at[index].set(row)


def save(
    model: Qwen3VL,
    directory: epath.PathLike,
    max_shard_bytes: int = 4 * 2**30,
    extra_files: Sequence[epath.PathLike] = (),
) -> None:
    """Writes a model in the published layout, as a whole or not at all.

    Args:
      model: the model.
      directory: must not exist, or be empty.
      max_shard_bytes: size at which a new safetensors file begins; a larger tensor gets a file of its own.
      extra_files: copied beside the weights, e.g. the tokenizer.

    Raises:
      WeightsError: the directory exists and is not empty, or the model has a base in few bits.
    """
    _check_plain(model)
    directory = epath.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise WeightsError(f"{directory} already exists")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        _write(model, partial, max_shard_bytes)
        for file in map(epath.Path, extra_files):
            file.copy(partial / file.name)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _parameters(model: Qwen3VL) -> dict[Path, nnx.Param]:
    """The published parameters: all but adapters and the scales of kernels in few bits."""
    return {path: parameter for path, parameter in _stored(model).items() if path[-1] != _SCALE}


def _stored(model: Qwen3VL) -> dict[Path, nnx.Param]:
    """What stands for published tensors: all but adapters."""
    return {path: node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param) and not is_adapter(path)}


def _parts(path: Path, value: jax.Array, stored: Mapping[Path, Any], lora: Lora | None) -> dict[Path, jax.Array]:
    """What is stored for a parameter: the value itself, or values in few bits and their scale."""
    scale_path = (*path[:-1], _SCALE)
    if path[-1] != "kernel" or lora is None or scale_path not in stored:
        return {path: value}
    values, scale = quantize(value, lora.base)
    return {path: values, scale_path: scale}


def _check_plain(model: Qwen3VL) -> None:
    if model.lora is not None and model.lora.base:
        raise WeightsError(
            f"the model's base is in {model.lora.base}, which is not what it was published in; merge_adapters gives one that is"
        )


def _locate(directory: epath.Path) -> dict[str, str]:
    """Returns tensor name -> file name."""
    index = directory / INDEX
    if index.exists():
        try:
            files = json.loads(index.read_text())["weight_map"]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"{index} is not a safetensors index: {error!r}") from error
        absent = sorted({file for file in files.values() if not (directory / file).exists()})
        if absent:
            raise WeightsError(f"{directory} lacks {', '.join(absent)}")
        return files
    single = directory / "model.safetensors"
    if not single.exists():
        raise WeightsError(f"{directory} holds neither {INDEX} nor model.safetensors")
    with _open(single) as tensors:
        return dict.fromkeys(tensors.keys(), single.name)


def _open(file: epath.Path) -> Any:
    try:
        return safetensors.safe_open(os.fspath(file), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a readable safetensors file: {error}") from error


def _read_tensors(file: epath.Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads tensors in the order of the file.

    With plain reads, since the pages of a mapped file would stay in memory beside the arrays.
    """
    with _open(file) as tensors:  # checks the header against the file
        absent = sorted(set(names) - set(tensors.keys()))
    if absent:
        raise WeightsError(f"{file} lacks {', '.join(absent)}, which the index places there")
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
            entry = header[name]
            if entry["dtype"] not in _DTYPES:
                raise WeightsError(f"{file}: {name} has number format {entry['dtype']} (known: {', '.join(_DTYPES)})")
            array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
            stream.seek(8 + length + entry["data_offsets"][0])
            if stream.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise WeightsError(f"{file} ends inside {name}")
            yield name, array
            del array


def _check_names(directory: epath.Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing, unused = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unused:
        parts = [f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("unused", unused)) if names]
        raise WeightsError(f"{directory} does not match its config.json; {'; '.join(parts)}")


def plan_shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Divides tensors into files, in order.

    Args:
      sizes: bytes of each tensor.
      most: bytes of a file; a tensor that is larger has one of its own.

    Returns:
      Names of each file's tensors.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write(model: Qwen3VL, directory: epath.Path, max_shard_bytes: int) -> None:
    parameters, table = _parameters(model), weight_table(model.config, model.execution)
    shapes = _published(parameters, table, model.config)
    sizes = {name: math.prod(shapes[name]) * parameters[entry.path].dtype.itemsize for name, entry in table.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            entry = table[name]
            parameter = parameters[entry.path][...]
            value = np.asarray(jax.device_get(parameter if entry.row is None else parameter[entry.row]))
            tensors[name] = np.ascontiguousarray(entry.layout.write(value, shapes[name]))
        save_file(tensors, os.fspath(directory / file), metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(files.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (directory / "config.json").write_text(
        json.dumps(model.config.to_json() | {"dtype": str(np.dtype(model.precision.params))}, indent=2) + "\n"
    )
