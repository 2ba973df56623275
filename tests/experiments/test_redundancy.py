"""What redundant calls earn: the scripted episodes, their features, and the comparison, by hand and on a few scenes."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import redundancy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pixelis_jax import rewards
from pixelis_jax.commands.configs import load_config
from pixelis_jax.data.scenes import generate
from pixelis_jax.evaluation.redundancy import POLICIES, REDUNDANT, elsewhere, moved
from pixelis_jax.trajectory import is_valid, repeats
from pixelis_jax.trajectory.regions import box_iou
from tools_host.geometry import to_pixels

MODEL, FAMILIES, SCENES = "tiny_sft_early", ("shape", "cut"), 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two scenes of an image and of a video family; of each family the redundant call comes last once, and first once."""
    out = tmp_path_factory.mktemp("redundancy")
    config = load_config(redundancy.CONFIG, [])
    return out, config, redundancy.make_questions(config, out, MODEL, FAMILIES, SCENES, workers=0)


def test_the_oracle_earns_more_than_a_loop(made):
    _, config, questions = made
    earned = redundancy.reward_all(config, questions, seed=0)
    assert len(earned) == 3  # the warm-up takes one of four
    for one in earned.values():
        assert one["oracle"].task == one["loop_right"].task == 1
        assert one["loop"].task == one["nothing"].task == 0
        assert one["oracle"].total > one["loop_right"].total > one["loop"].total
        assert one["oracle"].total > one["repeat"].total


def test_weights_are_those_of_the_config(made):
    _, _, questions = made
    config = load_config(redundancy.CONFIG, [f"--config.weights.{name}=0.0" for name in ("curiosity", "coherence", "penalty")])
    assert {one.total for earned in redundancy.reward_all(config, questions, seed=0).values() for one in earned.values()} == {
        0,
        1,
    }
    # A call costs a sixth of this, more than anything it could earn.
    config = load_config(redundancy.CONFIG, ["--config.weights.penalty=20.0"])
    for one in redundancy.reward_all(config, questions, seed=0).values():
        assert all(one["oracle"].total > one[name].total for name in REDUNDANT)


def test_a_repeat_costs_in_other_company_too(made):
    _, config, questions = made
    apart = redundancy.alone(config, questions, "repeat")
    assert sorted(apart) == sorted(FAMILIES) and min(apart.values()) > 0


def test_episodes_are_what_they_are_called(made):
    _, _, questions = made
    for question in questions.values():
        steps = {name: question[name].trajectory.steps for name in POLICIES}
        calls = {name: [step.call for step in steps[name]] for name in POLICIES}
        assert all(is_valid(step) for step in itertools.chain(*steps.values()))
        flags = {name: repeats(question[name].trajectory) for name in POLICIES}
        assert {name: sum(flags[name]) for name in ("oracle", *REDUNDANT)} == {
            "oracle": 0, "repeat": 1, "whole": 0, "noise": 0, "abab": 2,
        }  # fmt: skip
        assert all(len(calls[name]) == len(calls["oracle"]) + 1 for name in ("repeat", "whole", "noise"))
        assert calls["abab"][:2] == calls["abab"][2:]
        assert len(calls["loop"]) == len(calls["loop_right"]) >= 2
        assert len({str(call) for call in calls["loop"]}) == 1
        assert calls["nothing"] == []
        kinds = {call.name for call in calls["everything"]}
        assert {"zoom", "segment", "ocr", "properties"} <= kinds
        video = question["oracle"].trajectory.media[0].kind == "video"
        assert ({"track", "localize"} <= kinds) == video
        # Four frames a call fill the context before six calls are made; six crops do not.
        assert question["loop"].trajectory.stopped == ("context_full" if video else "max_steps")


def test_features_are_of_the_right_episode(made):
    """What comes later changes nothing in what was seen before, whichever row an episode was packed into."""
    _, _, questions = made
    for name, question in questions.items():
        oracle, count = question["oracle"], len(question["oracle"].step)
        for policy, judged in question.items():
            assert judged.step.shape[0] == len(judged.trajectory.steps) == judged.seen.shape[0] - 1
            np.testing.assert_allclose(np.linalg.norm(judged.seen, axis=1), 1, atol=1e-5)
            np.testing.assert_allclose(judged.seen[0], oracle.seen[0], atol=1e-5, err_msg=policy)
        behind = "abab" if name.endswith("-1") else "whole"
        np.testing.assert_allclose(question[behind].step[:count], oracle.step, atol=1e-5)
        assert not np.allclose(question[behind].step[count], oracle.step[-1], atol=1e-2)


