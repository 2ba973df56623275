"""How often each computation of a module runs.

A loop's body stands in a module's text once. XLA's CPU compiler writes the trip count beside the loop; the TPU compiler does not.
There it follows from the loop's condition, from what the body does to the counter, and from where the counter starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from pixelis_jax.plan.hlo import Computation, Instruction, Module

_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Execution:
    """A computation that runs as a sequence of instructions, and how often."""

    computation: Computation
    times: int


def executions(module: Module, turns: Sequence[int] = (1,)) -> tuple[list[Execution], list[str]]:
    """Lists the computations that run, once for each place that they are called from.

    A fusion is one instruction of its caller and does not appear. Every branch of a conditional counts.

    Args:
      module: the module.
      turns: how often the body of a loop counts whose trip count does not follow from the text, because it depends on data: of
        an outer one, of one inside it, and so on; the last holds for all that lie deeper.

    Returns:
      The executions, and the names of those loops.
    """
    found: list[Execution] = []
    unknown: list[str] = []

    def visit(scope: _Scope, times: int, depth: int) -> None:
        found.append(Execution(scope.computation, times))
        for instruction in scope.computation.instructions.values():
            if instruction.opcode == "while":
                trips, inner = _trip_count(instruction, scope), depth
                if trips is None:
                    unknown.append(instruction.name)
                    trips, inner = turns[min(depth, len(turns) - 1)], depth + 1
                if trips:
                    visit(scope.loop(instruction, "body"), times * trips, inner)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for name in instruction.called:
                    visit(_Scope(module, module.computations[name]), times, depth)

    visit(_Scope(module, module.computations[module.entry]), 1, 0)
    return found, unknown


class _Scope:
    """Values of the integer scalars of a computation, where they follow from the text."""

    def __init__(
        self,
        module: Module,
        computation: Computation,
        *,
        state: Callable[[int], int | None] | None = None,
        arguments: Sequence[int | None] = (),
    ):
        """Creates a scope.

        Args:
          module: the module.
          computation: where names are looked up.
          state: elements of the tuple that is its one parameter (the body or the condition of a loop).
          arguments: its parameters (a fusion).
        """
        self.module, self.computation = module, computation
        self._state, self._arguments = state, arguments

    @property
    def root(self) -> Instruction:
        """What the computation returns."""
        return self.computation.instructions[self.computation.root]

    def loop(self, instruction: Instruction, role: str) -> _Scope:
        """The scope of a loop's ``body`` or ``condition`` at its first turn."""
        computation = self.module.computations[instruction.reference(role)]
        return _Scope(self.module, computation, state=lambda index: self.element(instruction.operands[0], index))

    def inside(self, fusion: Instruction) -> _Scope:
        """The scope of a fusion."""
        computation = self.module.computations[fusion.reference("calls")]
        return _Scope(self.module, computation, arguments=[self.value(name) for name in fusion.operands])

    def element(self, name: str, index: int) -> int | None:
        """Returns the value of one element of the tuple `name`."""
        instruction = self.computation.instructions[name]
        match instruction.opcode:
            case "tuple":
                return self.value(instruction.operands[index])
            case "parameter" if self._state:
                return self._state(index)
            case "copy" | "optimization-barrier":
                return self.element(instruction.operands[0], index)
        return None

    def value(self, name: str) -> int | None:
        """Returns the value of the scalar `name`."""
        instruction = self.computation.instructions[name]
        match instruction.opcode:
            case "constant":
                return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
            case "parameter" if self._arguments:
                return self._arguments[int(instruction.literal)]
            case "get-tuple-element":
                return self.element(instruction.operands[0], int(instruction.reference("index")))
            case "copy" | "bitcast" | "convert" | "reshape":
                return self.value(instruction.operands[0])
            case "copy-done":
                return self.value(self.computation.instructions[instruction.operands[0]].operands[0])
            case "fusion":
                inner = self.inside(instruction)
                return inner.value(inner.computation.root)
            case "add" | "subtract":
                left, right = map(self.value, instruction.operands)
                if left is None or right is None:
                    return None
                return left + right if instruction.opcode == "add" else left - right
        return None

    def comparison(self) -> tuple[int, str] | None:
        """Returns left minus right and the direction of the comparison that the computation returns."""
        scope = self
        while scope.root.opcode == "fusion":
            scope = scope.inside(scope.root)
        if scope.root.opcode != "compare":
            return None
        left, right = map(scope.value, scope.root.operands)
        return None if left is None or right is None else (left - right, scope.root.reference("direction"))


def _trip_count(loop: Instruction, scope: _Scope) -> int | None:
    """Trip count of a loop that counts to a bound; None for any other loop."""
    if known := _KNOWN_TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = scope.loop(loop, "condition"), scope.loop(loop, "body")
    # The second turn: each element of the state is what the body makes of the first.
    second = _Scope(scope.module, condition.computation, state=lambda index: body.element(body.computation.root, index))
    before, after = condition.comparison(), second.comparison()
    return _turns(before[0], after[0], before[1]) if before and after else None


def _turns(gap: int, after: int, direction: str) -> int | None:
    """Turns until ``gap DIRECTION 0`` is false, where a turn takes the gap to `after` and each further one as far again."""
    step = after - gap
    if direction in ("GT", "GE"):
        gap, step, direction = -gap, -step, {"GT": "LT", "GE": "LE"}[direction]
    if direction == "NE" and step < 0:
        gap, step = -gap, -step
    if direction == "LE":
        gap, direction = gap - 1, "LT"
    if (direction == "LT" and gap >= 0) or (direction == "NE" and gap == 0):
        return 0
    if direction not in ("LT", "NE") or step <= 0 or (direction == "NE" and gap % step):
        return None
    return -(gap // step)
