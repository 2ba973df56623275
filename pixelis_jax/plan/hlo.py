"""The text of a compiled XLA module, read: its computations and their instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
    "u64": 64, "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: XLA's name.
      dims: its sizes.
      space: memory space; 0 is the HBM, others (of a TPU) lie on the core.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles; 0 for a token or an opaque."""
        return (self.size * BITS.get(self.dtype, 0) + 7) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: unique in its module.
      opcode: as written, ``all-gather-start`` say.
      arrays: of the result, a tuple flattened.
      operands: names of instructions of the same computation.
      literal: what stands between the parentheses: the value of a constant, the number of a parameter.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, with those of a reduction."""
        branches = _BRANCHES.search(self.attributes)
        names = _OPERAND.findall(branches[1]) if branches else []
        return (*_CALLED.findall(self.attributes), *names)

    def reference(self, role: str) -> str:
        """Returns the word after ``role=``, a computation's name or a number.

        Raises:
          ValueError: the instruction has no such attribute.
        """
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        if found is None:
            raise ValueError(f"{self.opcode} {self.name} has no {role}")
        return found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the module: its instructions in order, and the one that it returns."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters, by number."""
        found = [instruction for instruction in self.instructions.values() if instruction.opcode == "parameter"]
        return tuple(sorted(found, key=lambda instruction: int(instruction.literal)))

    def users(self, name: str) -> list[Instruction]:
        """Returns the instructions that read `name`."""
        return self._users.get(name, [])

    @functools.cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole module.

    Attributes:
      computations: by name.
      entry: name of the one that is called from outside.
      partitions: chips that run it together.
    """

    computations: Mapping[str, Computation]
    entry: str
    partitions: int


def parse(text: str) -> Module:
    """Reads what ``jax.stages.Compiled.as_text`` gives.

    Raises:
      ValueError: it has no entry computation, or an instruction that cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, lines, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, lines, root)
        elif assignment := _ASSIGNMENT.match(line):
            instruction = _instruction(assignment[2], line[assignment.end() :])
            lines[instruction.name] = instruction
            root = instruction.name if assignment[1] else root
    if entry not in computations:
        raise ValueError("the text has no entry computation: it is no module of XLA")
    partitions = re.search(r"\bnum_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def fused(module: Module, instruction: Instruction) -> Computation | None:
    """Returns the computation of a fusion; None for any other instruction."""
    return module.computations[instruction.reference("calls")] if instruction.opcode == "fusion" else None


def nested(module: Module, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
    """Yields the instructions of a computation and of the fusions in it, each with the computation that it stands in."""
    for instruction in computation.instructions.values():
        yield computation, instruction
        if inner := fused(module, instruction):
            yield from nested(module, inner)


def _instruction(name: str, rest: str) -> Instruction:
    shape, rest = _split_shape(rest)
    opcode, _, rest = rest.lstrip().partition("(")
    end = _closing(rest)
    inside = rest[:end]
    return Instruction(name, opcode, _arrays(shape), tuple(_OPERAND.findall(inside)), inside, rest[end + 1 :])


def _split_shape(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = 1 + _closing(text[1:]) + 1
        return text[:end], text[end:]
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened just before `text`."""
    depth, quoted = 1, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return index
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _arrays(shape: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(dtype, tuple(map(int, filter(None, dims.split(",")))), int(space[1]) if space else 0))
    return tuple(found)
