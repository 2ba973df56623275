"""The short trajectory of high fidelity that is learnt from (algorithms.md, section 3, step 6)."""

from collections.abc import Sequence

import numpy as np

from pixelis_jax.trajectory import Trajectory, has_valid_call, is_valid, repeats
from pixelis_jax.voting.vote import Vote


def useful_calls(trajectory: Trajectory) -> int:
    """Calls that are valid and repeat no earlier one."""
    again = repeats(trajectory)
    return sum(is_valid(step) and not repeated for step, repeated in zip(trajectory.steps, again, strict=True))


def exemplar(vote: Vote, trajectories: Sequence[Trajectory]) -> int | None:
    """Chooses one trajectory of the winning class.

    Those qualify whose fidelity is at least the class's median, and whose useful calls are at least the class's median less one:
    the shortest of all would soon be the one that guesses. If most of the class used tools, one that used none does not qualify
    either. Of those that do, the one with the fewest steps is taken; of equally short ones that with the highest score, then the
    first.

    Args:
      vote: with scores and fidelity (`vote_over_trajectories`).
      trajectories: the group's.

    Returns:
      Its number; None if there is no winner or none qualifies.
    """
    if not vote.members:
        return None
    useful = {member: useful_calls(trajectories[member]) for member in vote.members}
    with_tools = {member: has_valid_call(trajectories[member]) for member in vote.members}
    least_fidelity = np.median([vote.fidelity[member] for member in vote.members])
    least_useful = np.median(list(useful.values())) - 1
    needs_tools = 2 * sum(with_tools.values()) > len(vote.members)
    qualified = [
        member
        for member in vote.members
        if vote.fidelity[member] >= least_fidelity and useful[member] >= least_useful and (with_tools[member] or not needs_tools)
    ]
    return min(
        qualified,
        key=lambda member: (len(trajectories[member].steps), -vote.scores[member].total, member),
        default=None,
    )
