"""Slices by name, and meshes over them."""

import dataclasses

import pytest

from pixelis_jax.plan.topologies import CHIPS, PlanError, mesh_sizes, topology


@pytest.mark.parametrize(
    ("name", "libtpu_name", "chips"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v6e-1", "v6e:1x1", 1),
        ("v5p-128", "v5p:4x4x4", 64),  # the number counts cores, two a chip
        ("v4-8", "v4:2x2x1", 4),
        ("v5p-12288", "v5p:16x16x24", 6144),
        ("v5p:4x4x12", "v5p:4x4x12", 192),
    ],
)
def test_common_names(name, libtpu_name, chips):
    found = topology(name)
    assert (found.libtpu_name, found.chips) == (libtpu_name, chips)


def test_modes_of_libtpu():
    assert topology("v6e-1").libtpu_options == {"chips_per_host_bounds": (1, 1, 1)}
    assert topology("v4-8").libtpu_options == {"chip_config_name": "megacore"}
    assert topology("v5e-4").libtpu_options == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h100-8", "known: v4, v5e, v5p, v6e"),
        ("v5e", "a name like v5e-256"),
        ("v5e-24", "v5e-16, v5e-32"),
        ("v5p-127", "v5p-64, v5p-128"),
        ("v6e-512", "v6e-256"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5e:3x4", "even"),
        ("v5e:0x4", "2 dimensions"),
        ("v5e:32x32", "2 dimensions"),
    ],
)
def test_what_is_no_slice_is_refused(name, words):
    with pytest.raises(PlanError, match=words):
        topology(name)


def test_figures_of_a_chip_follow_from_those_of_a_pod():
    # Published for whole pods: v5e 50.63 PFLOP/s, v6e 234.9 PFLOP/s, v4 1.1 EFLOP/s of 4,096 chips.
    assert 256 * CHIPS["v5e"].flops == pytest.approx(50.63e15, rel=0.01)
    assert 256 * CHIPS["v6e"].flops == pytest.approx(234.9e15, rel=0.01)
    assert 4096 * CHIPS["v4"].flops == pytest.approx(1.1e18, rel=0.03)
    for chip in CHIPS.values():
        # A network is slower than memory, and memory than what a chip can multiply.
        assert chip.ici_bandwidth < chip.hbm_bandwidth < chip.flops
        assert all(value for name, value in dataclasses.asdict(chip).items() if name != "chip_config")


def test_one_axis_takes_what_is_left():
    assert mesh_sizes({"data": 2, "fsdp": -1, "tensor": 4}, 64) == {"data": 2, "fsdp": 8, "tensor": 4}
    assert mesh_sizes({"fsdp": 64}, 64) == {"fsdp": 64}


@pytest.mark.parametrize("axes", [{"fsdp": -1, "tensor": 3}, {"data": -1, "fsdp": -1}, {"data": 8}, {"data": 0, "fsdp": -1}])
def test_a_mesh_must_cover_the_chips(axes):
    with pytest.raises(PlanError, match="does not cover 64 chips"):
        mesh_sizes(axes, 64)
