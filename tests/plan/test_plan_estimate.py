"""What a plan says of what was compiled: bounds by hand, refusals of the compiler, advice, the table."""

import pytest

from pixelis_jax.plan.compiling import needed_bytes
from pixelis_jax.plan.estimate import Memory, advice, gib, roofline
from pixelis_jax.plan.tables import render
from pixelis_jax.plan.topologies import CHIPS, GIB, topology

SLICE = topology("v5e-8")


def compiled(*, flops=0, hbm_bytes=0, sent=0):
    nothing = {"count": 0, "bytes": 0, "sent": 0}
    kinds = dict.fromkeys(("reduce-scatter", "all-reduce", "all-to-all", "collective-permute"), nothing)
    collectives = {"all-gather": {"count": 3, "bytes": 2 * sent, "sent": sent}, **kinds}
    return {"flops": flops, "hbm_bytes": hbm_bytes, "collectives": collectives, "unknown_loops": 0}


def memory(*, temporaries, **arguments):
    kinds = {name: size * GIB for name, size in arguments.items()}
    return Memory(arguments=kinds, padding=0, temporaries=temporaries * GIB, outputs=GIB, aliased=GIB, code=0)


def test_a_step_takes_as_long_as_its_slowest_resource():
    # v5e: 197 TFLOP/s, 819 GB/s of HBM, 200 GB/s of links.
    made = compiled(flops=int(197e9), hbm_bytes=int(8.19e9), sent=int(1e9))
    bound = roofline(SLICE, flops=8 * int(100e9), compiled=made)
    assert (bound.compute, bound.hbm, bound.ici) == pytest.approx((1e-3, 10e-3, 5e-3))
    assert bound.step == pytest.approx(10e-3) and bound.limited_by == "HBM"
    assert roofline(SLICE, flops=0, compiled=compiled(sent=int(1e9))).limited_by == "ICI"


def test_a_chip_computes_at_least_its_share():
    # Kernels that XLA does not know are not in what was compiled.
    bound = roofline(SLICE, flops=8 * int(394e9), compiled=compiled(flops=int(197e9)))
    assert bound.compute == pytest.approx(2e-3) and bound.limited_by == "compute"
    assert roofline(SLICE, flops=8 * int(394e9), compiled=None).step == pytest.approx(2e-3)


def test_what_takes_the_place_of_an_argument_is_not_counted_twice():
    needed = Memory(arguments={"parameters": 10, "inputs": 1}, padding=2, temporaries=20, outputs=9, aliased=8, code=3)
    assert needed.total == 10 + 1 + 2 + 20 + 9 - 8 + 3


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.50G) exceeds "
            "available HBM (15.75G).",
            22.5 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.50T of 15.75G hbm. Exceeded capacity by 1.48T.",
            1.5 * 2**40,
        ),
        (
            "Aborting compilation early because it's unlikely to have enough device memory. Requires 512.00M, has 1M available.",
            2**29,
        ),
        ("INTERNAL: Mosaic failed to compile", 0),
    ],
)
def test_refusals_of_the_compiler(message, needed):
    assert needed_bytes(message) == needed


def says(needed, **facts):
    options = {"remat": "full", "attention": "splash", "params": "bfloat16", "lora": 0, "base": ""} | facts.pop("options", {})
    mesh = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1, "expert": 1} | facts.pop("mesh", {})
    facts = {"name": "sft", "rows": 32, "mesh": mesh, "options": options} | facts
    return "\n".join(advice(SLICE, needed, facts))


def test_what_fits_needs_no_advice():
    assert says(memory(parameters=4, optimizer=8, temporaries=3)) == ""