def test_what_was_made_is_read_again_and_only_with_its_settings(made, monkeypatch):
    out, config, questions = made
    monkeypatch.setattr(redundancy, "run_chunk", lambda *args, **options: pytest.fail("made again"))
    again = redundancy.make_questions(config, out, MODEL, FAMILIES, SCENES, workers=0)
    for name, question in questions.items():
        for policy, judged in question.items():
            assert again[name][policy].trajectory == judged.trajectory
            np.testing.assert_array_equal(again[name][policy].step, judged.step)
    other = load_config(redundancy.CONFIG, ["--config.seed=5"])
    with pytest.raises(redundancy.UserError, match="other settings"):
        redundancy.make_questions(other, out, MODEL, FAMILIES, SCENES, workers=0)


@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(st.integers(0, 960), st.integers(0, 960)), size=st.tuples(st.integers(40, 1000), st.integers(40, 1000)),
    seed=st.integers(0, 9),
)  # fmt: skip
@example(corner=(0, 0), size=(40, 80), seed=0)
def test_a_moved_box_overlaps_by_about_0_85(corner, size, seed):
    box = (*corner, *(min(start + side, 1000) for start, side in zip(corner, size, strict=True)))
    other = moved(box, np.random.default_rng(seed))
    assert 0.8 < box_iou(box, other) < 0.9
    assert min(other) >= 0 and max(other) <= 1000


@pytest.mark.parametrize("family", ["shape", "flash_read"])
def test_a_patch_elsewhere_does_not_touch_what_is_asked(family):
    scene = generate(family, "val", 0)
    for seed in range(20):
        pixels = to_pixels(elsewhere(scene, np.random.default_rng(seed)), scene.width, scene.height)
        assert all(box_iou(pixels, box) == 0 for box in scene.asked.boxes if not np.isnan(box).any())


def parts(total):
    return dataclasses.replace(rewards.combine(1.0, 0.0, 0.0, 0.0, rewards.Weights()), total=total)


def earn(**changes):
    """Two families of four questions; the oracle earns 1.0, everybody else 0.5 but for the changes, by family."""
    totals = {"oracle": 1.0} | dict.fromkeys(POLICIES[1:], 0.5)
    return {
        f"{family}-val-{number}": {
            name: parts(changes.get(f"{name}_{family}", total) + 0.01 * number * (name != "oracle"))
            for name, total in totals.items()
        }
        for number in range(4)
        for family in ("read", "cut")
    }


def test_comparison_by_hand():
    found = redundancy.summarize(earn(nothing_cut=0.2), {"read": 0.0, "cut": 0.25})
    assert found["passed"]
    whole = found["policies"]["whole"]
    assert (whole["n"], whole["families"]["cut"]["n"]) == (8, 4)
    assert whole["difference"] == pytest.approx(0.485)
    assert whole["families"]["read"]["halves"] == pytest.approx([0.495, 0.475])
    # 0.50 and 0.52 came behind, 0.51 and 0.53 before.
    assert whole["places"] == pytest.approx({"behind": 0.49, "before": 0.48})
    # 0.75 of 0.2 and 0.25 of 0.5 is 0.275; with the 0.015 that the four questions add on average.
    assert found["policies"]["nothing_guess"]["families"]["cut"]["difference"] == pytest.approx(1 - 0.29)


def test_one_family_that_pays_for_a_call_fails_the_test():
    found = redundancy.summarize(earn(noise_cut=1.0), {"read": 0.0, "cut": 0.0})
    noise = found["policies"]["noise"]
    assert noise["difference"] > 0 and noise["families"]["read"]["passed"]
    assert not noise["families"]["cut"]["passed"] and not noise["passed"] and not found["passed"]


def test_who_knows_the_answer_needs_no_call():
    found = redundancy.summarize(earn(nothing_right_read=2.0), {"read": 0.0, "cut": 0.0})
    assert not found["policies"]["nothing_right"]["passed"] and not found["policies"]["nothing_right"]["required"]
    assert found["passed"]


@pytest.mark.parametrize(
    ("option", "message"),
    [("--config.weights.coherense=0.1", "coherence"), ("--model=tiny_sft_erly", "tiny_sft_early"), ("--families=raed", "read")],
)
def test_bad_input_is_one_line_and_2(option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["redundancy.py", f"--out={tmp_path}/out", f"--json={tmp_path}/a.json", option])
    assert redundancy.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
