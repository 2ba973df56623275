"""A run that collapses is ended, one that stumbles is not."""

import json
import math

from pixelis_jax.training.watch import Watch

WATCH = Watch(floors={"valid": 0.5, "entropy": 0.1}, patience=2)


def look(watch, *values):
    for valid, entropy in values:
        watch = watch.look({"valid": valid, "entropy": entropy, "other": 0.0})
    return watch


def test_a_dip_is_no_collapse():
    watch = look(WATCH, (0.4, 0.2))
    assert not watch.calm and watch.collapsed == ""
    watch = look(watch, (0.5, 0.2), (0.4, 0.2))  # on the floor is not under it
    assert watch.collapsed == "" and dict(watch.under) == {"valid": 1, "entropy": 0}


def test_staying_under_a_floor_is():
    assert look(WATCH, (0.4, 0.2), (0.3, 0.05)).collapsed == "valid under 0.5 for 2 iterations"
    assert look(WATCH, (math.nan, 0.2), (math.nan, 0.2)).collapsed
    assert WATCH.look({}).look({}).collapsed == "valid under 0.5 for 2 iterations, entropy under 0.1 for 2 iterations"


def test_it_remembers_over_a_restart():
    watch = look(WATCH, (0.4, 0.2))
    again = WATCH.restored(json.loads(json.dumps(watch.to_json())))
    assert again == watch and look(again, (0.4, 0.2)).collapsed
