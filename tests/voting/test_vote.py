"""The vote over trajectories against numbers worked out by hand, and what must hold for any group."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voting_cases import same, step, trajectory

from pixelis_jax import voting
from pixelis_jax.trajectory import Place
from pixelis_jax.verifiers import equivalence

LEFT, RIGHT, HALF = (0, 0, 400, 400), (600, 600, 1000, 1000), (0, 0, 400, 200)
WEIGHTS = voting.SimilarityWeights()


def test_answers_by_their_first_member() -> None:
    within_one = lambda a, b: abs(float(a) - float(b)) <= 1  # noqa: E731
    # 2 is within one of both 1 and 3, which are not of each other: it joins the first, and 3 is alone.
    assert voting.answer_classes(["1", "2", None, "3", "2.5"], within_one) == (0, 0, voting.NO_CLASS, 1, 1)
    assert voting.answer_classes(["2", "1", "3"], within_one) == (0, 0, 0)
    assert voting.answer_classes([], same) == ()


def test_an_equivalence_that_only_works_one_way_is_asked_both_ways() -> None:
    prefix = lambda a, b: b.startswith(a)  # noqa: E731
    assert voting.answer_classes(["red", "red card"], prefix) == voting.answer_classes(["red card", "red"], prefix) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "stopped", "counted"),
    [("7", "answer", "7"), (None, "answer", None), (" \n", "answer", None), ("7", "max_tokens", None), (None, "max_steps", None)],
)
def test_which_answers_count(answer: str | None, stopped: str, counted: str | None) -> None:
    assert voting.counted_answer(trajectory(answer, stopped=stopped)) == counted


@pytest.mark.parametrize(
    ("name", "truth", "a", "b", "expected"),
    [
        ("exact", "K7", "The red card.", "red card", True),
        ("exact", "K7", "K7", "K8", False),
        ("number", {"value": 10, "abs": 2}, "50 px", "51.5", True),
        ("number", {"value": 10, "abs": 2}, "50", "53", False),
        ("number", {"value": 10, "rel": 0.1}, "91", "100", True),  # within a tenth of 100, if not of 91
        ("number", 10, "none", "None.", True),
        ("number", 10, "none", "10", False),
        ("number", 10, "1e999", "10", False),
        ("time", {"value": 1, "abs": 0.5}, "1:03", "63.4 seconds", True),
        ("choice", {"options": ["cat", "dog"], "answer": 0}, "B", "the dog", True),
        ("choice", {"options": ["cat", "dog"], "answer": 0}, "B", "A", False),
        ("choice", {"options": ["cat", "dog"], "answer": 0}, "neither", "A", False),
        ("anls", ["hello"], "helo", "hello", False),  # worth 0.8 of a score, but another text
    ],
)
def test_equivalence_of_a_benchmark(name: str, truth: object, a: str, b: str, expected: bool) -> None:
    same_answer = equivalence(name, truth)
    assert same_answer(a, b) is expected and same_answer(b, a) is expected


def test_equivalence_does_not_know_the_right_answer() -> None:
    for right in (0, 1):
        same_answer = equivalence("choice", {"options": ["cat", "dog"], "answer": right})
        assert same_answer("A", "cat") and not same_answer("A", "B")
    assert equivalence("number", {"value": 3, "abs": 1})("7", "8") and not equivalence("number", 3)("7", "8")


def test_operations_by_hand() -> None:
    assert voting.operation_similarity(["zoom", "ocr"], ["zoom", "segment", "ocr"]) == pytest.approx(2 / 3)
    assert voting.operation_similarity([], []) == 1.0
    assert voting.operation_similarity([], ["zoom"]) == 0.0


def test_similarity_by_hand() -> None:
    left, half = Place(root=1, box_px=LEFT), Place(root=1, box_px=HALF)
    matrix = voting.similarity_matrix(
        [0, 0, 1, voting.NO_CLASS, voting.NO_CLASS],
        [("zoom",), ("zoom", "ocr"), ("zoom",), (), ()],
        [(left,), (half,), (left,), (), ()],
        WEIGHTS,
    )
    assert matrix[0, 1] == pytest.approx(0.4 + 0.3 * 0.5 + 0.3 * 0.5)
    assert matrix[0, 2] == pytest.approx(0.6)  # all but the answer
    assert matrix[1, 2] == pytest.approx(0.3 * 0.5 + 0.3 * 0.5)
    assert matrix[0, 3] == 0.0  # one chain is empty
    assert matrix[3, 4] == pytest.approx(0.6)  # both are, but no answer agrees with none
    np.testing.assert_array_equal(np.diagonal(matrix), np.ones(5))


def test_support_by_hand() -> None:
    neighbours = [(("zoom", "ocr"), 0.6), (("zoom",), 0.2), (("track",), -1.0)]
    assert voting.neighbour_support(("zoom", "ocr"), neighbours) == pytest.approx((0.6 * 1 + 0.2 * 0.5) / 0.8)
    assert voting.neighbour_support(("zoom",), []) == 0.0
    assert voting.neighbour_support(("track",), [(("track",), -0.1)]) == 0.0


def test_scores_by_hand() -> None:
    similarity = np.array([[1, 0.7, 0.1], [0.7, 1, 0.2], [0.1, 0.2, 1]])
    scores = voting.score_trajectories(
        similarity,
        np.array([0.8, 0.5, 1.0]),
        np.array([1.0, 0.0, 0.5]),
        np.array([1, 3, 6]),
        most_calls=6,
        weights=voting.ScoreWeights(),
    )
    # (0.7 * 0.5 + 0.1 * 1) / 2 + 0.5 * 0.8 + 0.2 - 0.1 / 6
    assert scores[0].total == pytest.approx(0.225 + 0.4 + 0.2 - 0.1 / 6)
    assert scores[1].total == pytest.approx((0.7 * 0.8 + 0.2 * 1) / 2 + 0.25 - 0.05)
    assert scores[2].total == pytest.approx((0.1 * 0.8 + 0.2 * 0.5) / 2 + 0.5 + 0.1 - 0.1)
    assert scores[0].agreement == pytest.approx(0.225) and scores[2].length == pytest.approx(-0.1)


def test_a_trajectory_alone_agrees_with_nobody() -> None:
    (score,) = voting.score_trajectories(
        np.ones((1, 1)), np.ones(1), np.zeros(1), np.zeros(1, int), most_calls=6, weights=voting.ScoreWeights()
    )
    assert score.agreement == 0.0 and score.total == 0.5


def test_mass_by_hand() -> None:
    # e^(0.2 / 0.1) = e^2 against twice e^0; what does not count weighs nothing, however high it scored.
    weights = voting.softmax_weights([0, 1, 1, voting.NO_CLASS], np.array([0.7, 0.5, 0.5, 9.0]), 0.1)
    np.testing.assert_allclose(weights, np.array([math.e**2, 1, 1, 0]) / (math.e**2 + 2))
    vote = voting.decide(["a", "b", "B", None], [0, 1, 1, voting.NO_CLASS], weights, voting.Limits())
    assert vote.answer == "a" and vote.members == (0,) and vote.votes == 3 and vote.abstention is None
    assert vote.mass == pytest.approx(math.e**2 / (math.e**2 + 2))
    assert vote.margin == pytest.approx((math.e**2 - 2) / (math.e**2 + 2))
    # At temperature 1 the two that agree would have won.
    counting = voting.softmax_weights([0, 1, 1, voting.NO_CLASS], np.array([0.7, 0.5, 0.5, 9.0]), 1.0)
    assert voting.decide(["a", "b", "B", None], [0, 1, 1, -1], counting, voting.Limits()).answer == "b"


@pytest.mark.parametrize(
    ("weights", "classes", "reason"),
    [
        ([0.9, 0.1], (0, 1), "few_votes"),
        ([0.45, 0.3, 0.25], (0, 1, 2), "low_mass"),
        ([0.54, 0.23, 0.23], (0, 1, 1), "small_margin"),
        ([0.56, 0.22, 0.22], (0, 1, 1), None),
        ([], (), "few_votes"),
        ([0.0, 0.0, 0.0], (-1, -1, -1), "few_votes"),
    ],
)
def test_when_a_vote_abstains(weights: list[float], classes: tuple[int, ...], reason: str | None) -> None:
    answers = [None if number < 0 else "abc"[number] for number in classes]
    vote = voting.decide(answers, classes, np.array(weights), voting.Limits())
    assert vote.abstention == reason
    assert vote.answer == ("a" if 0 in classes else None)  # the query is answered all the same
    assert vote.mass == (weights[0] if 0 in classes else 0.0)


def test_a_vote_abstains_where_few_agree_however_much_they_weigh() -> None:
    """Two of four give the answer that holds nearly all of the mass; one answer counts for nobody."""
    weights, classes = np.array([0.48, 0.48, 0.04, 0.0]), (0, 0, 1, voting.NO_CLASS)
    answers = ["a", "a", "b", None]
    found = [voting.decide(answers, classes, weights, voting.Limits(agree=agree)) for agree in (0.0, 0.5, 0.51)]
    assert [vote.abstention for vote in found] == [None, None, "few_agree"]
    assert {vote.answer for vote in found} == {"a"}


def test_a_faithful_minority_beats_a_majority_that_looked_elsewhere() -> None:
    seen = [trajectory("red", step("zoom", LEFT), step("ocr", LEFT)) for _ in range(3)]
    guessed = [trajectory("blue", step("zoom", box)) for box in (RIGHT, (0, 500, 100, 600), (500, 0, 600, 90), (900, 0, 999, 9))]
    group = [*seen, *guessed]
    fidelity = np.array([0.9] * 3 + [0.1] * 4)
    vote = voting.vote_over_trajectories(group, fidelity, same, most_calls=6)
    assert vote.answer == "red" and vote.abstention is None
    assert voting.majority([item.answer for item in group], same).answer == "blue"
    # By hand, of the first: two others agree in all (S = 1); the guesses share one operation of two and no place (0.15).
    expected = (2 * 1 * 0.9 + 4 * 0.15 * 0.1) / 6 + 0.5 * 0.9 - 0.1 * 2 / 6
    assert vote.scores[0].total == pytest.approx(expected)
    assert vote.similarity[0][3] == pytest.approx(0.15) and vote.fidelity == tuple(fidelity)


def test_neighbours_turn_a_close_vote() -> None:
    group = [trajectory("a", step("zoom", LEFT)) for _ in range(3)] + [trajectory("b", step("ocr", LEFT)) for _ in range(3)]
    tied = voting.vote_over_trajectories(group, np.full(6, 0.5), same, most_calls=6)
    assert tied.answer == "a" and tied.margin == pytest.approx(0) and tied.abstention == "small_margin"
    turned = voting.vote_over_trajectories(group, np.full(6, 0.5), same, most_calls=6, neighbours=[(("ocr",), 0.7)])
    # Support of 1 against 0 is worth 0.2, twice the temperature.
    assert turned.answer == "b" and turned.mass == pytest.approx(math.e**2 / (math.e**2 + 1))


GROUPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "A", "b", "c", None]),
        st.lists(st.tuples(st.sampled_from(["zoom", "ocr"]), st.sampled_from([LEFT, RIGHT, HALF])), max_size=3),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=7,
)


def _vote(group: list) -> voting.Vote:
    trajectories = [trajectory(answer, *(step(*call) for call in calls)) for answer, calls, _ in group]
    fidelity = np.array([item[2] for item in group])
    return voting.vote_over_trajectories(trajectories, fidelity, same, most_calls=6, neighbours=[(("zoom",), 0.3)])


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.randoms())
def test_what_holds_for_any_group(group: list, random) -> None:
    vote = _vote(group)
    matrix = np.array(vote.similarity)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diagonal(matrix), np.ones(len(group)))
    assert ((matrix >= 0) & (matrix <= 1 + 1e-12)).all()
    assert vote.votes == sum(answer is not None for answer, _, _ in group)
    if vote.classes:
        assert math.fsum(item.mass for item in vote.classes) == pytest.approx(1.0)
        assert vote.margin == pytest.approx(
            vote.mass - max([item.mass for item in vote.classes if item is not vote.classes[vote.winner]], default=0.0)
        )
    order = list(range(len(group)))
    random.shuffle(order)
    moved = _vote([group[number] for number in order])
    np.testing.assert_allclose(np.array(moved.similarity), matrix[np.ix_(order, order)])
    for place, number in enumerate(order):
        assert moved.scores[place].total == pytest.approx(vote.scores[number].total)
    masses = {frozenset(item.members): item.mass for item in vote.classes}
    for item in moved.classes:
        assert masses[frozenset(order[member] for member in item.members)] == pytest.approx(item.mass)
    if vote.margin > 1e-9:  # of equals the first wins
        assert moved.answer is not None and same(moved.answer, vote.answer)
        assert abs(vote.margin - 0.1) < 1e-9 or abs(vote.mass - 0.5) < 1e-9 or moved.abstention == vote.abstention


def test_no_part_of_a_score_is_idle() -> None:
    group = [("a", [("zoom", LEFT)], 0.9), ("a", [("zoom", RIGHT), ("ocr", LEFT)], 0.2), (None, [], 0.4)]
    trajectories = [trajectory(answer, *(step(*call) for call in calls)) for answer, calls, _ in group]
    fidelity = np.array([item[2] for item in group])

    def totals(**options) -> list[float]:
        vote = voting.vote_over_trajectories(trajectories, fidelity, same, most_calls=6, neighbours=[(("zoom",), 0.3)], **options)
        return [score.total for score in vote.scores]

    usual = totals()
    for name in ("fidelity", "support", "length"):
        assert totals(score_weights=voting.ScoreWeights(**{name: 0.0})) != usual
    for name in ("answer", "operations", "footprint"):
        assert totals(similarity_weights=voting.SimilarityWeights(**{name: 0.0})) != usual
