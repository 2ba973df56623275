"""From what was compiled to what it means: does it fit, how fast can it be at most, and what would help."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pixelis_jax.plan.topologies import CHIPS, GIB, Topology

# Kinds of arguments that are there before and after a step, whatever its batch.
LASTING = ("parameters", "optimizer", "cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one chip's HBM.

    Attributes:
      arguments: by kind, without the padding of tiles: ``parameters``, ``optimizer``, ``cache``, ``inputs``.
      padding: what tiles add to the arguments.
      temporaries: activations, gradients, gathered parameters.
      outputs: results.
      aliased: results that take the place of arguments.
      code: the program itself.
    """

    arguments: Mapping[str, int]
    padding: int
    temporaries: int
    outputs: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """What the program needs."""
        return sum(self.arguments.values()) + self.padding + self.temporaries + self.outputs - self.aliased + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The shortest times that one step can take, in seconds, were each of a chip's three limits the only one.

    Attributes:
      compute: for its operations.
      hbm: for what it reads and writes in HBM; None where the program was not compiled.
      ici: for what it sends to other chips; likewise.
    """

    compute: float
    hbm: float | None
    ici: float | None

    @property
    def step(self) -> float:
        """The bound: everything overlaps with the slowest."""
        return max(self.compute, self.hbm or 0.0, self.ici or 0.0)

    @property
    def limited_by(self) -> str:
        """Which of the three it is."""
        times = {"compute": self.compute, "HBM": self.hbm or 0.0, "ICI": self.ici or 0.0}
        return max(times, key=lambda name: times[name])


def roofline(topology: Topology, *, flops: int, compiled: Mapping[str, Any] | None) -> Roofline:
    """Bounds the time of one step.

    Args:
      topology: the slice.
      flops: what the step needs, all chips together (`flops.step_flops`).
      compiled: `costs.Costs` as a dict; None where there is none.

    Returns:
      The bounds. A chip computes at least its share of `flops`, and at least what was compiled for it, which rematerialisation
      and copied work make more.
    """
    chip = topology.chip
    share = flops / topology.chips
    if compiled is None:
        return Roofline(compute=share / chip.flops, hbm=None, ici=None)
    sent = sum(traffic["sent"] for traffic in compiled["collectives"].values())
    return Roofline(
        compute=max(share, compiled["flops"]) / chip.flops,
        hbm=compiled["hbm_bytes"] / chip.hbm_bandwidth,
        ici=sent / chip.ici_bandwidth,
    )


def advice(topology: Topology, memory: Memory, program: Mapping[str, Any]) -> list[str]:
    """Says what would make a program fit.

    Args:
      topology: the slice.
      memory: what it needs.
      program: ``name``, ``mesh`` (sizes by axis), ``rows`` (sequences of a step), and ``options``: the config's ``remat``,
        ``attention``, ``params`` (their type), ``lora`` (rank) and ``base`` (of the adapters).

    Returns:
      Sentences, the most useful first; none where it fits.
    """
    over = memory.total - topology.chip.hbm
    if over <= 0:
        return []
    lasting = sum(memory.arguments.get(kind, 0) for kind in LASTING)
    mesh, options = program["mesh"], program["options"]
    ways = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    parts = f"{gib(lasting)} GiB stay ({_kinds(memory)}), {gib(memory.temporaries)} GiB are temporaries"
    said = [f"{gib(over)} GiB too much: {parts}"]
    if lasting > topology.chip.hbm or lasting > memory.temporaries:
        if mesh["data"] > 1:
            said.append(f"mesh.fsdp instead of mesh.data: parameters are copied {mesh['data']} times")
        if program["name"] == "sft" and not options["lora"]:
            said.append("adapters (lora.rank, trainable='adapters'): gradients and optimizer state of these alone")
        if options["lora"] and not options["base"]:
            said.append("lora.base='int8' or 'int4': kernels beside adapters in few bits")
        if memory.arguments.get("cache", 0) > lasting / 2:
            said.append("fewer sample.slots, or less sample.capacity")
        if options["params"] == "float32":
            said.append("precision.params='bfloat16' halves the parameters")
    else:
        if program["rows"] > ways:
            said.append(f"fewer rows: a chip has {program['rows'] // ways} of the {program['rows']}")
        if program["name"] == "sft" and options["remat"] != "full":
            said.append("execution.remat='full': a layer's activations are computed again in the backward pass")
        sequences = program["name"] in ("sft", "reference")
        if sequences and options["attention"] == "xla":
            said.append("execution.attention='splash': scores of a sequence never exist as an array")
        if mesh["tensor"] == 1:
            said.append("mesh.tensor splits heads, wide layers and logits")
        if sequences and mesh["context"] == 1:
            said.append("mesh.context splits the tokens of a sequence")
        said.append("fewer tokens a row" + (", or smaller loss.chunk and loss.vocab_chunk" if sequences else ""))
    larger = [f"{chip.name} ({gib(chip.hbm)} GiB)" for chip in CHIPS.values() if chip.hbm > memory.total]
    if larger:
        said.append(f"chips with more HBM: {', '.join(larger)}")
    return said


def gib(size: float) -> str:
    """Bytes as GiB, with at least two digits."""
    value = size / GIB
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _kinds(memory: Memory) -> str:
    return ", ".join(f"{kind} {gib(size)}" for kind, size in memory.arguments.items() if kind in LASTING and size)
