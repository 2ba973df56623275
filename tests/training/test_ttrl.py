"""The loop of Pixel TTRL over scripted episodes: what it writes and when, and where it goes on after a kill."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import scripted_answers as scripted
from flax import nnx

from pixelis_jax import sharding
from pixelis_jax.data.records import RecordSource
from pixelis_jax.memory import Memory
from pixelis_jax.rollout.agent import Request
from pixelis_jax.training import ttrl
from pixelis_jax.training.adaptation import Learner
from pixelis_jax.training.logs import AppendLog
from pixelis_jax.trajectory.io import read_trajectories, trajectory_to_json
from pixelis_jax.voting import vote_from_json
from pixelis_jax.workdir import Checkpoints, Workdir, WorkdirError

pytestmark = pytest.mark.usefixtures("compilation_cache")

LOGS = ("answers", "votes", "updates")


class Dead(Exception):
    pass


def judge_by(truth):
    def judge(trajectory):
        return dataclasses.replace(trajectory, scores={"task": float(trajectory.answer == truth)})

    return judge


def run(path, model, encoder, *, fault=None, queries=100, truth="x", **changes):
    """A run, and what is left of it: where it lies, its learner, the agent, and how it ended."""
    config = scripted.make_config(**changes)
    answerer = scripted.make_answerer(config, model, encoder)
    made = []

    class Kept(Learner):
        def __init__(self, *given):
            super().__init__(*given)
            self.lessons = []
            made.append(self)

        def learn(self, lesson):
            self.lessons.append(lesson)
            return super().learn(lesson)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ttrl, "Learner", Kept)
        if fault is not None:
            fault(patch, answerer)
        trained, result = ttrl.run(
            config, path, model, encoder, answerer, scripted.make_stream(queries, truth=truth), scripted.make_probe(),
            banned_ids=[0, 1], mesh=sharding.create_mesh(**config.mesh), judge=judge_by(truth),
        )  # fmt: skip
    params = jax.tree.leaves(nnx.state(trained))
    return types.SimpleNamespace(path=path, learner=made[0], params=params, result=result, agent=answerer._agent)


def lines(path, name):
    file = path / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def votes(path):
    return [vote_from_json(line) for line in lines(path, "votes")]


def remembered(path):
    """Everything that the memory holds, by id."""
    with Memory(path / "memory.sqlite", read_only=True) as memory:
        return {
            number: (
                record.value, record.key.tobytes(), record.query_id, trajectory_to_json(record.trajectory),
                record.tokens.ids.tolist(), record.fidelity, record.agreement,
            )
            for number in sorted(memory.ids)
            for record in [memory.get(number)]
        }  # fmt: skip


def sharded(path):
    """Ids of all trajectories, in the order of the shards."""
    files = sorted((path / "trajectories").iterdir(), key=lambda file: int(file.stem.rpartition("-")[2]))
    return [trajectory.id for file in files for trajectory in read_trajectories(file)]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.fixture(scope="module")
def undisturbed(model, encoder, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "a", model, encoder)


def test_queries_are_answered_and_learnt_from(undisturbed, model):
    result, path = undisturbed.result, undisturbed.path
    assert result.finished and not same(undisturbed.params, nnx.state(model))
    decisions = [(vote.decision, vote.reason) for vote in votes(path)]
    # To the fourth and the eighth nobody has an answer.
    assert decisions == [("learn", None), ("learn", None), ("learn", None), ("abstain", "few_votes")] * 2
    assert [(vote.step_before, vote.step_after) for vote in votes(path)] == [
        (0, 1), (1, 2), (2, 3), (3, 3), (3, 4), (4, 5), (5, 6), (6, 6),
    ]  # fmt: skip
    assert int(result.state.step) == 6 and undisturbed.agent.versions == [1, 2, 3, 4, 5, 6]
    answers = lines(path, "answers")
    assert [line["number"] for line in answers] == list(range(8)) and [line["query"] for line in answers][2] == "q2"
    assert [line["answer"] for line in answers] == ["x", "x", "x", None] * 2
    assert [line["step"] for line in answers] == [0, 1, 2, 3, 3, 4, 5, 6]  # of the policy that answered


def test_what_an_update_learnt_from_is_audited(undisturbed):
    audit, kept = lines(undisturbed.path, "updates"), votes(undisturbed.path)
    assert [line["number"] for line in audit] == [0, 1, 2, 4, 5, 6]
    for line in audit:
        vote = kept[line["number"]]
        assert line["learnt_from"][0] == {"trajectory": vote.exemplar, "weight": 1.0} and line["query"] == vote.query
        assert line["kl"] == vote.kl and line["beta"] == vote.beta and line["decision"] == "learn"
        retrieved = line["learnt_from"][1:]
        assert len(retrieved) == min(3, len(vote.neighbours))
        weights = [0.5 * neighbour.value / len(retrieved) for neighbour in vote.neighbours[:3]]
        assert [entry["weight"] for entry in retrieved] == weights
    # The first neighbours are those that were remembered before.
    earlier = {vote.exemplar for vote in kept[:2]}
    assert {entry["trajectory"] for entry in audit[2]["learnt_from"][1:]} == earlier


def test_the_exemplar_is_imitated_the_retrieved_help_and_others_only_hold(undisturbed, encoder):
    episodes = {
        f"q{number}-0-{sample}": scripted.make_episode(
            Request(example=scripted.make_example(number), sample=sample), encoder.tokenizer.size, "x"
        )
        for number in range(8)
        for sample in range(5)
    }
    names = {episode.tokens.ids.tobytes(): name for name, episode in episodes.items()}
    for lesson, line in zip(undisturbed.learner.lessons, lines(undisturbed.path, "updates"), strict=True):
        found = [(names[taught.example["ids"].tobytes()], taught.worth, taught.anchored) for taught in lesson]
        drawn = [(entry["trajectory"], entry["weight"]) for entry in line["learnt_from"]]
        assert [(name, worth) for name, worth, _ in found[: len(drawn)]] == drawn
        holding = found[len(drawn) :]
        # Two samples of its own, and what the fourth query did, which was not learnt from.
        assert [name.rpartition("-")[0] for name, _, _ in holding[:2]] == [f"{line['query']}-0"] * 2
        assert [name for name, _, _ in holding[2:]] == (["q3-0-0"] if line["number"] > 3 else [])
        assert len({name for name, _, _ in [found[0], *holding]}) == 1 + len(holding)
        assert all(worth == 0 for _, worth, _ in holding)
        assert [anchored for _, _, anchored in found] == [True, *[False] * (len(drawn) - 1), *[True] * len(holding)]


def test_only_the_last_that_were_not_learnt_from_hold(model, encoder, tmp_path):
    made = run(tmp_path / "a", model, encoder, vote__agree=1.0, vote__votes=4, held__each=0)  # nobody is ever learnt from
    assert not list((tmp_path / "a" / "snapshots").glob("held-*")) and not made.learner.lessons
    run(tmp_path / "b", model, encoder, vote__votes=5, held__window=3)
    kept = RecordSource(tmp_path / "b" / "snapshots" / "held-8.array_record")
    vocab = encoder.tokenizer.size
    asked = [Request(example=scripted.make_example(number), sample=0) for number in (5, 6, 7)]
    ids = [scripted.make_episode(request, vocab, "x").tokens.ids for request in asked]
    assert [example["ids"].tolist() for example in kept] == [each.tolist() for each in ids]


def test_the_memory_holds_what_was_learnt(undisturbed):
    learnt = [vote for vote in votes(undisturbed.path) if vote.decision == "learn"]
    held = list(remembered(undisturbed.path).values())
    assert [record[2] for record in held] == [vote.query for vote in learnt]
    assert [record[3]["id"] for record in held] == [vote.exemplar for vote in learnt]
    assert held[0][0] != 0.5 and held[-1][0] == 0.5  # the value of what was used has moved
    assert [row["memory/records"] for row in Workdir(undisturbed.path).metrics()] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_every_trajectory_is_kept_once_with_its_score(undisturbed):
    assert sharded(undisturbed.path) == [f"q{number}-0-{sample}" for number in range(8) for sample in range(5)]
    names = sorted(file.name for file in (undisturbed.path / "trajectories").iterdir())
    assert names == ["queries-0-3.jsonl", "queries-0-6.jsonl", "queries-0-8.jsonl"]
    first = list(read_trajectories(undisturbed.path / "trajectories" / names[0]))[:5]
    assert [trajectory.scores["task"] for trajectory in first] == [1, 1, 0, 1, 1]


def test_what_is_logged(undisturbed):
    rows = Workdir(undisturbed.path).metrics()
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[0]["accuracy/greedy"] == 1 and rows[0]["accuracy/vote"] == 1 and rows[0]["accuracy/samples"] == 0.75
    assert rows[3]["accuracy/vote"] == 0 and "kl" not in rows[3] and rows[3]["abstained"] == 1
    assert all(row["kl"] > 0 for row in rows if row["learnt"])
    assert rows[-1]["compilations"] == rows[4]["compilations"]  # every shape has been met


def test_only_the_kept_checkpoints_have_their_memory(undisturbed):
    kept = {path.name for path in (undisturbed.path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"6", "8"}
    names = ("memory-{}.sqlite", "held-{}.array_record", "held-{}.array_record.index.npy")
    assert {path.name for path in (undisturbed.path / "snapshots").iterdir()} == {n.format(step) for n in names for step in kept}


def raising(function, when, *, behind=False):
    """A function that raises `Dead` at its calls for which `when` holds, before or behind what it does."""

    def called(*given, **named):
        dead = when(*given, **named)
        if dead and not behind:
            raise Dead
        result = function(*given, **named)
        if dead:
            raise Dead
        return result

    return called


def dies_at(what, number):
    """A fault at a query: where in it, and which."""

    def fault(patch, answerer):
        asked = []
        answer = answerer.answer

        def noted(query, memory):
            asked.append(int(query.example.id[1:]))
            if what == "answer" and asked[-1] == number:
                raise Dead
            return answer(query, memory)

        answerer.answer = noted

        def now(*given, **named):
            return asked[-1] == number

        if what == "learn":
            patch.setattr(Learner, "learn", raising(Learner.learn, now))
        elif what == "remembered":
            patch.setattr(Memory, "remember", raising(Memory.remember, now, behind=True))
        elif what == "voted":
            patch.setattr(AppendLog, "append", raising(AppendLog.append, lambda log, n, v: now() and "schema" in v, behind=True))
        elif what in ("save", "saved"):
            save = raising(Checkpoints.save, now, behind=what == "saved")
            patch.setattr(Checkpoints, "save", save)

    return fault


def assert_same_end(one, other):
    assert one.result.finished and same(one.params, other.params)
    assert same(one.learner.items(), other.learner.items()) and one.learner.control == other.learner.control
    assert remembered(one.path) == remembered(other.path)
    for name in LOGS:
        assert (one.path / f"{name}.jsonl").read_bytes() == (other.path / f"{name}.jsonl").read_bytes(), name
    assert sharded(one.path) == sharded(other.path)
    varying = ("time", "compilations")
    rows = [
        [{name: value for name, value in row.items() if name not in varying} for row in Workdir(path).metrics()]
        for path in (one.path, other.path)
    ]
    assert rows[0] == rows[1]


# Before the first checkpoint, in its saving, and behind it.
QUICK = (("remembered", 1), ("save", 2), ("voted", 4))
THOROUGH = (
    *(("answer", 0), ("learn", 0), ("voted", 1), ("saved", 2), ("answer", 3), ("learn", 4)),
    *(("remembered", 5), ("save", 5), ("voted", 6), ("save", 7), ("saved", 7)),
)


@pytest.mark.parametrize(("what", "number"), [*QUICK, *(pytest.param(*where, marks=pytest.mark.slow) for where in THOROUGH)])
def test_a_run_that_dies_anywhere_ends_the_same(undisturbed, model, encoder, tmp_path, what, number):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at(what, number))
    assert_same_end(run(tmp_path / "a", model, encoder), undisturbed)


@pytest.mark.slow
def test_a_run_that_dies_again_and_again_ends_the_same(undisturbed, model, encoder, tmp_path):
    for what, number in (("remembered", 2), ("learn", 1), ("voted", 4), ("remembered", 4), ("save", 5), ("answer", 7)):
        with pytest.raises(Dead):
            run(tmp_path / "a", model, encoder, fault=dies_at(what, number))
    assert_same_end(run(tmp_path / "a", model, encoder), undisturbed)


def test_what_was_kept_for_a_checkpoint_that_never_came_is_thrown_away(undisturbed, model, encoder, tmp_path):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("save", 4), checkpoint_every_steps=5)
    assert (tmp_path / "a" / "trajectories" / "queries-0-5.jsonl").exists()
    again = run(tmp_path / "a", model, encoder)  # saves behind other queries
    assert_same_end(again, undisturbed)
    assert not (tmp_path / "a" / "trajectories" / "queries-0-5.jsonl").exists()
    assert {path.name for path in (tmp_path / "a" / "snapshots").glob("memory-*")} == {"memory-6.sqlite", "memory-8.sqlite"}


def test_a_run_that_has_lost_answers_does_not_go_on(model, encoder, tmp_path):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("answer", 4))
    answers = tmp_path / "a" / "answers.jsonl"
    answers.write_text(answers.read_text().split("\n")[0] + "\n")
    with pytest.raises(WorkdirError, match=r"answers.jsonl has 1 lines, and the next one is to be number 3"):
        run(tmp_path / "a", model, encoder)


def test_a_run_whose_time_is_over_goes_on(undisturbed, model, encoder, tmp_path):
    stopped = run(tmp_path / "a", model, encoder, max_minutes=0.0)
    assert not stopped.result.finished and len(lines(tmp_path / "a", "answers")) == 1
    assert_same_end(run(tmp_path / "a", model, encoder), undisturbed)


def test_a_run_that_is_done_does_nothing_more(undisturbed, model, encoder):
    before = {path: path.read_bytes() for path in undisturbed.path.glob("*.jsonl")}
    again = run(undisturbed.path, model, encoder)
    assert again.result.finished and same(again.params, undisturbed.params)
    assert {path: path.read_bytes() for path in undisturbed.path.glob("*.jsonl")} == before
    assert sharded(undisturbed.path) == [f"q{number}-0-{sample}" for number in range(8) for sample in range(5)]


def test_a_query_is_answered_on_disk_before_it_is_learnt_from(model, encoder, tmp_path):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("learn", 2))
    assert [len(lines(tmp_path / "a", name)) for name in LOGS] == [3, 2, 2]
    assert lines(tmp_path / "a", "answers")[2]["answer"] == "x"


def test_a_stream_that_ends_early_ends_the_run(model, encoder, tmp_path):
    short = run(tmp_path / "a", model, encoder, queries=2)
    assert short.result.finished and len(lines(tmp_path / "a", "answers")) == 2 and int(short.result.state.step) == 2
    assert len(sharded(tmp_path / "a")) == 10


def test_read_only_answers_and_leaves_all_as_it_was(undisturbed, model, encoder, tmp_path):
    frozen = run(tmp_path / "a", model, encoder, read_only=True)
    assert same(frozen.params, nnx.state(model)) and remembered(frozen.path) == {} and frozen.agent.versions == []
    # What would not have been learnt from anyway says why.
    assert [vote.reason for vote in votes(frozen.path)] == ["read_only", "read_only", "read_only", "few_votes"] * 2
    assert not (frozen.path / "switches.jsonl").exists() and lines(frozen.path, "updates") == []
    assert [line["answer"] for line in lines(frozen.path, "answers")] == ["x", "x", "x", None] * 2


def test_learning_is_switched_off_from_the_first_query_that_was_not_acknowledged(undisturbed, model, encoder, tmp_path):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("answer", 5))  # behind the checkpoint of three
    frozen = run(tmp_path / "a", model, encoder, read_only=True)
    assert votes(frozen.path)[:5] == votes(undisturbed.path)[:5]
    assert [vote.reason for vote in votes(frozen.path)][5:] == ["read_only", "read_only", "few_votes"]
    assert lines(frozen.path, "updates") == lines(undisturbed.path, "updates")[:4] and frozen.learner.step == 4
    assert list(remembered(frozen.path)) == [1, 2, 3, 4]
    assert lines(frozen.path, "switches") == [{"from": 5, "read_only": True, "updates": 1, "queries": 1}]


def test_learning_is_switched_on(model, encoder, tmp_path):
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("voted", 1), read_only=True)
    for _ in range(2):  # and stays on, whatever the directory was made with
        with pytest.raises(Dead):
            run(tmp_path / "a", model, encoder, fault=dies_at("learn", 5))
    learning = run(tmp_path / "a", model, encoder)
    reasons = [vote.reason for vote in votes(learning.path)]
    assert reasons == ["read_only", "read_only", None, "few_votes", None, None, None, "few_votes"]
    assert [line["number"] for line in lines(learning.path, "updates")] == [2, 4, 5, 6] and learning.learner.step == 4
    assert [line["from"] for line in lines(learning.path, "switches")] == [2]


def test_no_more_updates_than_the_rate_allows(model, encoder, tmp_path):
    limited = run(tmp_path / "a", model, encoder, rate__updates=2, rate__queries=5)
    reasons = [vote.reason for vote in votes(limited.path)]
    # Two of any five: the first two, then those of number 5 and 6.
    assert reasons == [None, None, "rate_limit", "few_votes", "rate_limit", None, None, "few_votes"]
    assert len(remembered(limited.path)) == 4


def test_the_rate_is_remembered_over_a_kill(model, encoder, tmp_path):
    changes = {"rate__updates": 2, "rate__queries": 5}
    with pytest.raises(Dead):
        run(tmp_path / "a", model, encoder, fault=dies_at("answer", 4), **changes)
    reasons = [vote.reason for vote in votes(run(tmp_path / "a", model, encoder, **changes).path)]
    assert reasons == [None, None, "rate_limit", "few_votes", "rate_limit", None, None, "few_votes"]


def test_what_the_guard_takes_back_is_not_remembered(model, encoder, tmp_path):
    guarded = run(tmp_path / "a", model, encoder, guard__limit=1e-9)
    kept = votes(guarded.path)
    taken_back, abstained = ("rolled_back", "kl_above_limit"), ("abstain", "few_votes")
    assert [(vote.decision, vote.reason) for vote in kept] == [*[taken_back] * 3, abstained] * 2
    assert all(vote.kl > 1e-9 and vote.exemplar for vote in kept if vote.decision == "rolled_back")
    assert same(guarded.params, nnx.state(model)) and remembered(guarded.path) == {} and guarded.agent.versions == []
    assert [line["decision"] for line in lines(guarded.path, "updates")] == ["rolled_back"] * 6


def test_a_poisoned_memory_holds_wrong_answers_of_usual_value(model, encoder, tmp_path):
    poisoned = run(tmp_path / "a", model, encoder, poison=1.0)
    held = remembered(poisoned.path)
    assert [record[3]["answer"] for record in held.values()] == ["y"] * 6
    # Nothing that is not poisoned is there, so the value is a newborn's.
    assert list(held.values())[-1][0] == 0.5
    audit = lines(poisoned.path, "updates")
    assert audit[0]["learnt_from"][0]["trajectory"].endswith(("-1", "-3", "-4"))  # the update itself is drawn to the winner
    assert audit[1]["learnt_from"][1]["trajectory"] == "q0-0-2"  # and the next one to what was remembered


def test_a_share_of_the_records_is_poisoned_at_the_median_value(model, encoder, tmp_path):
    born = {}
    remember = Memory.remember

    def noted(memory, record, shown):
        honest = [memory.get(number) for number in sorted(memory.ids)]
        values = [other.value for other in honest if other.trajectory.answer == "x"]
        born[record.query_id] = (record.trajectory.answer, record.value, float(np.median(values)) if values else 0.5)
        return remember(memory, record, shown)

    run(tmp_path / "a", model, encoder, poison=0.5, fault=lambda patch, _: patch.setattr(Memory, "remember", noted))
    assert {answer for answer, _, _ in born.values()} == {"x", "y"}
    assert all(value == (median if answer == "y" else 0.5) for answer, value, median in born.values())
    assert any(value != 0.5 for _, value, _ in born.values())


def test_no_label_reaches_the_policy(undisturbed, model, encoder, tmp_path):
    # Of the same episodes the one truth makes the winners right, the other wrong.
    other = run(tmp_path / "a", model, encoder, truth="y")
    assert [row["accuracy/vote"] for row in Workdir(other.path).metrics()] == [0.0] * 8
    assert same(other.params, undisturbed.params) and same(other.learner.items(), undisturbed.learner.items())
    assert remembered(other.path) == remembered(undisturbed.path)
    for name in LOGS:
        assert lines(other.path, name) == lines(undisturbed.path, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "grpo"}, {"objective": "entropy"}, {"vote.kind": "majority"},
        {"vote.kind": "answers", "exemplar": "random"},
        {"vote.kind": "process", "vote.margin": 0.0}, {"memory.on": False}, {"memory.value_aware": False}, {"control": "none"},
    ],
)  # fmt: skip
def test_variants_run_to_the_end_and_to_something_else(undisturbed, model, encoder, tmp_path, changes):
    other = run(tmp_path / "a", model, encoder, **{name.replace(".", "__"): value for name, value in changes.items()})
    assert other.result.finished and not same(other.params, undisturbed.params)
    assert len(votes(other.path)) == 8 and (tmp_path / "a" / "memory.sqlite").exists() == ("memory.on" not in changes)


def test_advantages_of_nobody_but_outages_teach_nothing(model, encoder, tmp_path):
    def lost(patch, _):
        patch.setattr(ttrl, "is_masked", lambda trajectory: True)

    spoilt = run(tmp_path / "a", model, encoder, objective="grpo", fault=lost)
    assert same(spoilt.params, nnx.state(model)) and lines(spoilt.path, "updates") == []
    assert [vote.reason for vote in votes(spoilt.path)] == [*["outage"] * 3, "few_votes"] * 2
