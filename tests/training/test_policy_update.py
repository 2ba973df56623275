"""The update of reinforcement learning against its formula, written out over whole logits."""

import dataclasses

import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest
from flax import nnx
from jax import flatten_util
from ml_collections import ConfigDict

from pixelis_jax.training import microbatches, policy_update, sft
from pixelis_jax.training.microbatches import Sampled, Shape
from pixelis_jax.training.state import create_state
from pixelis_jax.trajectory import DECISION_ROLES, Role

P, S, T, F, C, A = Role.PROMPT, Role.OBSERVATION, Role.THOUGHT, Role.FORMAT, Role.OPERATION, Role.ANSWER
ROLES = ([P, P, P, P, T, C, F, S, S, A, F], [P, P, P, P, C, F, S, S, C, F, S, A], [P, P, P, P, P, A, F])
GRIDS = (((4, 4),), ((2, 4),), ())
CONFIG = ConfigDict(
    {
        "temperature": 0.8,
        "clip": {"low": 0.2, "high": 0.28},
        "loss": {"chunk": 4, "vocab_chunk": 16},
        "pixels": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    }
)
BETA = 0.3
BANNED = np.isin(np.arange(micro.VOCAB), [3, 5])


@pytest.fixture(scope="module")
def models():
    return micro.make_model(0), micro.make_model(1)


def episodes():
    made = []
    for seed, (roles, grids) in enumerate(zip(ROLES, GRIDS, strict=True)):
        example = micro.make_sampled(list(roles), seed=seed, grids=grids, banned=(3, 5))
        made.append(
            Sampled(example=example, log_probs=np.random.default_rng(seed).uniform(-5, -3, len(roles)).astype(np.float32))
        )
    return made


ADVANTAGES = [np.full(len(roles), value) for roles, value in zip(ROLES, (1.0, -0.5, 0.25), strict=True)]


def written_out(trained, frozen, learns):
    """`L` of one episode after another, over whole logits."""
    objective, divergence, tokens, decisions = 0.0, 0.0, 0, 0
    for episode, advantages, counts in zip(episodes(), ADVANTAGES, learns, strict=True):
        shape = Shape(rows=1, tokens=len(advantages), frames=1, patches=16, weighted=12)
        (one,), _ = microbatches.pack([episode], shape, micro.PATCH)
        logits = []
        for model in (trained, frozen):
            hidden, _ = sft.encode(model, one.batch, CONFIG.pixels)
            raw = hidden[0] @ model.unembedding_matrix().T / CONFIG.temperature
            logits.append(jax.nn.log_softmax(jnp.where(BANNED, -1e30, raw)))
        roles = np.array(episode.example["roles"])
        for place in range(1, len(roles)):
            if not counts or roles[place] in (P, S):
                continue
            policy, reference = logits[0][place - 1], logits[1][place - 1]
            ratio = jnp.exp(policy[episode.example["ids"][place]] - episode.log_probs[place])
            gain = jnp.minimum(ratio * advantages[place], jnp.clip(ratio, 0.8, 1.28) * advantages[place])
            objective, tokens = objective - gain, tokens + 1
            if roles[place] in DECISION_ROLES:
                divergence += jnp.sum(jnp.exp(policy) * (policy - jax.lax.stop_gradient(reference)))
                decisions += 1
    return objective / tokens + BETA * divergence / decisions


def gradients(models, rows, learns):
    graph, params = nnx.split(models[0])
    params, frozen = nnx.to_pure_dict(params), nnx.to_pure_dict(nnx.split(models[1])[1])
    shape = Shape(rows=rows, tokens=24, frames=2, patches=16, weighted=16)
    micros, places = microbatches.pack(episodes(), shape, micro.PATCH)
    reference = policy_update.make_reference(graph, CONFIG)
    made = [reference(frozen, {}, one) for one in micros]
    micros = microbatches.with_advantages(micros, places, ADVANTAGES, learns)
    scale = policy_update.scale_of(micros, BETA)
    accumulate = policy_update.make_accumulate(graph, CONFIG, BANNED)
    mesh = jax.make_mesh((1,), ("data",))
    place = jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), params)
    state = create_state(params, {}, optax.sgd(0.1), jax.random.key(0), {"params": place, "heads": {}})
    total = jax.tree.map(jnp.zeros_like, state.params)
    metrics = []
    for one, known in zip(micros, made, strict=True):
        total, found = accumulate(state, total, frozen, one, known, scale)
        metrics.append(found)
    return state, total, metrics, made, places


