"""What one chip does in one call of a compiled module: bytes to other chips, bytes of HBM, multiplications.

XLA's own `cost_analysis` counts the body of a loop once; here it counts as often as it runs (`loops`).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from pixelis_jax.plan.hlo import Array, Computation, Instruction, Module, fused, nested
from pixelis_jax.plan.loops import executions

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# They name, group or wait for what another instruction moves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "async-start",
    "async-update", "after-all", "optimization-barrier", "partition-id", "replica-id",
}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Traffic:
    """Collectives of one kind.

    Attributes:
      count: how many run.
      bytes: size of what is gathered, reduced or exchanged, summed over them.
      sent: bytes that leave the chip when each runs along a ring, the fewest possible.
    """

    count: int = 0
    bytes: int = 0
    sent: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What one chip does in one call.

    Attributes:
      collectives: by kind, see `COLLECTIVES`.
      hbm_bytes: read and written, where nothing is padded and nothing is read twice by one instruction.
      flops: of matrix products and convolutions; kernels that XLA does not know (Pallas) are not in it.
      unknown_loops: loops whose trip count depends on data.
    """

    collectives: dict[str, Traffic]
    hbm_bytes: int
    flops: int
    unknown_loops: int


def measure(module: Module, turns: Sequence[int] = (1,)) -> Costs:
    """Adds up a module.

    Args:
      module: compiled for one chip of many.
      turns: of loops whose trip count depends on data, as in `executions`.

    Returns:
      Its costs.
    """
    collectives = {kind: Traffic() for kind in COLLECTIVES}
    hbm = flops = 0
    runs, unknown = executions(module, turns)
    for run in runs:
        for kind, size, ways in _collectives(module, run.computation):
            traffic = collectives[kind]
            traffic.count += run.times
            traffic.bytes += run.times * size
            traffic.sent += run.times * _sent(kind, size, ways)
        for instruction in run.computation.instructions.values():
            hbm += run.times * _hbm_bytes(module, run.computation, instruction)
        flops += run.times * sum(_flops(where, instruction) for where, instruction in nested(module, run.computation))
    return Costs(collectives=collectives, hbm_bytes=hbm, flops=flops, unknown_loops=len(unknown))


def _collectives(module: Module, computation: Computation) -> Iterator[tuple[str, int, int]]:
    """Yields kind, size in bytes and number of chips of each collective."""
    seen: set[str] = set()
    for where, instruction in nested(module, computation):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if where is not computation and (channel := re.search(r"channel_id=\d+", instruction.attributes)):
            # The TPU compiler spreads one asynchronous collective over several fusions and repeats it in each.
            if channel[0] in seen:
                continue
            seen.add(channel[0])
        ways = group_size(instruction.attributes, module.partitions)
        size = sum(_array_bytes(where, name) for name in instruction.operands)
        if kind == "all-gather":
            size *= ways
        # On TPU a reduce-scatter is a fusion of an all-reduce and a slice.
        if kind == "all-reduce" and where.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        yield kind, size, ways


def _sent(kind: str, size: int, ways: int) -> int:
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (ways - 1) // ways


def group_size(attributes: str, partitions: int) -> int:
    """Returns how many chips take part in a collective, from any of the forms in which XLA writes ``replica_groups``.

    Args:
      attributes: of the instruction.
      partitions: chips of the module, all of which take part where no groups are written.

    Raises:
      ValueError: an unknown form.
    """
    found = re.search(
        r"replica_groups=(mesh\[[^\]]*\]|\[[^\]]*\]<=|\{\}|\{\{[\d,]*)(?:, device_ids=\S+)?(?: \{([^}]*)\})?", attributes
    )
    if found is None or found[1] == "{}":
        return partitions
    groups, axes = found.groups()
    if groups.startswith("{{"):
        return groups.count(",") + 1
    if groups.startswith("["):
        return int(re.findall(r"\d+", groups)[-1])
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
    # An axis, or with `:(before)size` a part of one.
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes or "")
    if not parts:
        raise ValueError(f"cannot read the groups of a collective: {attributes[:120]}")
    return math.prod(int(part or sizes[axis]) for axis, part in parts)


