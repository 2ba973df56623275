"""TPU slices by their common names, and what their chips can do."""

import dataclasses
import math
import re
from collections.abc import Mapping

GIB = 2**30


class PlanError(ValueError):
    """A plan that cannot be made; the message is one line for the user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip of one generation.

    Attributes:
      name: as in topology names.
      hbm: bytes that a program may use; libtpu keeps 0.25 to 1.25 GiB of the HBM for itself.
      flops: bf16 operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that leave the chip over all its links, half of the published bidirectional figure.
      cores_in_name: cores a chip, where the number in the common name counts cores, as in v5p-128; else 1.
      dimensions: of the torus.
      largest: most chips of a slice.
      chip_config: libtpu's name of the mode in which a chip is one device, where that is not its default.
    """

    name: str
    hbm: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    cores_in_name: int
    dimensions: int
    largest: int
    chip_config: str | None = None


# Published: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (the HBM of v6e: 1.6 or 1.64 TB/s, by edition of the page).
# v4's links: Jouppi et al. 2023, https://arxiv.org/abs/2304.01433 (six of 50 GB/s each way). `hbm`: what the compiler of libtpu
# 0.0.42 says is available when it refuses a program.
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            hbm=int(30.75 * GIB),
            flops=275e12,
            hbm_bandwidth=1.2e12,
            ici_bandwidth=300e9,
            cores_in_name=2,
            dimensions=3,
            largest=4096,
            chip_config="megacore",
        ),
        Chip(
            name="v5e",
            hbm=int(15.75 * GIB),
            flops=197e12,
            hbm_bandwidth=819e9,
            ici_bandwidth=200e9,
            cores_in_name=1,
            dimensions=2,
            largest=256,
        ),
        Chip(
            name="v5p",
            hbm=int(95.74 * GIB),
            flops=459e12,
            hbm_bandwidth=2.765e12,
            ici_bandwidth=600e9,
            cores_in_name=2,
            dimensions=3,
            largest=6144,
        ),
        Chip(
            name="v6e",
            hbm=int(31.25 * GIB),
            flops=918e12,
            hbm_bandwidth=1.64e12,
            ici_bandwidth=400e9,
            cores_in_name=1,
            dimensions=2,
            largest=256,
        ),
    )
}
_ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A slice.

    Attributes:
      name: the common name.
      chip: its chips.
      shape: chips along each dimension of the torus.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def libtpu_name(self) -> str:
        """Its name for `jax.experimental.topologies`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def libtpu_options(self) -> dict[str, object]:
        """Further options of that name."""
        options: dict[str, object] = {}
        if self.chip.chip_config:
            options["chip_config_name"] = self.chip.chip_config
        if self.chips == 1:  # a host of a larger slice has four
            options["chips_per_host_bounds"] = (1,) * 3
        return options


def topology(name: str) -> Topology:
    """Finds a slice.

    Args:
      name: ``v5e-256`` (chips), ``v5p-128`` (cores, two a chip), or with the shape of the torus, ``v5p:4x4x4``.

    Returns:
      The slice. Of the shapes with that many chips, the one that Google Cloud gives by default.

    Raises:
      PlanError: no such slice.
    """
    found = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    chip = CHIPS.get(_ALIASES.get(found[1], found[1])) if found else None
    if found is None or chip is None:
        raise PlanError(f"no topology {name!r}: expected a name like v5e-256 or v5p:4x4x4 (known: {', '.join(CHIPS)})")
    shapes = default_shapes(chip)
    if found[3]:
        shape = tuple(map(int, found[3].split("x")))
        fits = len(shape) == chip.dimensions and math.prod(shape) <= chip.largest
        if not fits or not (all(size % 2 == 0 for size in shape[:2]) or math.prod(shape) == 1) or 0 in shape:
            raise PlanError(f"no topology {name!r}: {chip.name} has {chip.dimensions} dimensions, the first two even")
        return Topology(name=name, chip=chip, shape=shape)
    count, rest = divmod(int(found[2]), chip.cores_in_name)
    if rest or count not in shapes:
        known = ", ".join(f"{chip.name}-{number * chip.cores_in_name}" for number in shapes)
        raise PlanError(f"no topology {name!r} (known: {known})")
    return Topology(name=name, chip=chip, shape=shapes[count])


def default_shapes(chip: Chip) -> dict[int, tuple[int, ...]]:
    """Shapes by number of chips: squares and cubes, and halves and quarters of them."""
    shapes: list[tuple[int, ...]] = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    if chip.dimensions == 3:
        shapes = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16)]
        shapes += [(8, 16, 16), (16, 16, 16), (16, 16, 24)]
    return {math.prod(shape): shape for shape in shapes if math.prod(shape) <= chip.largest}


def mesh_sizes(axes: Mapping[str, int], chips: int) -> dict[str, int]:
    """Sizes of the mesh axes, where one may be -1: what is left.

    Args:
      axes: size by name.
      chips: of the slice.

    Raises:
      PlanError: they do not cover the chips.
    """
    sizes = dict(axes)
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0 and chips % known == 0:
        sizes[open_axes[0]] = chips // known
    if any(size < 1 for size in sizes.values()) or math.prod(sizes.values()) != chips:
        shape = ", ".join(f"{name}={size}" for name, size in axes.items())
        raise PlanError(f"a mesh of {shape} does not cover {chips} chips")
    return sizes
