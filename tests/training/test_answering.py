"""A query without its label: sampled, checked, voted on."""

import dataclasses

import numpy as np
import pytest
import scripted_answers as scripted
from PIL import Image

from pixelis_jax.data.audit import perceptual_hash
from pixelis_jax.memory import KeyMaker, Memory, MemoryConfig, Record
from pixelis_jax.training.answering import Answerer, unlabelled
from pixelis_jax.trajectory import Example, Source
from tools_host.media import MediaStore


def example(verifier, truth):
    return Example(id="q0", question="?", media=(), verifier=verifier, truth=truth, source=Source(dataset="d"))


@pytest.mark.parametrize(
    ("verifier", "truths", "alike", "unlike"),
    [
        ("exact", ("red", "blue"), ("Red", "red"), ("red", "blue")),
        ("choice", ({"options": ["a", "b"], "answer": 0}, {"options": ["a", "b"], "answer": 1}), ("A", "(a)"), ("A", "B")),
        ("number", ({"value": 3, "abs": 1.0}, {"value": 70, "abs": 1.0}), ("7", "7.5"), ("7", "9")),
    ],
)
def test_a_query_keeps_nothing_of_its_label(verifier, truths, alike, unlike):
    for truth in truths:
        query = unlabelled(dataclasses.replace(example(verifier, truth), gold=None))
        assert query.example.truth is None and query.example.gold is None
        assert query.equivalent(*alike) and not query.equivalent(*unlike)


def test_what_is_asked_and_in_which_order_it_comes_back(model, encoder):
    config = scripted.make_config()
    answered = scripted.make_answerer(config, model, encoder).answer(unlabelled(scripted.make_example(0)), None)
    assert answered.greedy.request.temperature == 0 and answered.greedy.request.sample == 0
    assert [episode.request.sample for episode in answered.samples] == [1, 2, 3, 4]
    assert {episode.request.temperature for episode in answered.samples} == {1.0}
    assert answered.vote.answer == answered.answer == "x" and answered.vote.members == (0, 2, 3)
    assert answered.exemplar in (0, 2, 3) and answered.reason is None and answered.neighbours == ()
    assert [len(row) for row in answered.vote.similarity] == [4] * 4 and answered.fidelity.fidelity == (0.6, 0.7, 0.5, 0.6)


def test_without_a_vote_the_greedy_answer_is_given(model, encoder):
    class Mute(scripted.Agent):
        def answer(self, number, sample):
            return None if sample else "z"

    config = scripted.make_config()
    answerer = Answerer(config, Mute(encoder.tokenizer.size), scripted.Probes(), KeyMaker(model), encoder)
    answered = answerer.answer(unlabelled(scripted.make_example(0)), None)
    assert answered.answer == "z" and answered.vote.winner is None
    assert (answered.exemplar, answered.reason) == (None, "few_votes")


@pytest.mark.parametrize("kind", ["trajectories", "answers", "majority"])
def test_votes_of_every_kind(model, encoder, kind):
    answerer = scripted.make_answerer(scripted.make_config(**{"vote.kind": kind}), model, encoder)
    answered = answerer.answer(unlabelled(scripted.make_example(0)), None)
    assert answered.answer == "x" and answered.exemplar in answered.vote.members and answered.reason is None
    assert bool(answered.vote.similarity) == (kind == "trajectories")
    if kind == "majority":
        assert answered.vote.mass == 0.75


def test_a_vote_of_fidelity_alone(model, encoder):
    answers = []
    for margin in (0.1, 0.0):
        changes = {"vote.kind": "process", "vote.margin": margin, "vote.agree": 0.0}
        answerer = scripted.make_answerer(scripted.make_config(**changes), model, encoder)
        answers.append(answerer.answer(unlabelled(scripted.make_example(0)), None))
    narrow, wide = answers
    # Fidelities .6, .5 and .6 against .7, at temperature .1: the one that saw most wins, by 7 hundredths.
    weights = np.exp(np.array([6, 7, 5, 6]))
    assert wide.answer == "y" and wide.vote.mass == pytest.approx(float(weights[1] / weights.sum())) and wide.exemplar == 1
    assert (narrow.answer, narrow.exemplar, narrow.reason) == ("y", None, "small_margin")


def test_a_vote_that_is_too_narrow_abstains(model, encoder):
    answerer = scripted.make_answerer(scripted.make_config(), model, encoder, answers=("x", "a", "b", "c", "d"))
    answered = answerer.answer(unlabelled(scripted.make_example(0)), None)
    assert answered.reason in ("low_mass", "small_margin") and answered.exemplar is None and answered.answer in "abcd"


def test_any_winner_may_be_the_exemplar(model, encoder):
    chosen = set()
    for seed in range(20):
        answerer = scripted.make_answerer(scripted.make_config(exemplar="random", seed=seed), model, encoder)
        twice = [answerer.answer(unlabelled(scripted.make_example(0)), None).exemplar for _ in range(2)]
        assert twice[0] == twice[1]
        chosen.add(twice[0])
    assert chosen == {0, 2, 3}


@pytest.mark.parametrize("exemplar", ["short_faithful", "random"])
def test_no_winner_teaches_whose_calls_were_not_checked(model, encoder, exemplar):
    class Unchecked(scripted.Probes):
        def result(self):
            return dataclasses.replace(super().result(), measured=(None,) * 4)

    reasons = []
    for evidence in (True, False):
        config = scripted.make_config(exemplar=exemplar, evidence=evidence)
        answerer = Answerer(config, scripted.Agent(encoder.tokenizer.size), Unchecked(), KeyMaker(model), encoder)
        reasons.append(answerer.answer(unlabelled(scripted.make_example(0)), None).reason)
    assert reasons == ["no_evidence", None]


