"""Risk against coverage of recorded votes: what a record is worth, curves and differences by hand, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import risk_coverage

from pixelis_jax.trajectory import Source, Trajectory
from pixelis_jax.trajectory.io import write_trajectories
from pixelis_jax.voting import Limits, answer_classes, counted_answer, decide, make_record, risk_at, vote_to_json
from pixelis_jax.workdir import Workdir


def trajectory(query, sample, answer, right, stopped="answer"):
    scores = {} if right is None else {"task": float(right)}
    return Trajectory(
        id=f"{query}-0-{sample}", example=query, question="?", media=(), steps=(), final=None, answer=answer, stopped=stopped,
        source=Source(dataset="d"), sample=sample, scores=scores,
    )  # fmt: skip


def asked(query, answers, right, weights, *, similarity=0.5, reason=None):
    """Trajectories of a query and its vote: weights as given, those answers right that `right` names."""
    trajectories = [trajectory(query, number, answer, answer == right) for number, answer in enumerate(answers, start=1)]
    given = [counted_answer(one) for one in trajectories]
    vote = decide(given, answer_classes(given, str.__eq__), np.array(weights, float), Limits())
    count = len(answers)
    matrix = tuple(tuple(1.0 if i == j else similarity for j in range(count)) for i in range(count))
    reason = reason or vote.abstention
    record = make_record(
        dataclasses.replace(vote, similarity=matrix), query=query, trajectories=[one.id for one in trajectories], calls=(),
        neighbours=(), decision="abstain" if reason else "learn", reason=reason, kl=None, beta=None, step_before=3,
        exemplar=None if reason else trajectories[vote.members[0]].id, step_after=3 if reason else 4,
    )  # fmt: skip
    return [trajectory(query, 0, "greedy", False), *trajectories], record


# Four trajectories each. Where they differ, `a` has two votes of four and the other answers one, or all agree.
QUERIES = [
    asked("q0", ["a", "a", "a", "a"], "a", [0.25] * 4, similarity=0.9),  # all are right
    asked("q1", ["a", "a", "b", "c"], "b", [0.1, 0.1, 0.7, 0.1]),  # the majority is wrong, the vote is right
    asked("q2", ["a", "a", "b", None], "c", [0.3, 0.3, 0.4, 0.0]),  # both are wrong
    asked("q3", [None, " ", None, None], "c", [0.0] * 4),  # nobody answers
    asked("q4", ["b", "a", "a", "a"], "a", [0.1, 0.3, 0.3, 0.3], reason="no_exemplar"),
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    def make(queries, seed=0, edit=lambda lines: lines):
        path = tmp_path / f"run{seed}"
        Workdir.create(path, config={"seed": seed}, environment={"commit": f"c{seed}"})
        (path / "trajectories").mkdir()
        for number, (trajectories, _) in enumerate(queries):
            write_trajectories(path / "trajectories" / f"query-{number}.jsonl", trajectories)
        lines = [json.dumps(vote_to_json(record)) for _, record in queries]
        (path / "votes.jsonl").write_text("".join(f"{line}\n" for line in edit(lines)))
        return path

    return make


def test_what_a_record_is_worth_by_hand(workdir):
    q0, q1, q2, q3, q4 = risk_coverage.read_run(workdir(QUERIES))
    assert [query.name for query in (q0, q1, q2, q3, q4)] == ["q0", "q1", "q2", "q3", "q4"]
    # Majority, its lead in votes, mass of the vote, its lead in mass.
    assert q0.confidence == pytest.approx((1, 1, 1, 1)) and q0.correct == (True,) * 4
    assert q1.confidence == pytest.approx((1, 2 / 4 - 1 / 4, 0.7, 0.5)) and q1.correct == (False, False, True, True)
    assert q2.confidence == pytest.approx((1, 1 / 3, 0.6, 0.2)) and q2.correct == (False,) * 4  # three answers count
    assert q3.confidence == (0, 0, 0, 0) and q3.correct == (False,) * 4
    assert q4.confidence == pytest.approx((1, 1 / 2, 0.9, 0.8)) and q4.correct == (True,) * 4
    assert [query.abstained for query in (q0, q1, q2, q3, q4)] == [False, False, False, True, False]
    assert [query.classes for query in (q0, q1, q2, q3, q4)] == [1, 3, 2, 0, 2]
    assert [query.similarity for query in (q0, q1)] == pytest.approx([0.9, 0.5])  # without the diagonal


def test_a_class_answers_with_the_first_of_its_answers():
    trajectories, record = asked("q", ["1.0", "1.1", "2"], "1.1", [0.4, 0.4, 0.2])
    classes = (dataclasses.replace(record.classes[0], members=(0, 1), mass=0.8), record.classes[2])
    merged = dataclasses.replace(record, classes=classes, margin=0.6)
    # 1.0 and 1.1 count as one; it is 1.0 that is answered, and it is wrong.
    assert risk_coverage.judge(merged, trajectories[1:]).correct == (False,) * 4
    assert risk_coverage.judge(merged, trajectories[1:]).confidence == pytest.approx((1, 1 / 3, 0.8, 0.6))


def query(name, sure, right):
    return risk_coverage.Query(
        name=name, confidence=(1.0, *sure), correct=(right[0], *right), abstained=False, classes=2, similarity=0.5
    )  # fmt: skip


def test_curves_and_differences_by_hand():
    # Five queries; at 80 % four are answered. The majority's lead leaves out a right one, the mass a wrong one.
    run = [
        query("a", (0.9, 0.9, 0.5), (True, True, True)),
        query("b", (0.8, 0.1, 0.5), (False, False, True)),
        query("c", (0.7, 0.8, 0.5), (True, True, True)),
        query("d", (0.6, 0.7, 0.5), (True, True, True)),
        query("e", (0.5, 0.6, 0.5), (True, True, False)),
    ]
    found = risk_coverage.compare([run], resamples=200)
    assert found["risks"]["majority"]["risk"] == pytest.approx(1 / 5)  # all are equally sure: the error of all
    assert found["risks"]["majority_margin"]["risk"] == pytest.approx(1 / 4)
    assert found["risks"]["ours"]["risk"] == 0
    assert found["risks"]["ours_margin"]["risk"] == pytest.approx(1 / 5)
    difference = found["differences"]["ours - majority_margin"]
    assert difference["difference"] == pytest.approx(-1 / 4) and difference["holds"]
    assert difference["interval"][0] <= -1 / 4 <= difference["interval"][1] <= 0
    curves = found["curves"]
    assert curves["coverage"][0] == 0.02 and curves["coverage"][-1] == 1
    last = {method: curves[method]["risk"][-1] for method in risk_coverage.METHODS}
    assert last == pytest.approx(dict.fromkeys(risk_coverage.METHODS, 1 / 5))
    sure, right = np.array([one.confidence[1] for one in run]), np.array([one.correct[1] for one in run])
    expected = [risk_at(sure, right, coverage) for coverage in curves["coverage"]]
    np.testing.assert_allclose(curves["majority_margin"]["risk"], expected, atol=1e-5)
    for method in risk_coverage.METHODS:
        assert np.all(np.array(curves[method]["low"]) <= np.array(curves[method]["high"]))
    # Turned round, it does not hold.
    turned = [dataclasses.replace(one, confidence=(1.0, *one.confidence[2:0:-1], 0.5)) for one in run]
    assert not risk_coverage.compare([turned], resamples=20)["differences"]["ours - majority_margin"]["holds"]


def test_of_equal_risks_it_holds_in_whatever_order_errors_are_added_up():
    # Both answer the first eleven, with one error; ten tenths of it are a little less than one.
    lead = [0.9] * 10 + [0.5] + [0.1] * 2
    run = [query(f"q{n}", (lead[n], 0.9 - 0.01 * n, 0.5), (n != 0,) * 3) for n in range(13)]
    sure, right = np.array([one.confidence for one in run]).T, np.array([one.correct[0] for one in run])
    assert risk_at(sure[2], right, 0.8) > risk_at(sure[1], right, 0.8)
    found = risk_coverage.compare([run], resamples=20)["differences"]["ours - majority_margin"]
    assert (found["difference"], found["by_seed"], found["holds"]) == (0, [0], True)


def test_seeds_are_averaged_and_redrawn_together():
    names = [f"q{number}" for number in range(40)]
    easy = [query(name, (0.9, 0.9, 0.9), (True, True, True)) for name in names]
    hard = [query(name, (0.9, 0.9, 0.9), (False, True, True)) for name in names]
    found = risk_coverage.compare([easy, hard], resamples=100)
    assert found["risks"]["majority"] == {"risk": 0.5, "interval": [0.5, 0.5], "by_seed": [0.0, 1.0]}
    # One seed is right where the other is wrong: drawn together their mean never changes, drawn apart it would.
    even = [query(name, (0.9,) * 3, (number % 2 == 0,) * 3) for number, name in enumerate(names)]
    odd = [query(name, (0.9,) * 3, (number % 2 == 1,) * 3) for number, name in enumerate(names)]
    assert risk_coverage.compare([even, odd[::-1]], resamples=100)["risks"]["ours"]["interval"] == [0.5, 0.5]
    low, high = risk_coverage.compare([even, even], resamples=400)["risks"]["ours"]["interval"]
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 40) ** 0.5, abs=0.06) and high == pytest.approx(1 - low, abs=0.06)


def test_seeds_that_were_asked_other_queries():
    first = [query(f"q{number}", (0.9,) * 3, (True,) * 3) for number in range(4)]
    second = [query(f"q{number}", (0.9,) * 3, (False,) * 3) for number in range(2, 5)]
    found = risk_coverage.compare([first, second], resamples=50)
    assert found["risks"]["ours"] == {"risk": 0.5, "interval": [0.5, 0.5], "by_seed": [0.0, 1.0]}


def test_what_abstaining_bought_and_how_alike_the_trajectories_are(workdir):
    run = risk_coverage.read_run(workdir(QUERIES))
    # Of five it abstains from q3 and is wrong about q2.
    assert risk_coverage.abstaining([run]) == {"coverage": 0.8, "risk": 0.25}
    silent = [dataclasses.replace(one, abstained=True) for one in run]
    assert risk_coverage.abstaining([silent]) == {"coverage": 0, "risk": None}
    found = risk_coverage.diversity([run])
    assert found["all"] == {"classes": 8 / 5, "one_class": 1 / 5, "similarity": pytest.approx((0.9 + 4 * 0.5) / 5)}
    assert found["first_half"] == {"classes": 2, "one_class": 0.5, "similarity": pytest.approx(0.7)}
    assert found["second_half"]["classes"] == pytest.approx(4 / 3, abs=1e-4)
    blind = [dataclasses.replace(one, similarity=None) for one in run]
    assert risk_coverage.diversity([blind])["all"]["similarity"] is None


def test_the_record(workdir, tmp_path, capsys):
    paths = [workdir(QUERIES, seed) for seed in (0, 1)]
    target = tmp_path / "new" / "risk_coverage.json"
    assert risk_coverage.main([*map(str, paths), f"--json={target}"]) == 0
    record = json.loads(target.read_text())
    assert [(run["seed"], run["commit"], run["queries"]) for run in record["runs"]] == [(0, "c0", 5), (1, "c1", 5)]
    assert (record["queries"], record["abstaining"]["coverage"]) == (5, 0.8)
    # Four of five are answered, without q3, where nobody answers: one of them is wrong for the vote, two for the majority.
    assert record["risks"]["ours"]["risk"] == 0.25 and record["risks"]["majority_margin"]["risk"] == 0.5
    assert record["differences"]["ours - majority_margin"]["by_seed"] == [-0.25, -0.25]
    assert "ours - majority_margin" in capsys.readouterr().out
    assert str(tmp_path) not in target.read_text()


@pytest.mark.parametrize(
    ("words", "edit"),
    [
        ("line 2: query q0 a second time", lambda lines: [lines[0], *lines]),
        ("line 2: Expecting", lambda lines: [lines[0], "{"]),
        ("line 1: schema: expected", lambda lines: [lines[0].replace("vote/1", "vote/2")]),
        ("1 queries, expected at least 2", lambda lines: lines[:1]),
        ("line 1: 'q9-0-1' is not in trajectories/", lambda lines: [lines[0].replace("q0-0-1", "q9-0-1")]),
        ("line 1: the vote's answer 'x' is not that of q0-0-1", lambda lines: [lines[0].replace('r": "a"', 'r": "x"')]),
        (
            "line 1: the vote counts other answers",
            lambda lines: [lines[0].replace("[0, 1, 2, 3]", "[0, 1, 2]").replace('"votes": 4', '"votes": 3')],
        ),
    ],
)  # fmt: skip
def test_damaged_votes_are_one_line(workdir, tmp_path, capsys, words, edit):
    run = workdir(QUERIES, edit=edit)
    assert risk_coverage.main([str(run), f"--json={tmp_path / 'x.json'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("risk_coverage: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "x.json").exists()


def test_other_bad_input(workdir, tmp_path, capsys):
    def refused(words, *paths):
        assert risk_coverage.main([*map(str, paths), f"--json={tmp_path / 'x.json'}"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err, err

    run = workdir(QUERIES)
    refused("are both of seed 0", run, run)
    refused("is not a directory", tmp_path / "none")
    write_trajectories(run / "trajectories" / "again.jsonl", [trajectory("q1", 1, "a", False)])
    assert risk_coverage.main([str(run), f"--json={tmp_path / 'fine.json'}"]) == 0  # sampled twice, and alike
    capsys.readouterr()
    write_trajectories(run / "trajectories" / "again.jsonl", [trajectory("q1", 1, "b", True)])
    refused("q1-0-1 a second time, with another answer or verdict", run)
    write_trajectories(run / "trajectories" / "again.jsonl", [])
    write_trajectories(run / "trajectories" / "query-1.jsonl", [trajectory("q1", 1, "a", None), *QUERIES[1][0][2:]])
    refused("line 2: the verdict on q1-0-1 must be 0 or 1, not None", run)
    write_trajectories(run / "trajectories" / "query-1.jsonl", [trajectory("q1", 1, "a", 0.5), *QUERIES[1][0][2:]])
    refused("line 2: the verdict on q1-0-1 must be 0 or 1, not 0.5", run)
    (run / "votes.jsonl").unlink()
    refused("No such file", run)
