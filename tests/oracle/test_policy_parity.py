"""The policy against transformers: same weights, same inputs, logits within 1e-5; and mistakes that must be caught.

The cases are those of `parity_cases.py` and `parity_mutations.py`; `parity_table.py` prints the same figures.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import parity_cases  # noqa: E402
import parity_mutations  # noqa: E402
from parity_cases import BOUND, FAMILIES, MODALITIES  # noqa: E402

from pixelis_jax.policy import rotary  # noqa: E402


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, modality):
    error = MODALITIES[modality](parity_cases.pair(family))
    print(f"{error:.1e}")
    assert error <= BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_costs_no_more_than_in_transformers(family):
    divergence = parity_cases.bfloat16(family)
    assert 0 < divergence.ours <= FAMILIES[family].bfloat16_ratio * divergence.theirs, divergence


def test_positions_equal_transformers():
    pair, row = parity_cases.pair("dense tied"), parity_cases.row("image + video")
    images = [grid for kind, grid, _ in row.media if kind == "image"]
    videos = [grid for kind, grid, _ in row.media if kind == "video"]
    expected, delta = pair.reference.model.get_rope_index(
        torch.from_numpy(row.ids[None]),
        torch.from_numpy(row.kinds[None]),
        image_grid_thw=torch.tensor(images),
        video_grid_thw=torch.tensor(videos),
    )
    positions, following = rotary.mrope_positions(row.ids, row.grids, pair.model.config)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy().T)
    assert following == len(row.ids) + int(delta)


def test_without_a_mistake_nothing_is_caught():
    assert parity_mutations.CONTROL.error() <= BOUND


@pytest.mark.parametrize("name", parity_mutations.MUTATIONS)
def test_mistake_is_caught(name):
    error = parity_mutations.MUTATIONS[name].error()
    print(f"{error:.1e}")
    assert error >= parity_mutations.FACTOR * BOUND
