"""Sampled episodes as packed microbatches: what was seen, which step, what each token is worth."""

import micro
import numpy as np
import pytest

from pixelis_jax.data.records import RecordError
from pixelis_jax.training import microbatches
from pixelis_jax.training.microbatches import Place, Sampled, Shape
from pixelis_jax.trajectory import Role

P, S, T, F, C, A = Role.PROMPT, Role.OBSERVATION, Role.THOUGHT, Role.FORMAT, Role.OPERATION, Role.ANSWER
TWO_CALLS = [P, P, T, C, F, S, S, C, F, S, A, F]
NO_CALL = [P, P, P, A]
CUT_OFF = [P, C, F]  # its observation did not fit
SHAPE = Shape(rows=2, tokens=20, frames=2, patches=16, weighted=12)


def sampled(roles, seed=0):
    return Sampled(example=micro.make_sampled(roles, seed=seed), log_probs=-np.arange(len(roles), dtype=np.float32))


def test_turns_observations_and_steps():
    assert microbatches.turns_of(np.array(TWO_CALLS)).tolist() == [-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    seen, step = microbatches.observations_and_steps(np.array(TWO_CALLS))
    assert seen.tolist() == [0, 0, -1, -1, -1, 1, 1, -1, -1, 2, -1, -1]
    assert step.tolist() == [-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, -1, -1]
    seen, step = microbatches.observations_and_steps(np.array(CUT_OFF))
    assert seen.tolist() == [0, -1, -1] and step.tolist() == [-1, -1, -1]


def test_episodes_share_rows_and_rows_without_any_are_empty():
    episodes = [sampled(NO_CALL, 1), sampled(TWO_CALLS, 2), sampled(NO_CALL, 3), sampled(NO_CALL, 4)]
    micros, places = microbatches.pack(episodes, SHAPE, micro.PATCH)
    # The longest goes first; two of four tokens fill its row up.
    assert places == [Place(0, 0, 12, 3, 2), Place(0, 0, 0, 0, 0), Place(0, 0, 16, 4, 2), Place(0, 1, 0, 0, 0)]
    (made,) = micros
    assert made.batch.ids.shape == (2, 20) and made.batch.valid[0].tolist() == [1] * 12 + [2] * 4 + [3] * 4
    assert made.seen[0].tolist() == [0, 0, -1, -1, -1, 1, 1, -1, -1, 2, -1, -1, 3, 3, 3, -1, 4, 4, 4, -1]
    assert made.step[0].tolist() == [-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, *[-1] * 10]
    assert made.old_log_probs[0, 12:16].tolist() == [0, -1, -2, -3]
    assert made.learns[0].tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert made.decision[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    more, _ = microbatches.pack([sampled(TWO_CALLS, n) for n in range(3)], SHAPE, micro.PATCH)
    assert [m.batch.valid.max(axis=1).tolist() for m in more] == [[1, 1], [1, 0]] and more[1].seen[1].max() == -1


def test_an_episode_larger_than_a_row_is_refused():
    with pytest.raises(RecordError, match="does not fit into a row of 20 tokens"):
        microbatches.pack([sampled(NO_CALL * 6)], SHAPE, micro.PATCH)


def test_advantages_stand_at_their_tokens_and_masked_episodes_learn_nothing():
    episodes = [sampled(NO_CALL, 1), sampled(TWO_CALLS, 2)]
    micros, places = microbatches.pack(episodes, SHAPE, micro.PATCH)
    worth = [np.full(4, 0.5), np.arange(12.0)]
    (made,) = microbatches.with_advantages(micros, places, worth, [True, False])
    assert made.advantages[0].tolist() == [*range(12), 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]
    assert made.learns[0].tolist() == [0] * 15 + [1] + [0] * 4 and made.decision.sum() == 1
    # What selects hidden states stays, or those of the reference would belong to other tokens.
    assert np.array_equal(made.batch.weights, micros[0].batch.weights)
