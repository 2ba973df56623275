"""Episodes of a stream of questions without media that follow from the query's number and the sample alone."""

import dataclasses

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs import tiny_ttrl
from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.look import encoder_of
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.memory import KeyMaker
from pixelis_jax.policy import Qwen3VL
from pixelis_jax.rollout.agent import Episode
from pixelis_jax.rollout.probes import GroupFidelity
from pixelis_jax.training.answering import Answerer, unlabelled
from pixelis_jax.trajectory import Example, Final, Role, Source, Step, TokenRecord, Trajectory
from pixelis_jax.voting import CallFidelity
from tools_host.protocol import Media, Observation, ToolCall

P, S, T, F, C, A = Role.PROMPT, Role.OBSERVATION, Role.THOUGHT, Role.FORMAT, Role.OPERATION, Role.ANSWER
TURN, END = [T, C, F], [A, F]
MEDIUM = Media(id=1, kind="image", uri="a.png", sha256="", width=100, height=100)
THINGS = ("red card", "blue cup", "green door", "old clock", "white sign", "small boat", "grey cat", "long road")


def make_encoder():
    """The tiny policy's, with one layer."""
    questions = [f"What is on the {thing}?" for thing in THINGS]
    encoder = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(questions))))
    text = dataclasses.replace(encoder.model.text, num_hidden_layers=1)
    vision = dataclasses.replace(encoder.model.vision, depth=1, deepstack_visual_indexes=(0,))
    return dataclasses.replace(encoder, model=dataclasses.replace(encoder.model, text=text, vision=vision))


def make_model(encoder):
    return Qwen3VL(encoder.model, rngs=nnx.Rngs(0))


def make_config(**changes):
    """The shipped config for 8 scripted queries."""
    config = tiny_ttrl.get_config()
    config.total_steps, config.samples, config.probe = 8, 4, 2
    config.optimizer.warmup_steps = 0
    config.rollout.max_steps = 3
    config.microbatch = ConfigDict({"rows": 1, "tokens": 64, "frames": 1, "weighted": 48})
    config.kl.warm_up = 2
    config.memory.silent_below = 1
    config.ema.half_life = 4.0
    config.checkpoint_every_steps, config.checkpoint_every_minutes = 3, 60.0
    config.unlock()
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def make_example(number, *, truth="x"):
    question = f"What is on the {THINGS[number % len(THINGS)]}?"
    return Example(id=f"q{number}", question=question, media=(), verifier="exact", truth=truth, source=Source(dataset="d"))


def make_episode(request, vocab, answer, *, calls=None):
    """An episode of a request whose tokens follow from the request."""
    number = int(request.example.id[1:])
    rng = np.random.default_rng([number, request.sample])
    calls = int(rng.integers(0, 3)) if calls is None else calls
    roles = np.array([P, P, P, *([*TURN, S, S] * calls), *END], np.int8)
    boxes = [sorted(rng.integers(0, 500, 2).tolist()) + sorted(rng.integers(500, 1000, 2).tolist()) for _ in range(calls)]
    steps = tuple(
        Step(
            raw="", thought="", call=ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": box}),
            observation=Observation(ok=True, text=""),
        )
        for box in boxes
    )  # fmt: skip
    trajectory = Trajectory(
        id=request.id, example=request.example.id, question=request.example.question, media=(MEDIUM,), steps=steps,
        final=Final(raw="", thought=""), answer=answer, stopped="answer", source=request.example.source, sample=request.sample,
    )  # fmt: skip
    written = roles > Role.OBSERVATION
    tokens = TokenRecord(
        ids=rng.integers(10, vocab - 20, len(roles)).astype(np.int32), roles=roles,
        log_probs=np.where(written, -7.0, 0).astype(np.float32), forced=np.zeros(len(roles), bool),
        policy_step=np.where(written, 0, -1).astype(np.int32), media_spans=np.zeros((0, 4), np.int32),
    )  # fmt: skip
    return Episode(request=request, trajectory=trajectory, tokens=tokens, thumbnails={})


class Agent:
    """Answers "x" three times of four and once "y"; to every fourth query nothing."""

    def __init__(self, vocab, answers=("x", "x", "y", "x", "x")):
        self._vocab, self._answers = vocab, answers
        self.versions = []

    def answer(self, number, sample):
        return None if number % 4 == 3 else self._answers[sample]

    def run(self, requests):
        # Not in the order in which they were asked, as of the real one.
        for request in reversed(list(requests)):
            number = int(request.example.id[1:])
            yield make_episode(request, self._vocab, self.answer(number, request.sample))

    def update_policy(self, model, policy):
        self.versions.append(policy.step)


class Probes:
    """Fidelities that follow from the trajectories' numbers."""

    def begin(self, trajectories, paths):
        self._trajectories = trajectories
        return self

    def result(self):
        values = tuple(0.5 + 0.1 * (trajectory.sample % 3) for trajectory in self._trajectories)
        call = CallFidelity(key="k", tool="ocr", raw=0.5, null=0.0, fidelity=0.5)
        steps = tuple(tuple(call for _ in trajectory.steps) for trajectory in self._trajectories)
        return GroupFidelity(calls=(call,), steps=steps, measured=values, fidelity=values)


def make_answerer(config, model, encoder, **options):
    return Answerer(config, Agent(encoder.tokenizer.size, **options), Probes(), KeyMaker(model), encoder, policy="p")


def make_stream(count=100, *, truth="x"):
    """number of the first query -> the queries from there on; and questions outside of it."""
    queries = [unlabelled(make_example(number, truth=truth)) for number in range(count)]
    return lambda first: iter(queries[first:])


def make_probe():
    return [unlabelled(make_example(number)) for number in (1000, 1001)]
