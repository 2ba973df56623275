"""Oracle chains run real tools, end at the truth, and mark their mistakes."""

import re

import numpy as np
import pytest

from pixelis_jax.data import tiny_tokenizer, traces
from pixelis_jax.data.build import build, load_examples, load_traces
from pixelis_jax.data.look import encoder_of
from pixelis_jax.data.scenes import FAMILIES, generate
from pixelis_jax.data.supervised import supervised_examples
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.trajectory import parse_turn
from pixelis_jax.verifiers import verify
from tools_host.config import ToolsConfig
from tools_host.pool import InlinePool

CONFIG = ToolsConfig(boxes_in_text=False)
CHAINS = {
    "read": ["ocr"],
    "shape": ["zoom"],
    "angle": ["zoom", "segment", "properties"],
    "where": ["track"],
    "blink": ["localize"],
    "cut": ["localize"],
    "flash_read": ["localize", "ocr"],
    "flash_shape": ["localize", "zoom"],
    "follow_read": ["track", "ocr"],
    "page": ["ocr"],
}


@pytest.fixture(scope="module")
def pool():
    return InlinePool(CONFIG)


def trace(pool, folder, family, style="tools", index=1, split="test", **options):
    scene = generate(family, split, index)
    example = traces.make_example(scene, folder)
    rng = None if style in ("tools", "direct") else np.random.default_rng(index)
    return example, traces.oracle_trajectory(scene, example, folder, pool, config=CONFIG, style=style, rng=rng, **options)


@pytest.mark.parametrize("family", CHAINS)
def test_the_chain_finds_the_answer(pool, tmp_path, family):
    example, trajectory = trace(pool, tmp_path, family)
    assert [step.call.name for step in trajectory.steps] == CHAINS[family]
    assert all(step.observation.ok and step.imitate for step in trajectory.steps)
    assert trajectory.scores["task"] == 1.0 == verify(example.verifier, trajectory.answer, example.truth)
    assert trajectory.media[0].uri == example.media[0] and (tmp_path / example.media[0]).exists()


@pytest.mark.parametrize("family", ["read", "angle", "blink"])
def test_what_is_written_parses_to_what_was_run(pool, tmp_path, family):
    _, trajectory = trace(pool, tmp_path, family, style="trap")
    for step in trajectory.steps:
        turn = parse_turn(step.raw)
        assert turn.call == step.call and turn.thought == step.thought
        assert len(step.thought.split()) <= 12
        for value in step.call.arguments.get("bbox_2d", ()):
            assert value % traces.BOX_STEP == 0
    assert parse_turn(trajectory.final.raw).answer == trajectory.answer


def test_a_box_in_the_wrong_place_does_not_lead_to_the_answer(pool, tmp_path):
    _, trajectory = trace(pool, tmp_path, "read", place=lambda box, width, height: (0, 0, 20, 20))
    assert trajectory.scores["task"] == 0.0


def test_direct_calls_nothing_and_is_right(pool, tmp_path):
    _, trajectory = trace(pool, tmp_path, "read", style="direct")
    assert trajectory.steps == () and trajectory.scores["task"] == 1.0


@pytest.mark.parametrize("family", ["read", "shape", "blink"])
def test_a_trap_is_seen_and_left(pool, tmp_path, family):
    for index in (1, 2, 3):
        _, trajectory = trace(pool, tmp_path, family, style="trap", index=index)
        assert [step.imitate for step in trajectory.steps] == [False, *[True] * len(CHAINS[family])]
        assert trajectory.steps[0].observation.ok
        assert trajectory.steps[0].call != trajectory.steps[1].call
        assert trajectory.scores["task"] == 1.0


@pytest.mark.parametrize("family", ["read", "angle", "cut", "follow_read"])
def test_a_refused_call_is_corrected(pool, tmp_path, family):
    for index in (1, 2, 3):
        _, trajectory = trace(pool, tmp_path, family, style="self_correct", index=index)
        (wrong,) = (number for number, step in enumerate(trajectory.steps) if not step.imitate)
        assert [step.observation.ok for step in trajectory.steps] == [step.imitate for step in trajectory.steps]
        assert trajectory.steps[wrong + 1].call.name == trajectory.steps[wrong].call.name
        assert trajectory.scores["task"] == 1.0