def test_a_majority_abstains_as_the_others_do(model, encoder):
    for limits, reason in (({}, None), ({"vote.agree": 0.8}, "few_agree"), ({"vote.margin": 0.6}, "small_margin")):
        answerer = scripted.make_answerer(scripted.make_config(**{"vote.kind": "majority", **limits}), model, encoder)
        assert answerer.answer(unlabelled(scripted.make_example(0)), None).reason == reason


def test_keys_tell_questions_apart(model, encoder):
    answerer = scripted.make_answerer(scripted.make_config(), model, encoder)
    keys = [answerer.answer(unlabelled(scripted.make_example(number)), None).key for number in (0, 8, 1)]
    assert keys[0].shape == (answerer.key_size,) and np.linalg.norm(keys[0]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(keys[0], keys[1])  # the same question under another name
    assert keys[0] @ keys[2] < 0.999


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures that have nothing in common, and the first once more."""
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for name, seed in (("a", 0), ("b", 1), ("again", 0)):
        blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(blocks.repeat(32, 0).repeat(32, 1)).save(folder / f"{name}.png")
        paths.append(str(folder / f"{name}.png"))
    return paths


class Looking(scripted.Agent):
    """Its episodes saw the pictures of their questions."""

    def __init__(self, encoder):
        super().__init__(encoder.tokenizer.size)
        self._encoder = encoder

    def run(self, requests):
        for episode in super().run(requests):
            media = enumerate(episode.request.example.media, start=1)
            seen = {number: self._encoder.image(np.asarray(Image.open(path))) for number, path in media}
            yield dataclasses.replace(episode, thumbnails=seen)


def test_a_query_is_never_taught_by_the_same_picture(model, encoder, pictures, tmp_path):
    config = scripted.make_config()
    answerer = Answerer(config, Looking(encoder), scripted.Probes(), KeyMaker(model), encoder)
    queries = [
        unlabelled(dataclasses.replace(scripted.make_example(number), media=(path,))) for number, path in enumerate(pictures)
    ]
    with Memory(tmp_path / "m.sqlite", dim=answerer.key_size, config=MemoryConfig(silent_below=1)) as memory:
        for query in queries[:2]:
            answered = answerer.answer(query, memory)
            winner = answered.samples[answered.exemplar]
            memory.remember(
                Record(
                    key=answered.key, phash=answered.phash, query_id=query.example.id, query=query.example.question,
                    trajectory=winner.trajectory, tokens=winner.tokens, fidelity=0.5, agreement=3,
                ),
                {},
            )  # fmt: skip
        (found,) = answered.neighbours
        answered = answerer.answer(queries[2], memory)
        assert answered.phash == perceptual_hash(tmp_path / pictures[0], MediaStore(2**20))
        assert [memory.get(neighbour.id).query_id for neighbour in answered.neighbours] == ["q1"]
        assert memory.get(found.id).query_id == "q0"


def test_keys_see_the_pixels(model, encoder, pictures):
    answerer = Answerer(scripted.make_config(), Looking(encoder), scripted.Probes(), KeyMaker(model), encoder)
    keys = [
        answerer.answer(unlabelled(dataclasses.replace(scripted.make_example(0), media=media)), None).key
        for media in ((pictures[0],), (pictures[1],), (pictures[2],), tuple(pictures))
    ]
    assert not np.allclose(keys[0], keys[1], atol=1e-4)
    np.testing.assert_allclose(keys[0], keys[2], atol=1e-6)
    assert np.linalg.norm(keys[3]) == pytest.approx(1, abs=1e-5)  # three media, in four places


def test_patches_of_thumbnails_stand_in_front_of_empty_frames(encoder, pictures):
    thumbnails = [encoder.image(np.asarray(Image.open(path))) for path in pictures[:2]]
    shown = [(thumbnail, 0) for thumbnail in thumbnails]
    exact, padded = encoder.patches(shown), encoder.patches(shown, 4)
    bucket, size = encoder.prompt.patch_bucket, encoder.model.vision.patch_dim
    assert exact.shape == (2, bucket, size) and padded.shape == (4, bucket, size)
    np.testing.assert_array_equal(padded[:2], exact)
    assert not padded[2:].any() and encoder.patches([]).shape == (0, bucket, size)
    for frame, thumbnail in zip(exact, thumbnails, strict=True):
        _, height, width = thumbnail.shown.grid
        assert np.abs(frame[: height * width]).sum(axis=1).all() and not frame[height * width :].any()


def test_the_median_value_leaves_some_out(tmp_path):
    with Memory(tmp_path / "m.sqlite", dim=2) as memory:
        assert memory.median_value() == 0.5
        ids = []
        for number, value in enumerate((0.1, 0.3, 0.8, 0.9)):
            episode = next(scripted.Agent(100).run([scripted_request(number)]))
            record = Record(
                key=np.array([1, 0], np.float32), phash=None, query_id=f"q{number}", query="?", trajectory=episode.trajectory,
                tokens=episode.tokens, fidelity=0.5, agreement=1, value=value,
            )  # fmt: skip
            ids.append(memory.remember(record, {}).id)
        assert memory.median_value() == pytest.approx(0.55) and memory.median_value(without=[ids[3], 99]) == 0.3
        assert memory.median_value(without=ids) == 0.5


def scripted_request(number):
    from pixelis_jax.rollout.agent import Request

    return Request(example=scripted.make_example(number))