@pytest.mark.parametrize("learns", [(True, True, True), (True, False, True)])
def test_the_gradient_is_that_of_the_formula_however_it_is_cut(models, learns):
    graph, params = nnx.split(models[0])

    def loss(params):
        return written_out(nnx.merge(graph, nnx.State(params)), models[1], learns)

    expected, _ = flatten_util.ravel_pytree(jax.jit(jax.grad(loss))(nnx.to_pure_dict(params)))
    assert float(jnp.abs(expected).max()) > 0.01
    for rows in (1, 2):
        _, found, metrics, _, _ = gradients(models, rows, learns)
        assert len(metrics) == (2 if rows == 1 else 1)
        np.testing.assert_allclose(flatten_util.ravel_pytree(found)[0], expected, atol=2e-6)


def test_what_is_logged(models):
    state, _, (metrics,), _, _ = gradients(models, 2, (True, True, True))
    counts = {name: float(metric.count) for name, metric in metrics.items()}
    assert counts == {"policy_gradient": 12, "clipped": 12, "kl_sampler_k3": 12, "kl": 7, "entropy": 7}
    assert float(metrics["kl"].total) > 0 and 0 < float(metrics["clipped"].total) <= 12
    (same,) = gradients((models[0], models[0]), 2, (True, True, True))[2]
    assert float(same["kl"].total) < 1e-5


def test_features_are_mean_hidden_states_of_length_1(models):
    _, _, _, made, places = gradients(models, 1, (True, True, True))
    episode, place = episodes()[1], places[1]
    (alone,), _ = microbatches.pack([episode], Shape(rows=1, tokens=12, frames=1, patches=16, weighted=12), micro.PATCH)
    hidden = np.asarray(sft.encode(models[1], alone.batch, CONFIG.pixels)[0][0])
    found = made[place.micro]

    def unit(tokens):
        mean = hidden[tokens].mean(axis=0)
        return mean / np.linalg.norm(mean)

    # Prompt, what was seen behind each call, and the steps: a turn with what it observed.
    for index, tokens in enumerate(([0, 1, 2, 3], [6, 7], [10])):
        np.testing.assert_allclose(found.seen[place.row, place.seen + index], unit(tokens), atol=1e-5)
    for index, tokens in enumerate(([4, 5, 6, 7], [8, 9, 10])):
        np.testing.assert_allclose(found.step[place.row, place.step + index], unit(tokens), atol=1e-5)
    assert not np.asarray(found.step)[:, -1].any()


def test_one_step_of_the_optimiser_moves_the_parameters_by_the_gradient(models):
    state, gradient, _, _, _ = gradients(models, 2, (True, True, True))
    before, direction = (flatten_util.ravel_pytree(jax.tree.map(jnp.copy, tree))[0] for tree in (state.params, gradient))
    after, norm = policy_update.make_apply(optax.sgd(0.1), state)(state, gradient)
    np.testing.assert_allclose(flatten_util.ravel_pytree(after.params)[0], before - 0.1 * direction, atol=1e-7)
    assert float(norm) == pytest.approx(float(jnp.linalg.norm(direction)), rel=1e-5) and int(after.step) == 1


def test_a_minibatch_in_which_nothing_learns_changes_nothing(models):
    _, gradient, _, _, _ = gradients(models, 2, (False, False, False))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    assert dataclasses.astuple(policy_update.scale_of([], 0.0))[0] == 1.0