def test_mistakes_come_at_every_step_of_a_chain(pool, tmp_path):
    swapped, places = 0, set()
    for index in range(6):
        _, trajectory = trace(pool, tmp_path, "flash_shape", style="trap", index=index)
        (wrong,) = (number for number, step in enumerate(trajectory.steps) if not step.imitate)
        places.add(wrong)
        if wrong == 1 and trajectory.steps[1].call.name == "ocr":
            swapped += 1
            assert "has text" in trajectory.steps[1].thought and "has a mark" in trajectory.steps[2].thought
        assert [step.call.name for step in trajectory.steps if step.imitate] == CHAINS["flash_shape"]
        assert trajectory.scores["task"] == 1.0
    assert places == {0, 1} and swapped


def test_families_say_how_long_their_chains_are():
    assert {name: family.calls for name, family in FAMILIES.items()} == {name: len(calls) for name, calls in CHAINS.items()}


def test_mistakes_need_a_generator(pool, tmp_path):
    scene = generate("shape", "test", 0)
    example = traces.make_example(scene, tmp_path)
    with pytest.raises(ValueError, match="needs a generator"):
        traces.oracle_trajectory(scene, example, tmp_path, pool, config=CONFIG, style="trap")


def test_the_placer_pads_rounds_and_stays_inside():
    place = traces.placer()
    assert place((100, 100, 200, 200), 1000, 1000) == (100, 100, 200, 200)  # 94 and 206 round to these
    assert place((0, 0, 1000, 1000), 1000, 1000) == (0, 0, 1000, 1000)
    assert place((500, 500, 501, 501), 1000, 1000) == (500, 500, 520, 520)
    rng = np.random.default_rng(0)
    for _ in range(50):
        x1, y1, x2, y2 = traces.placer(rng)((10, 400, 150, 505), 512, 512)
        assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000


def test_build_resumes_without_doing_anything_twice(tmp_path):
    done = list(build(tmp_path, "train", {"shape": 4}, workers=0, config=CONFIG))
    assert [shard.family for shard in done] == ["shape"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert list(build(tmp_path, "train", {"shape": 4}, workers=0, config=CONFIG)) == done
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == files
    examples = [example for _, example in load_examples(tmp_path, "train")]
    assert [example.id for example in examples] == [f"shape-train-{index}" for index in range(4)]
    for folder, trajectory in load_traces(tmp_path, "train"):
        assert (folder / trajectory.media[0].uri).exists() and trajectory.example in {example.id for example in examples}


def test_reframed_scenes_are_built_and_their_chains_still_lead_to_the_answer(tmp_path):
    (shard,) = build(tmp_path, "train", {"shape": 4}, workers=0, styles={"tools": 1.0}, reframed=1.0)
    sides = [(trajectory.media[0].width, trajectory.media[0].height) for _, trajectory in load_traces(tmp_path, "train")]
    assert shard.reframed == 1.0 and len(sides) == 4
    assert all(min(pair) < 512 for pair in sides) and {max(pair) == 512 for pair in sides} == {True, False}


def test_other_splits_have_no_traces(tmp_path):
    list(build(tmp_path, "val", {"shape": 2}, workers=0))
    assert not list(load_traces(tmp_path, "val")) and len(list(load_examples(tmp_path, "val"))) == 2


def test_build_refuses_the_impossible_before_it_starts(tmp_path):
    for counts, options in (
        ({"cats": 1}, {}),
        ({"shape": -1}, {}),
        ({"shape": 1}, {"styles": {"guess": 1.0}}),
        ({"shape": 1}, {"reframed": 2.0}),
    ):
        with pytest.raises((KeyError, ValueError)):
            list(build(tmp_path, "train", counts, workers=0, **options))
    assert not list(tmp_path.iterdir())


def test_answer_only_keeps_the_question_and_the_answer(tmp_path):
    list(build(tmp_path, "train", {"read": 2, "shape": 2}, 0, styles={"tools": 1.0}))
    encoder = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["What is on the red card?"]))))
    whole = list(supervised_examples(tmp_path, "train", encoder, CONFIG, workers=0))
    cut = list(supervised_examples(tmp_path, "train", encoder, CONFIG, answer_only={"read": 1.0}, workers=0))
    assert len(whole) == len(cut) == 4
    for before, after in zip(whole[2:], cut[2:], strict=True):
        np.testing.assert_array_equal(before["ids"], after["ids"])
    for before, after in zip(whole[:2], cut[:2], strict=True):
        said = encoder.tokenizer.decode(after["ids"][after["weights"] > 0])
        assert re.fullmatch(r"<answer>\w{4}</answer><\|im_end\|>", said) and len(after["op_id"]) == 0
        prompt = int(np.flatnonzero(before["weights"] > 0)[0])  # the tools are offered all the same
        np.testing.assert_array_equal(after["ids"][:prompt], before["ids"][:prompt])
