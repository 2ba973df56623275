"""Real modules of XLA: collectives in loops, and every program of a plan, on 8 forced host devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pixelis_jax import policy
from pixelis_jax.plan.flops import Work, step_flops

ROWS, WIDTH, TURNS = 64, 32, 5


def run(what):
    script = pathlib.Path(__file__).with_name("compiled_modules.py")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(script.parents[2]),
    }
    done = subprocess.run([sys.executable, script, what], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loops():
    return run("loops")


@pytest.fixture(scope="module")
def plan():
    return run("plan")


def test_collectives_in_a_loop_count_by_its_turns(loops):
    found = loops["scan"]["known"]["collectives"]
    array, weight = ROWS * WIDTH * 4, WIDTH * WIDTH * 4
    assert found["all-gather"] == {"count": TURNS, "bytes": TURNS * weight, "sent": TURNS * weight * 7 // 8}
    assert found["all-to-all"] == {"count": TURNS, "bytes": TURNS * array, "sent": TURNS * array * 7 // 8}
    assert found["collective-permute"] == {"count": TURNS, "bytes": TURNS * array, "sent": TURNS * array}
    assert found["reduce-scatter"] == {"count": TURNS, "bytes": TURNS * array, "sent": TURNS * array * 7 // 8}
    # One number over eight chips: 2 x 4 x 7 / 8 bytes.
    assert found["all-reduce"] == {"count": TURNS, "bytes": TURNS * 4, "sent": TURNS * 7}


@pytest.mark.parametrize("name", ["scan", "backward"])
def test_trip_counts_follow_from_the_text_too(loops, name):
    loop = loops[name]
    assert loop["derived"] == loop["known"] and loop["known"]["unknown_loops"] == 0


def test_a_loop_costs_what_it_costs_unrolled(loops):
    scan, unrolled = (loops[name]["known"] for name in ("scan", "unrolled"))
    assert scan["flops"] == unrolled["flops"] == TURNS * 2 * ROWS * WIDTH * WIDTH
    kinds = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    assert all(scan["collectives"][kind] == unrolled["collectives"][kind] for kind in kinds)
    # XLA's own figure, where nothing is in a loop: products, and some operations for the rest.
    assert unrolled["flops"] <= loops["unrolled"]["xla_flops"] <= 1.3 * unrolled["flops"]


def test_memory_traffic_is_what_xla_counts_where_there_is_no_loop(loops):
    counted, xla = loops["traffic"]
    assert counted == pytest.approx(xla, rel=1e-3)


@pytest.mark.slow
def test_every_program_compiles_and_fits(plan):
    for name, record in plan.items():
        memory = record["memory"]
        assert record["fits"] and not record["advice"], name
        assert memory["total"] <= memory["hbm"]
        assert memory["arguments"]["parameters"] > 0 and memory["temporaries"] > 0
        # How many tokens a block decodes and how many pages a cache has filled is data.
        assert (record["compiled"]["unknown_loops"] > 0) == (name in ("prefill", "decode")), name
        bound = record["roofline"]
        assert bound["step_s"] == max(bound["compute_s"], bound["hbm_s"], bound["ici_s"]) > 0
        assert 0 < bound["mfu"] <= 1


@pytest.mark.slow
def test_memory_by_kind(plan):
    kinds = {name: set(record["memory"]["arguments"]) for name, record in plan.items()}
    for name in ("sft", "adapters", "ccrft"):
        assert kinds[name] == {"parameters", "optimizer", "inputs"}
    assert kinds["reference"] == {"parameters", "inputs"}
    assert kinds["prefill"] == kinds["decode"] == {"parameters", "cache", "inputs"}
    sft = plan["sft"]["memory"]
    # Two moments a parameter, and two counters.
    assert sft["arguments"]["optimizer"] == pytest.approx(2 * sft["arguments"]["parameters"], rel=1e-3)
    # The state is updated in place: parameters, moments, counters, the key.
    assert sft["aliased"] == pytest.approx(3 * sft["arguments"]["parameters"], rel=1e-3)
    # Adapters of rank 4 learn, in bfloat16; the rest stays as it is.
    adapters = plan["adapters"]["memory"]
    assert adapters["arguments"]["parameters"] < 0.6 * sft["arguments"]["parameters"]
    assert adapters["arguments"]["optimizer"] < 0.3 * adapters["arguments"]["parameters"]
    # Keys and values of 3 layers, 8 slots of 64 tokens and a block of 32, 2 heads of 32, bfloat16, and two times 1,024 logits of
    # each slot, float32; slots over 4, heads and words over 2 devices.
    cache = 2 * 3 * 8 * (64 + 32) * 2 * 32 * 2 // 8 + 2 * 8 * 1024 * 4 // 8
    assert cache < plan["decode"]["memory"]["arguments"]["cache"] < 1.01 * cache


@pytest.mark.slow
def test_what_is_compiled_is_what_is_needed_and_a_little_more(plan):
    """Every chip does an eighth. Scores of causal attention are computed in full, those of a chunk on an empty cache too."""
    for name in ("sft", "ccrft", "prefill", "decode"):
        record = plan[name]
        assert 1 <= 8 * record["compiled"]["flops"] / record["flops"]["total"] < 2.2, name


@pytest.mark.slow
def test_operations_are_those_of_the_batch(plan):
    model = policy.tiny(vocab_size=1024)
    decode = step_flops(model, Work(rows=8, tokens=1, cached=64, scored=1, turns=32))
    found = plan["decode"]["flops"]
    assert found["unembedding"] == decode["unembedding"] and found["layers"] == decode["layers"] * 3 / 4  # 3 of 4 layers
    sft, adapters = plan["sft"]["flops"], plan["adapters"]["flops"]
    assert adapters["vision"] == sft["vision"] / 3 and adapters["attention"] == sft["attention"]
    assert 2 / 3 < adapters["layers"] / sft["layers"] < 0.8
    assert sft["unembedding"] == 3 * 8 * 16 * 2 * 128 * 1024
    assert sft["total"] == sum(sft[part] for part in ("vision", "layers", "attention", "unembedding"))
