"""The simulation of `pixelis bench rollout`, in small: its figures add up."""

import dataclasses
import json

import pytest

from pixelis_jax import cli
from pixelis_jax.commands.models import SHIPPED
from pixelis_jax.encoding import Encoder
from pixelis_jax.rollout.tracing import Tracer
from pixelis_jax.speed import simulated

SMALL = simulated.Simulation(
    title="small", slots=4, workers=4, episodes=8, calls=1, blocks=(1, 1), block_s=0.02, delay_s=0.05, over_batches=0.01
)


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load(SHIPPED / "tiny_base")


def test_what_device_and_tools_take_is_what_the_setting_says(encoder):
    tracer = Tracer(on=True)
    row = simulated.simulate(SMALL, encoder, tracer)
    assert row["tool_s_a_worker"] == pytest.approx(8 * 0.05 / 4)
    # At least two turns of two waves of four; at most one block a turn of an episode.
    assert row["device_s"] * 1.0001 >= 4 * 0.02 and row["device_s"] <= 16 * 0.02 * 1.0001
    assert tracer.busy("device") == pytest.approx(row["device_s"], rel=0.02)
    assert row["seconds"] >= 2 * (0.02 + 0.05 + 0.02) * 0.99 and 0 < row["of_bound"] <= 1
    assert row["idle"] == pytest.approx(1 - row["device_s"] / row["seconds"], abs=0.02)
    assert row["batches_s"] >= 2 * (0.02 + 0.05 + 0.02) * 0.99 and row["met"]


def test_a_goal_that_is_missed_is_said(encoder):
    row = simulated.simulate(dataclasses.replace(SMALL, over_batches=100.0), encoder)
    assert not row["met"] and "no" in simulated.table([row])


def test_the_settings_cost_what_their_titles_say():
    constant, heavy = simulated.SIMULATIONS["constant"], simulated.SIMULATIONS["heavy_tail"]
    turns, calls = constant.calls + 1, constant.calls
    assert turns * constant.slot_s == pytest.approx(calls * constant.delay_s / constant.workers)
    assert heavy.delay_s * 2.718281828 ** (2.3263478740408408 * heavy.spread) == pytest.approx(2.0)
    assert heavy.blocks[0] * heavy.block_s == pytest.approx(heavy.delay_s * 2.718281828 ** (heavy.spread**2 / 2))


def test_the_command_writes_figures_and_spans(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulated, "SIMULATIONS", {"small": SMALL})
    arguments = ["--work=small", f"--json={tmp_path / 'r.json'}", f"--trace={tmp_path / 't.json'}"]
    assert cli.main(["bench", "rollout", *arguments]) == 0
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["simulated"][0]["name"] == "small" and written["rows"] == []
    tracks = {event["args"].get("name", "")[:6] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"device", "tool 0"} <= tracks or {"device", "tool 1"} <= tracks
    assert "small" in capsys.readouterr().out
    assert cli.main(["bench", "rollout", "--work=smal"]) == 2 and "did you mean" in capsys.readouterr().err
