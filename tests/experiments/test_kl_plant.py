"""The KL controller on simulated plants: what is counted, by hand; that the corridor is held; and that it can be left."""

import dataclasses
import json
import math

import kl_plant
import pytest

from pixelis_jax.losses import ControlSettings

PLANTS, Plant = kl_plant.PLANTS, kl_plant.Plant
UPDATES, WARM_UP = 300, 30


def simulate(plant, settings, seed, **changes):
    return kl_plant.simulate(plant, settings, seed, updates=UPDATES, **changes)


def inside(history):
    return kl_plant.outcome(history, WARM_UP)["inside"]


def test_a_plant_by_hand():
    """Without a pull pushes add up; what pulls shrinks them by the beta that is felt."""
    free = kl_plant.simulate(Plant(push=0.01, pull=0.0, lag=0.0), None, 3, updates=3)
    pushes = [free[0], free[1] - free[0], free[2] - free[1]]
    assert min(pushes) > 0
    at_once = kl_plant.simulate(Plant(push=0.01, pull=0.5, lag=0.0), None, 3, updates=3, start=2.0)
    shrunk = math.exp(-1)
    assert at_once == pytest.approx([pushes[0] * shrunk, (at_once[0] + pushes[1]) * shrunk, (at_once[1] + pushes[2]) * shrunk])
    # A fixed beta was felt from the beginning, so a lag changes nothing.
    assert kl_plant.simulate(Plant(push=0.01, pull=0.5, lag=0.8), None, 3, updates=3, start=2.0) == pytest.approx(at_once)


def test_a_lag_delays_what_a_changed_beta_does():
    settings = ControlSettings()
    quick, late = (simulate(Plant(push=0.01, pull=0.5, lag=lag), settings, 0) for lag in (0.0, 0.8))
    assert quick[0] == late[0] and quick[1] != late[1]


def test_pushes_are_the_same_whatever_the_control():
    plant = Plant(push=0.01, pull=0.2, lag=0.0)
    settings = ControlSettings(warm_up=WARM_UP)
    fixed, controlled = simulate(plant, None, 1), simulate(plant, settings, 1)
    assert fixed[: WARM_UP + 1] == controlled[: WARM_UP + 1] and fixed[-1] != controlled[-1]
    assert fixed == simulate(plant, None, 1, noise=3.0) and fixed != simulate(plant, None, 2)


def test_what_is_counted_by_hand():
    # 2 of warm-up, then below, at the edges, above, and far above in the first quarter alone.
    history = [0.9, 0.9, 0.05, 0.5, 0.10, 0.20, 0.25, 0.15]
    found = kl_plant.outcome(history, 2)
    assert (found["updates"], found["inside"], found["below"]) == (6, 3 / 6, 1 / 6)
    assert (found["above"], found["median"]) == pytest.approx((2 / 6, 0.175))
    assert found["p95"] == pytest.approx(0.25 + 0.75 * 0.25)  # a quarter of the way from 0.5 down
    assert (found["overshoot"], found["late_overshoot"]) == pytest.approx((0.3, 0.05))
    assert kl_plant.outcome([0.15] * 8, 2)["overshoot"] == 0


def test_time_to_settle_by_hand():
    settled = kl_plant.settled_after
    assert settled([0.15] * 6, window=2) == 0
    assert settled([0.0, 0.0, 0.1, 0.1, 0.1], window=2) == 2  # the mean of the second and third is 0.05
    assert settled([0.15, 0.15, 0.5, 0.5, 0.15, 0.15], window=2) == 4
    assert settled([0.15, 0.15, 0.15, 0.5], window=2) is None


def test_runs_that_never_settle_count_as_the_longest():
    runs = [kl_plant.outcome([0.15] * 50, 2), *[kl_plant.outcome([0.5] * 50, 2)] * 2]
    found = kl_plant.over_runs(runs)
    assert found["settled"] == {"share": pytest.approx(1 / 3, abs=1e-5), "median": None}
    assert found["overshoot"] == {"mean": pytest.approx(0.2), "greatest": pytest.approx(0.3)}
    assert kl_plant.over_runs(runs[:1])["settled"] == {"share": 1.0, "median": 0.0}