def _hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    opcode, operands = instruction.opcode, instruction.operands
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
        return 0
    if inner := fused(module, instruction):
        reads = [
            sum(array.bytes for array in _arrays(computation, name) if not array.space) and _read(module, inner, parameter)
            for name, parameter in zip(operands, inner.parameters, strict=True)
        ]
        return sum(reads) + _written(module, inner, inner.instructions[inner.root], instruction.arrays)
    result = sum(array.bytes for array in instruction.arrays if not array.space)
    match opcode:
        case "slice" | "dynamic-slice" | "gather":
            return _in_hbm(computation, operands[0]) and instruction.arrays[0].bytes + result
        case "dynamic-update-slice" | "scatter":
            update = _update(instruction)
            return _in_hbm(computation, update) + min(result, _array_bytes(computation, update))
        case "copy-start":  # the result is the destination, then the source again
            target = instruction.arrays[0]
            return _in_hbm(computation, operands[0]) + (0 if target.space else target.bytes)
        case "slice-start" | "dynamic-slice-start":  # here it is the source, then the destination
            source, target = instruction.arrays[:2]
            return (0 if source.space else target.bytes) + (0 if target.space else target.bytes)
    if opcode.endswith("-start"):  # likewise operands, then results
        return result
    return sum(_in_hbm(computation, name) for name in operands) + result


def _update(instruction: Instruction) -> str:
    """Name of what an update writes."""
    return instruction.operands[1 if instruction.opcode == "dynamic-update-slice" else -1]


def _read(module: Module, computation: Computation, parameter: Instruction) -> int:
    """Bytes that a fusion reads of a parameter in HBM: of a stack of layers, only the slice that it takes."""
    whole = sum(array.bytes for array in parameter.arrays)
    if parameter.name == computation.root:  # it is handed on, to whatever reads the fusion's result
        return whole
    total = 0
    for user in computation.users(parameter.name):
        match user.opcode:
            case "slice" | "dynamic-slice" | "gather" if user.operands[0] == parameter.name:
                total += user.arrays[0].bytes
            case "dynamic-update-slice" | "scatter" if user.operands[0] == parameter.name:
                continue  # in place
            case "bitcast" | "copy" if user.arrays[0].bytes == whole:
                total += _read(module, computation, user)
            case "fusion":
                inner = module.computations[user.reference("calls")]
                places = [index for index, name in enumerate(user.operands) if name == parameter.name]
                total += sum(_read(module, inner, inner.parameters[place]) for place in places)
            case _:
                return whole
    return min(total, whole)


def _written(module: Module, computation: Computation, root: Instruction, arrays: tuple[Array, ...]) -> int:
    """Bytes that a fusion writes to HBM: of an array that is updated in place, only the update."""
    match root.opcode:
        case "tuple":
            parts = [computation.instructions[name] for name in root.operands]
            return sum(_written(module, computation, part, part_of) for part, part_of in _zip_arrays(parts, arrays))
        case "dynamic-update-slice" | "scatter" if not arrays[0].space:
            return _array_bytes(computation, _update(root))
        case "bitcast" if not arrays[0].space:
            return _written(module, computation, computation.instructions[root.operands[0]], arrays)
        case "fusion":
            inner = module.computations[root.reference("calls")]
            return _written(module, inner, inner.instructions[inner.root], arrays)
    return sum(array.bytes for array in arrays if not array.space)


def _zip_arrays(parts: list[Instruction], arrays: tuple[Array, ...]) -> Iterator[tuple[Instruction, tuple[Array, ...]]]:
    start = 0
    for part in parts:
        yield part, arrays[start : start + len(part.arrays)]
        start += len(part.arrays)


def _arrays(computation: Computation, name: str) -> tuple[Array, ...]:
    return computation.instructions[name].arrays


def _array_bytes(computation: Computation, name: str) -> int:
    return sum(array.bytes for array in _arrays(computation, name))


def _in_hbm(computation: Computation, name: str) -> int:
    return sum(array.bytes for array in _arrays(computation, name) if not array.space)


def _flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == "dot":
        left = _arrays(computation, instruction.operands[0])[0]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        dims = filter(None, contracted[1].split(",")) if contracted else ()
        return 2 * instruction.arrays[0].size * math.prod(left.dims[int(dim)] for dim in dims)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """Multiply-adds of a convolution, the TPU compiler's form of every matrix product, twice.

    A batch dimension of the product becomes a spatial one, with padding or dilation such that each output position sees one
    element: only pairs of positions that meet real input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    arrays = [*(_arrays(computation, name)[0] for name in instruction.operands[:2]), instruction.arrays[0]]
    source, kernel, result = (
        dict(zip(names, array.dims, strict=True)) for names, array in zip(labels.groups(), arrays, strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""] * 2)[1]))
    total = 2 * result["b"] * result["f"] * kernel["i"]
    for axis, size in enumerate(map(int, filter(None, window.get("size", "").split("x")))):
        label = str(axis)
        low = int(_axis(window, "pad", axis, "0_0").split("_")[0])
        stride, dilation, spread = (int(_axis(window, name, axis, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        end = (source[label] - 1) * dilation
        total *= sum(
            0 <= (place := out * stride + inside * spread - low) <= end and place % dilation == 0
            for out in range(result[label])
            for inside in range(size)
        )
    return total


def _axis(window: dict[str, str], name: str, axis: int, default: str) -> str:
    return window[name].split("x")[axis] if name in window else default
