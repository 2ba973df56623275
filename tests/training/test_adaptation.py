"""One policy that learns at test time: objectives against their formulas, the anchor, and the guard."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripted_answers as scripted
from flax import nnx
from jax import flatten_util

from pixelis_jax import sharding
from pixelis_jax.data.examples import encode_record
from pixelis_jax.rollout.agent import Request
from pixelis_jax.training import microbatches, policy_update, sft
from pixelis_jax.training.adaptation import Learner, Taught, role_weights
from pixelis_jax.training.microbatches import Sampled, Shape
from pixelis_jax.trajectory import DECISION_ROLES, Role

pytestmark = pytest.mark.usefixtures("compilation_cache")

BANNED = [0, 1]
WEIGHTS = {Role.THOUGHT: 1.0, Role.FORMAT: 1.0, Role.ANSWER: 1.5, Role.ARGUMENT: 2.0, Role.OPERATION: 3.0}


@pytest.fixture(scope="module")
def examples(encoder):
    """Of three episodes with 1, 2 and 0 calls, as the trainer sees them."""
    made = [
        scripted.make_episode(Request(example=scripted.make_example(number)), encoder.tokenizer.size, "x", calls=calls)
        for number, calls in enumerate((1, 2, 0))
    ]
    return [encode_record(episode.tokens, {}, encoder) for episode in made]


@pytest.fixture
def make(model, encoder, examples):
    def make(**changes):
        mesh = sharding.create_mesh(**scripted.make_config().mesh)
        changes = {"optimizer.learning_rate": 1e-3, **changes}
        learner = Learner(scripted.make_config(**changes), model, encoder, BANNED, mesh)
        learner.probe(examples[:2])
        return learner

    return make


def log_softmax(model, example):
    """Log-probabilities over the vocabulary in front of each token but the first."""
    sampled = Sampled(example=example, log_probs=np.zeros(len(example["ids"]), np.float32))
    shape = Shape(rows=1, tokens=len(example["ids"]), frames=1, patches=64, weighted=48)
    (one,), _ = microbatches.pack([sampled], shape, model.config.vision.patch_size)
    hidden, _ = sft.encode(model, one.batch, scripted.make_config().pixels)
    logits = hidden[0] @ model.unembedding_matrix().T
    banned = np.isin(np.arange(logits.shape[-1]), BANNED)
    return jax.nn.log_softmax(jnp.where(banned, -1e30, logits))[:-1]


def nll(model, example):
    logits = log_softmax(model, example)
    return -jnp.take_along_axis(logits, example["ids"][1:, None], axis=1)[:, 0]


def mean_nll(model, example):
    """The loss of imitation (algorithms.md, section 1), role by role."""
    weights = np.array([WEIGHTS.get(role, 0.0) for role in example["roles"][1:].tolist()])
    return jnp.sum(nll(model, example) * weights) / weights.sum()


def mean_entropy(model, example):
    logits = log_softmax(model, example)
    decides = np.isin(example["roles"][1:], DECISION_ROLES)
    entropies = -jnp.sum(jnp.where(logits > -1e29, jnp.exp(logits) * logits, 0.0), axis=1)
    return jnp.sum(entropies * decides) / decides.sum()


def divergences(model, anchor, example):
    """Sum and number over the decision tokens."""
    ours, theirs = log_softmax(model, example), log_softmax(anchor, example)
    decides = np.isin(example["roles"][1:], DECISION_ROLES)
    return jnp.sum(jnp.sum(jnp.exp(ours) * (ours - theirs), axis=1) * decides), decides.sum()


def flat(tree):
    return np.asarray(flatten_util.ravel_pytree(tree)[0])


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def arrays(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def lesson(examples, worth=(1.0, 0.0, 0.25), anchored=(True, True, False)):
    return [Taught(example=e, worth=w, anchored=a) for e, w, a in zip(examples, worth, anchored, strict=True)]


def test_tokens_weigh_what_their_roles_do():
    roles = np.array([Role.PROMPT, Role.OBSERVATION, *WEIGHTS], np.int8)
    assert role_weights(roles).tolist() == [0, 0, 1, 1, 1.5, 2, 3]


@pytest.mark.parametrize(
    ("objective", "written"), [("imitation", mean_nll), ("entropy", mean_entropy)], ids=["imitation", "entropy"]
)
def test_the_gradient_is_that_of_the_formula(make, model, encoder, examples, objective, written, monkeypatch):
    beta, taught = 0.3, lesson(examples)
    learner = make(objective=objective, **{"kl.beta": beta, "guard.on": False})
    moved = jax.tree.map(lambda x: x + 0.01 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), learner.ema)
    learner.ema = moved
    graph, _ = nnx.split(model)
    anchor = nnx.merge(graph, nnx.State(jax.tree.map(jnp.copy, moved)))
    found = []
    apply = learner.updater._apply

    def spy(state, gradients):
        found.append(flat(gradients))
        return apply(state, gradients)

    monkeypatch.setattr(learner.updater, "_apply", spy)

    def loss(params):
        policy = nnx.merge(graph, nnx.State(params))
        value = sum(t.worth * written(policy, t.example) for t in taught)
        sums = [divergences(policy, anchor, t.example) for t in taught if t.anchored]
        return value + beta * sum(total for total, _ in sums) / sum(count for _, count in sums)

    expected = flat(jax.jit(jax.grad(loss))(arrays(learner.updater.state.params)))
    learner.learn(taught)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_imitation_makes_the_exemplar_more_likely(make, model, examples):
    learner = make(**{"guard.on": False})
    before = float(mean_nll(model, examples[0]))
    for _ in range(3):
        update = learner.learn(lesson(examples))
    assert float(mean_nll(learner.policy(), examples[0])) < before - 0.05
    assert update.accepted and update.kl > 0 and learner.step == 3


def test_entropy_makes_the_policy_more_certain(make, model, examples):
    learner = make(objective="entropy", **{"guard.on": False})
    before = [float(mean_entropy(model, example)) for example in examples]
    for _ in range(3):
        learner.learn(lesson(examples, worth=[1 / 3] * 3, anchored=[True] * 3))
    after = [float(mean_entropy(learner.policy(), example)) for example in examples]
    assert all(now < then for now, then in zip(after, before, strict=True))


def test_advantages_pull_towards_what_is_worth_more(make, model, examples):
    learner = make(objective="grpo", **{"guard.on": False})
    old = [np.append(0.0, -np.asarray(nll(model, example))).astype(np.float32) for example in examples]
    worth = (1.0, -1.0, 0.0)
    taught = [Taught(example=e, worth=w, anchored=True, log_probs=o) for e, w, o in zip(examples, worth, old, strict=True)]
    before = [float(mean_nll(model, example)) for example in examples[:2]]
    update = learner.learn(taught)
    after = [float(mean_nll(learner.policy(), example)) for example in examples[:2]]
    assert after[0] < before[0] and after[1] > before[1]
    assert update.metrics["kl_sampler_k3"] < 1e-6  # the sampler was this policy


def test_what_is_worth_nothing_and_not_anchored_changes_nothing(make, examples):
    learner = make()
    before = arrays(learner.updater.state.params)
    update = learner.learn(lesson(examples, worth=[0.0] * 3, anchored=[False] * 3))
    assert update.metrics["gradient_norm"] == 0 and update.kl < 1e-6 and equal(before, learner.updater.state.params)


def test_what_only_holds_the_policy_does_not_move_it_where_its_anchor_is(make, examples):
    learner = make(**{"optimizer.learning_rate": 1e-3, "kl.beta": 10.0})
    update = learner.learn(lesson(examples, worth=[0.0] * 3, anchored=[True] * 3))
    assert update.metrics["gradient_norm"] < 1e-4 and update.metrics["kl"] < 1e-6


def test_a_heavy_anchor_holds_the_policy_nearer(make, examples):
    found = {}
    for beta in (0.0, 300.0):
        control = "fixed" if beta else "none"
        learner = make(control=control, **{"kl.beta": beta or 0.05, "guard.on": False, "ema.half_life": 100.0})
        updates = [learner.learn(lesson(examples)) for _ in range(5)]
        assert [update.beta for update in updates] == [beta] * 5
        found[beta] = updates[-1].kl
    assert 0 < found[300.0] < 0.8 * found[0.0]


def test_the_divergence_is_that_of_the_formula(make, model, examples):
    learner = make(**{"guard.on": False})
    assert learner.divergence() == pytest.approx(0.0, abs=1e-7)
    update = learner.learn(lesson(examples))
    # The anchor before it followed was the initial policy.
    sums = [divergences(learner.policy(), model, example) for example in examples[:2]]
    expected = sum(float(total) for total, _ in sums) / sum(int(count) for _, count in sums)
    assert update.kl == pytest.approx(expected, rel=1e-3) and expected > 1e-4


def test_the_anchor_follows_by_half_in_its_half_life(make, examples):
    learner = make(**{"ema.half_life": 2.0, "guard.on": False})
    mean, tau = flat(learner.ema), 0.5**0.5
    for _ in range(2):
        learner.learn(lesson(examples))
        mean = tau * mean + (1 - tau) * flat(learner.updater.state.params)
    np.testing.assert_allclose(flat(learner.ema), mean, atol=1e-6)


def test_the_guard_takes_a_step_back_to_the_bit(make, examples):
    learner = make()
    learner.learn(lesson(examples))
    assert learner.step == 1
    learner._config.guard.limit = 1e-9
    before = arrays(learner.items()), learner.control.to_json(), learner.step
    update = learner.learn(lesson(examples))
    assert not update.accepted and update.kl > 1e-9
    after = arrays(learner.items()), learner.control.to_json(), learner.step
    assert equal(before[0], after[0]) and before[1:] == after[1:]
    # The next step goes as if there had been none.
    learner._config.guard.limit = 1.0
    other = make()
    for _ in range(2):
        other.learn(lesson(examples))
    assert learner.learn(lesson(examples)).accepted
    assert equal(learner.items(), other.items()) and learner.control == other.control


def test_a_guard_that_is_off_takes_nothing_back(make, examples):
    learner = make(**{"guard.on": False, "guard.limit": 1e-9})
    assert learner.learn(lesson(examples)).accepted and learner.step == 1


@pytest.mark.parametrize(("control", "moves"), [("pid", True), ("fixed", False)])
def test_beta_moves_under_the_controller_alone(make, examples, control, moves):
    learner = make(control=control, **{"kl.warm_up": 0, "kl.beta": 0.05, "kl.least": 1e-4, "guard.on": False})
    betas = [learner.learn(lesson(examples)).beta for _ in range(3)]
    assert betas[0] == 0.05 and (len(set(betas)) > 1) == moves


def test_what_a_checkpoint_keeps_goes_on_as_if_it_had_not_been_needed(make, examples):
    learner = make()
    learner.learn(lesson(examples))
    items, control = arrays(learner.items()), json.loads(json.dumps(learner.control.to_json()))
    other = make()
    shardings = jax.tree.map(lambda x: x.sharding, other.items())
    other.set_items(jax.device_put(items, shardings), control)
    assert other.step == 1 and other.control == learner.control
    updates = [one.learn(lesson(examples)) for one in (learner, other)]
    assert updates[0] == updates[1] and equal(learner.items(), other.items())


def test_a_loss_that_is_not_finite_ends_the_run(make, examples):
    learner = make()
    state = learner.updater.state
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan) if x.ndim else x, state.params)
    learner.updater.state = dataclasses.replace(state, params=broken)
    with pytest.raises(FloatingPointError, match="not finite"):
        learner.learn(lesson(examples))


def test_an_episode_may_be_anchored_and_not_learn(model, examples):
    sampled = [Sampled(example=e, log_probs=np.zeros(len(e["ids"]), np.float32)) for e in examples]
    shape = Shape(rows=2, tokens=24, frames=1, patches=64, weighted=48)
    micros, places = microbatches.pack(sampled, shape, model.config.vision.patch_size)
    worth = [np.full(len(e["ids"]), 2.0, np.float32) for e in examples]
    decides = [int(np.isin(e["roles"], DECISION_ROLES).sum()) for e in examples]
    writes = [int((e["weights"] > 0).sum()) for e in examples]

    def sums(learns, anchored=None):
        made = microbatches.with_advantages(micros, places, worth, learns, anchored)
        scale = policy_update.scale_of(made, 0.5)
        return round(1 / float(scale.token)), round(1 / float(scale.decision))

    assert sums([True, False, True]) == (writes[0] + writes[2], decides[0] + decides[2])
    assert sums([True, False, True], [False, True, False]) == (writes[0] + writes[2], decides[1])
