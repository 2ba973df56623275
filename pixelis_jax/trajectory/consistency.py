"""Whether the parts of a trajectory fit together: a trace may come from anybody, and whoever draws one follows its ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixelis_jax.trajectory.errors import TrajectoryError
from pixelis_jax.trajectory.types import Trajectory
from tools_host.geometry import check_mask
from tools_host.protocol import Media


def check_consistent(trajectory: Trajectory) -> None:
    """Checks ids and masks.

    Media and regions count from 1 in order, what is derived comes after its parent, whatever is named exists, and every mask
    covers its medium.

    Raises:
      TrajectoryError: Names the first field that does not fit.
    """
    media = trajectory.media
    for index, medium in enumerate(media):
        where, parent = f"media[{index}]", medium.parent
        _expect(medium.id == index + 1, f"{where}.id", medium.id, str(index + 1))
        _expect(medium.width > 0, f"{where}.width", medium.width, "a positive number")
        _expect(medium.height > 0, f"{where}.height", medium.height, "a positive number")
        if parent is not None:
            _expect(0 < parent.media <= index, f"{where}.parent.media", parent.media, "the id of an earlier medium")
            _check_mask(f"{where}.parent.mask", parent.mask, media[parent.media - 1])
    regions = 0
    for number, step in enumerate(trajectory.steps):
        where = f"steps[{number}].observation"
        for index, region in enumerate(step.observation.regions):
            place, regions = f"{where}.regions[{index}]", regions + 1
            _expect(region.id == regions, f"{place}.id", region.id, str(regions))
            _expect(0 < region.media <= len(media), f"{place}.media", region.media, "the id of a medium")
            _check_mask(f"{place}.mask", region.mask, media[region.media - 1])
        for index, shown in enumerate(step.observation.media):
            _expect(0 < shown <= len(media), f"{where}.media[{index}]", shown, "the id of a medium")


def _expect(ok: bool, where: str, value: int, expected: str) -> None:
    if not ok:
        raise TrajectoryError(f"{where} is {value}, expected {expected}")


def _check_mask(where: str, mask: Mapping[str, Any] | None, medium: Media) -> None:
    try:
        if mask is not None:
            check_mask(mask, (medium.height, medium.width))
    except ValueError as error:
        raise TrajectoryError(f"{where}: {error}") from error
