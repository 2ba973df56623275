"""Task first, then coherence, then curiosity; back on a drop."""

import json

from pixelis_jax.rewards import Curriculum

NEW = Curriculum(window=2, gain=0.1, drop=0.2, patience=2)


def run(curriculum, *tasks):
    for task in tasks:
        curriculum = curriculum.update(task)
    return curriculum


def paid(curriculum):
    return [name for name in ("coherence", "curiosity") if curriculum.paid(name)]


def test_stages_pay_one_after_another():
    assert paid(NEW) == []
    # The first window (0.2, 0.4) has mean 0.3; the next means are 0.35 and 0.4, a gain of 0.1.
    second = run(NEW, 0.2, 0.4, 0.3)
    assert second.stage == 0
    second = run(second, 0.5)
    assert (second.stage, paid(second)) == (1, ["coherence"])
    third = run(second, 0.4, 0.4, 0.6)
    assert (third.stage, paid(third)) == (2, ["coherence", "curiosity"])
    assert run(third, *[0.9] * 20).stage == 2


def test_waiting_long_enough_goes_on_too():
    assert run(NEW, *[0.3] * 5).stage == 0 and run(NEW, *[0.3] * 6).stage == 1


def test_a_drop_takes_the_stage_back():
    second = run(NEW, 0.5, 0.5, 0.6, 0.6)
    assert second.stage == 1 and second.best == 0.6
    fallen = run(second, 0.5, 0.5, 0.3, 0.3)  # means 0.5, 0.5, 0.4, 0.3: the last is 0.3 under the best
    assert fallen.stage == 0 and paid(fallen) == []


def test_it_remembers_over_a_restart():
    half = run(NEW, 0.2, 0.4, 0.3)
    again = NEW.restored(json.loads(json.dumps(half.to_json())))
    assert again == half and run(again, 0.5) == run(half, 0.5)