def test_advice_where_the_state_is_too_large():
    said = says(memory(parameters=8, optimizer=16, temporaries=2), options={"params": "float32"})
    assert "10.2 GiB too much" in said and "24.0 GiB stay (parameters 8.00, optimizer 16.0)" in said
    assert "adapters" in said and "bfloat16" in said and "fewer rows" not in said
    # 26 GiB are needed.
    assert "v4 (30.8 GiB), v5p (95.7 GiB), v6e (31.2 GiB)" in said
    assert "lora.base" in says(memory(parameters=24, temporaries=2), options={"lora": 8})
    assert "lora.base" not in says(memory(parameters=24, temporaries=2), options={"lora": 8, "base": "int8"})
    assert "copied 4 times" in says(memory(parameters=24, temporaries=2), mesh={"data": 4, "fsdp": 2})
    assert "adapters" not in says(memory(parameters=24, temporaries=2), name="decode")
    assert "fewer sample.slots" in says(memory(parameters=4, cache=20, temporaries=2), name="decode")


def test_advice_where_the_temporaries_are_too_large():
    said = says(memory(parameters=2, temporaries=40), options={"remat": "none", "attention": "xla"})
    assert (
        "a chip has 4 of the 32" in said
        and "remat" in said
        and "splash" in said
        and "mesh.context" in said
        and "adapters" not in said
    )
    assert "chips with more HBM: v5p" in said
    quiet = says(memory(parameters=2, temporaries=400), rows=8, mesh={"context": 2})
    assert not any(word in quiet for word in ("rows:", "remat", "splash", "mesh.context")) and "more HBM" not in quiet


def test_a_table_has_a_column_a_program():
    def record(name, made, fits, said):
        needed = {"arguments": {"parameters": 2 * GIB}, "padding": 0, "temporaries": GIB, "outputs": 0, "aliased": 0, "code": 0}
        return {
            "name": name, "step": f"one {name}", "fits": fits, "lower_s": 1.0, "compile_s": 41.4,
            "memory": needed | {"total": 3 * GIB, "hbm": CHIPS["v5e"].hbm},
            "flops": {"vision": 1e12, "layers": 2e12, "attention": 3e12, "unembedding": 4e12, "total": 1e13},
            "compiled": made, "intensity": 7.5 if made else None, "advice": said,
            "roofline": {
                "compute_s": 0.5, "hbm_s": 0.25 if made else None, "ici_s": 0.1 if made else None, "step_s": 0.5,
                "limited_by": "compute", "mfu": 0.126 if made else None,
            },
        }  # fmt: skip

    plan = {
        "config": {"model": "qwen3_vl_8b"},
        "topology": {"name": "v5e-8", "chips": 8, "hbm": CHIPS["v5e"].hbm},
        "mesh": {"data": 1, "fsdp": 8},
        "programs": [
            record("sft", compiled(flops=int(1e12), hbm_bytes=GIB, sent=2 * GIB), True, []),
            record("decode", None, False, ["buy more"]),
        ],
    }
    lines = {line.partition("  ")[0] or line.split("  ")[1]: line.split() for line in render(plan).splitlines() if line.strip()}
    assert "qwen3_vl_8b on v5e-8: 8 chips of 15.8 GiB, mesh fsdp 8" in lines
    assert lines["fits"] == ["fits", "yes", "NO"]
    assert lines["parameters"][1:] == ["2.00", "2.00"]
    assert lines["needed"][1:] == ["3.00", ">=", "3.00"]
    assert lines["all-gather"][1:] == ["2.00", "(3)", "-"]
    assert lines["compiled, all chips"][-2:] == ["8.00", "-"]
    assert lines["HBM"][1:] == ["250", "-"] and lines["all"][1:] == ["500", "500"]
    assert lines["MFU at most"][-3:] == ["13", "%", "-"]
    assert lines["compiled in, s"][-2:] == ["42", "42"]
    assert "decode does not fit:" in lines and "sft does not fit:" not in lines and lines["buy more"]


@pytest.mark.parametrize(("size", "text"), [(0, "0.00"), (0.125, "0.12"), (15.75, "15.8"), (1012.4, "1012")])
def test_sizes(size, text):
    assert gib(size * GIB) == text