def test_the_corridor_is_held_over_plants_of_all_strengths():
    settings = ControlSettings(warm_up=WARM_UP)
    controlled = {plant: inside(simulate(plant, settings, seed)) for seed, plant in enumerate(PLANTS)}
    fixed = {plant: inside(simulate(plant, None, seed)) for seed, plant in enumerate(PLANTS)}
    assert sum(controlled.values()) / len(PLANTS) > 0.8 and min(controlled.values()) > 0.55, controlled
    assert sum(fixed.values()) / len(PLANTS) < 0.4 and min(fixed.values()) == 0, fixed
    # START suits the plant in the middle, and even there it does no better.
    assert all(controlled[plant] > fixed[plant] - 0.1 for plant in PLANTS)


def test_overshoot_is_bounded_and_ends():
    settings = ControlSettings(warm_up=WARM_UP)
    for seed, plant in enumerate(PLANTS):
        history = simulate(plant, settings, seed)
        # A quarter of the run after the warm-up, wherever that had left it.
        settled = history[WARM_UP + UPDATES // 4 :]
        assert max(settled) < 0.4, plant
        assert sum(kl > 0.2 for kl in settled) / len(settled) < 0.15, plant


def test_gains_that_are_far_too_high_leave_it():
    # So the simulation can fail: a nervous integral swings around the corridor where beta acts late.
    nervous, shipped = ControlSettings(kp=0.0, ki=1.0, kd=0.0, warm_up=WARM_UP), ControlSettings(warm_up=WARM_UP)
    for plant in PLANTS:
        if plant.lag:
            assert inside(simulate(plant, nervous, 0)) < min(0.6, inside(simulate(plant, shipped, 0)) - 0.2), plant


def test_the_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kl_plant, "PLANTS", (PLANTS[0], PLANTS[-1]))
    monkeypatch.setattr(kl_plant, "FIXED", (0.05, 0.2, 2.0))
    path = tmp_path / "new" / "kl_plant.json"
    assert kl_plant.main([f"--json={path}", "--updates=200", "--seeds=2"]) == 0
    record = json.loads(path.read_text())
    assert record["warm_up"] == record["settings"]["warm_up"] == 20
    ways = record["ways"]
    assert set(ways) == {
        "controller", "fixed 0.1", "fixed 0.4", "fixed 1", "best fixed on average", "best fixed for each plant",
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines()[0].startswith("controller")
    for way in ways.values():
        assert way["inside"] + way["below"] + way["above"] == pytest.approx(1, abs=1e-4)
        assert way["least_inside"] == min(plant["inside"] for plant in way["by_plant"])
    # No fixed beta does better on average than the best, nor on a plant than the best there.
    best, each = ways["best fixed on average"], ways["best fixed for each plant"]
    assert all(best["inside"] >= ways[name]["inside"] for name in ("fixed 0.1", "fixed 0.4", "fixed 1"))
    assert each["inside"] >= best["inside"]
    for number, plant in enumerate(record["plants"]):
        kwargs = {name: plant[name] for name in ("push", "pull", "lag")}
        runs = [kl_plant.simulate(Plant(**kwargs), None, seed, updates=200, start=plant["best_fixed"]) for seed in range(2)]
        expected = kl_plant.over_runs([kl_plant.outcome(run, 20) for run in runs])
        assert each["by_plant"][number] == expected
    assert "lead" not in ways["controller"]
    difference = ways["controller"]["inside"] - best["inside"]
    assert best["lead"]["difference"] == pytest.approx(difference, abs=1e-4)
    assert best["lead"]["interval"][0] <= difference <= best["lead"]["interval"][1]
    assert dataclasses.asdict(ControlSettings(warm_up=20)) == record["settings"]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("at least 200 and --seeds 1", "--updates=199"),
        ("at least 200 and --seeds 1", "--seeds=0"),
        ("--start must lie", "--start=0"),
        ("--start must lie", "--noise=nan"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, option):
    assert kl_plant.main([f"--json={tmp_path / 'x.json'}", option]) == 2
    err = capsys.readouterr().err
    assert err.startswith("kl_plant: ") and err.count("\n") == 1 and words in err
    assert not (tmp_path / "x.json").exists()
