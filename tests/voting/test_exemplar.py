"""Which trajectory is learnt from, and which would be without each of the rules."""

import numpy as np
import pytest
from voting_cases import same, step, trajectory

from pixelis_jax import voting

BOXES = [(100 * k, 0, 100 * k + 90, 90) for k in range(10)]


def _calls(count: int, name: str = "zoom"):
    return [step(name, box) for box in BOXES[:count]]


def _exemplar(chains: list, fidelity: list[float]) -> int | None:
    group = [trajectory("x", *chain) for chain in chains]
    return voting.exemplar(voting.vote_over_trajectories(group, np.array(fidelity), same, most_calls=6), group)


def test_useful_calls_are_valid_and_repeat_nothing() -> None:
    steps = [step("zoom", BOXES[0]), step("zoom", BOXES[0]), step("zoom", BOXES[1], ok=False), step("ocr", BOXES[0])]
    assert voting.useful_calls(trajectory("x", *steps)) == 2


def test_the_shortest_of_high_fidelity() -> None:
    assert _exemplar([_calls(3), _calls(2), _calls(1)], [0.9, 0.8, 0.1]) == 1  # the third is shorter, but below the median


def test_not_much_less_is_looked_at_than_by_most() -> None:
    # Useful calls 1, 3, 3, 3: the median is 3, so at least 2.
    assert _exemplar([_calls(1), _calls(3), _calls(3), _calls(3)], [0.9, 0.9, 0.9, 0.9]) != 0
    assert _exemplar([_calls(2), _calls(3), _calls(3), _calls(3)], [0.9, 0.9, 0.9, 0.9]) == 0


def test_a_loop_is_not_useful() -> None:
    loop = [step("zoom", BOXES[0])] * 3
    assert _exemplar([loop, _calls(4), _calls(4)], [0.9, 0.9, 0.9]) == 1


def test_no_guess_where_most_used_tools() -> None:
    # One useful call less than the median of 1 would let the guess in.
    assert _exemplar([[], _calls(1), _calls(1)], [0.9, 0.9, 0.9]) == 1
    assert _exemplar([[], [], _calls(1)], [0.9, 0.9, 0.9]) == 0
    # Half is not most.
    assert _exemplar([[], [], _calls(1), _calls(1)], [0.9] * 4) == 0


def test_ties_go_to_the_score_and_then_to_the_first() -> None:
    assert _exemplar([_calls(2)] * 4, [0.5, 0.6, 0.5, 0.5]) == 1
    assert _exemplar([_calls(2), _calls(2)], [0.5, 0.5]) == 0


def test_only_winners_and_none_if_none_qualifies() -> None:
    group = [trajectory("no"), *(trajectory("yes", *_calls(2)) for _ in range(3))]
    vote = voting.vote_over_trajectories(group, np.full(4, 0.5), same, most_calls=6)
    assert vote.answer == "yes" and voting.exemplar(vote, group) == 1
    silent = [trajectory(None)]
    assert voting.exemplar(voting.vote_over_trajectories(silent, np.ones(1), same, most_calls=6), silent) is None
    # The faithful half looked once, the others four times: a median of 2.5 useful calls asks for at least 1.5.
    assert _exemplar([_calls(1), _calls(1), _calls(4), _calls(4)], [0.9, 0.9, 0.1, 0.1]) is None


def test_majority_hard_and_with_a_margin() -> None:
    answers = ["a", "b", "B", None, "a", "b"]
    vote = voting.majority(answers, same)
    assert vote.answer == "b" and vote.votes == 5 and vote.abstention is None
    assert [item.mass for item in vote.classes] == pytest.approx([0.4, 0.6])
    careful = voting.Limits(votes=1, mass=0.0, margin=0.25)
    assert voting.majority(answers, same, careful).abstention == "small_margin"
    assert voting.majority(["a", "b", "b", "b"], same, careful).abstention is None
    assert voting.majority(["a", "b"], same).answer == "a"
    assert voting.majority([None], same).abstention == "few_votes"


def test_answers_alone() -> None:
    # Agreement 2/4, 2/4, 2/4, 0: one null answer among five trajectories.
    vote = voting.answer_consistency(["a", "a", "a", "b", None], same)
    e = np.exp([5.0, 0.0])
    assert vote.mass == pytest.approx(3 * e[0] / (3 * e[0] + e[1])) and vote.answer == "a" and vote.abstention is None
    assert voting.answer_consistency(["a", "b", "c"], same).abstention == "low_mass"


def test_process_scoring_looks_at_fidelity_alone() -> None:
    vote = voting.process_scoring(["a", "b", "b"], same, np.array([0.9, 0.2, 0.2]))
    assert vote.answer == "a" and vote.mass == pytest.approx(1 / (1 + 2 * np.exp(-7)))


def test_a_random_exemplar_is_a_winner_and_follows_its_seed() -> None:
    vote = voting.majority(["a", "b", "b", "b"], same)
    picked = [voting.random_exemplar(vote, seed) for seed in range(40)]
    assert set(picked) == {1, 2, 3} and picked == [voting.random_exemplar(vote, seed) for seed in range(40)]
    assert voting.random_exemplar(voting.majority([None], same), 0) is None


def test_consensus_advantages_by_hand() -> None:
    similarity = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.1], [0.3, 0.1, 1.0]])
    # Winners 0 and 1: rewards 0.8, 0.8 and (0.3 + 0.1) / 2.
    rewards = np.array([0.8, 0.8, 0.2])
    expected = (rewards - 0.6) / rewards.std()
    np.testing.assert_allclose(voting.consensus_advantages(similarity, (0, 1)), expected)
    np.testing.assert_allclose(voting.consensus_advantages(similarity, (0, 1), least_std=2.0), (rewards - 0.6) / 2)
    np.testing.assert_array_equal(voting.consensus_advantages(np.ones((3, 3)), (0, 1, 2)), np.zeros(3))
    np.testing.assert_array_equal(voting.consensus_advantages(similarity, ()), np.zeros(3))
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = rng.uniform(size=(6, 6))
        advantages = voting.consensus_advantages((drawn + drawn.T) / 2, (0, 2, 5))
        assert abs(advantages.sum()) < 1e-9 and np.abs(advantages).max() > 0
