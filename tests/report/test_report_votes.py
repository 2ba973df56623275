"""The report explains every decision of Pixel TTRL, however many there are and whatever became of the trajectories."""

import dataclasses
import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import vote_report_cases as cases

from pixelis_jax import cli, voting
from pixelis_jax.report import views, vote_views, votes, write_report
from pixelis_jax.report.sources import read_source
from pixelis_jax.trajectory import TrajectoryError
from tools_host.media import MediaStore

R = cases.RIGHT
CLEAR = [R, R, R, "X", None, R, R, "X"]


def view(directory, place=0, links=()):
    run = read_source(directory)
    ballot = votes.ballots([run])[place]
    return vote_views.view_vote(ballot, "run", dict(links), views.Pictures(), MediaStore())


def page_of(directory, **options):
    out = directory / "r.html"
    words = write_report([directory], out, **options)
    return out.read_text(encoding="utf-8"), words


def words_of(page):
    section = page[page.index('<section id="votes">') :].partition("</section>")[0]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", section)))


def one(tmp_path, answers, **changes):
    samples = cases.group("q", answers)
    record = cases.vote(samples, **changes)
    return cases.write_run(tmp_path / "run", samples, [record]), record


def test_a_vote_that_was_learnt_from_is_explained(tmp_path):
    samples = cases.group("q", CLEAR)
    record = cases.vote(samples, [0.9, 0.8, 0.7, 0.2, 0.5, 0.9, 0.8, 0.1])
    assert record.decision == "learn"
    directory = cases.write_run(tmp_path / "run", samples, [record])
    shown = view(directory, links={(0, "q/0"): "t5"}.items())
    assert (shown.question, shown.answer, shown.verdict) == ("What is written on the card?", R, "right")
    assert shown.why == f"Learnt from {record.exemplar}: the policy went from step 3 to 4." and shown.shots
    assert [(item.answer, item.members, item.wins) for item in shown.classes] == [
        (R, "1, 2, 3, 6, 7", True),
        ("X", "4, 8", False),
    ]
    assert [item.percent for item in shown.classes] == [round(100 * item.mass, 1) for item in record.classes]
    assert dict(shown.facts) == {
        "votes that count": "7 of 8",
        "margin": f"{record.classes[0].mass - record.classes[1].mass:.3f}",
        "probe KL": "0.125",
        "beta": "0.500",
        "policy step": "3 → 4",
    }
    for member, name, score, faithful in zip(shown.members, record.trajectories, record.scores, record.fidelity, strict=True):
        parts = (faithful, score.agreement, score.fidelity, score.support, score.length, score.total)
        assert member.parts == tuple(f"{part:.3f}" for part in parts) and member.name == name
        assert member.exemplar == (name == record.exemplar) and member.link == ("t5" if name == "q/0" else "")
    assert shown.members[4].uncounted == "does not count: stopped by max steps" and not shown.members[4].colour
    assert len({member.colour for member in shown.members}) == 3
    assert [row[:2] for row in shown.calls.rows] == [("ocr", "0123456789ab"), ("zoom", "fedcba987654")]
    assert [row[2:] for row in shown.calls.rows] == [("0.900", "0.200", "0.875"), ("–", "–", "–")]
    assert shown.neighbours.rows == (("seen-before", "0.710", "0.520"),)


@pytest.mark.parametrize(
    ("answers", "changes", "words"),
    [
        ([R, None, None, R], {}, "Nothing was learnt: too few answers count, 2 of 4."),
        ([None, None], {}, "Nothing was learnt: too few answers count, 0 of 2."),
        (["a", "b", "c", "d"], {}, "Nothing was learnt: the winner holds too little of the mass, 0."),
        (["a", "a", "b", "b"], {}, "Nothing was learnt: the winner leads the next class by too little, 0."),
        ([R, R, R], {"decision": "abstain", "reason": "no_exemplar", "exemplar": None, "step_after": 3}, "short and faithful"),
        (
            [R, R, R],
            {"decision": "rolled_back", "reason": "probe_kl", "exemplar": "q/1", "step_after": 3},
            "A step on q/1 was taken, and the guard took it back: probe kl.",
        ),
    ],
)
def test_why_nothing_was_kept(tmp_path, answers, changes, words):
    directory, record = one(tmp_path, answers, **changes)
    shown = view(directory)
    assert words in shown.why and shown.kind == record.decision != "learn"
    page, _ = page_of(directory)
    assert words in words_of(page) and f'data-kind="{record.decision}"' in page
    assert ("no answer" in words_of(page)) == (record.winner is None)


def test_the_matrix_has_classes_beside_each_other(tmp_path):
    directory, record = one(tmp_path, ["b", R, "b", None, R, R])
    heat = view(directory).heat
    order = [int(label) - 1 for _, label, _ in heat.labels]
    assert order == [1, 4, 5, 0, 2, 3]  # the winner's, the others', what does not count
    values = np.array([cell.dark for cell in heat.cells]).reshape(6, 6)
    expected = np.array(record.similarity)[np.ix_(order, order)]
    assert np.allclose(values, expected / expected.max(), atol=1e-3) and values[0, 0] == 1
    edge = heat.cells[0].x
    assert {(cell.x, cell.y) for cell in heat.cells} == {
        (edge + i * vote_views.CELL, edge + j * vote_views.CELL) for i in range(6) for j in range(6)
    }


def test_every_link_on_the_page_leads_somewhere_and_back(tmp_path):
    samples = [*cases.group("q", CLEAR), *cases.group("r", CLEAR)]
    directory = cases.write_run(tmp_path / "run", samples, [cases.vote(samples[:8]), cases.vote(samples[8:])])
    page, words = page_of(directory)
    assert words.startswith("2 of 2 votes, 16 of 16 trajectories")
    targets = re.findall(r'href="#([^"]+)"', page)
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names)) and set(targets) <= set(names)
    # A trace lies behind the link that has its name, and leads back to the vote that it was cast in.
    anchor = re.search(r'href="#(t\d+)">r/3</a>', page)[1]
    trace = page[page.index(f'id="{anchor}"') :].partition("</details>")[0]
    assert "<span>r/3</span>" in trace and '<a href="#v1">its vote</a>' in trace
    assert len(re.findall(r'class="trace vote" id="v\d"', page)) == 2 and "its vote" in trace


def test_the_greedy_trajectory_stands_beside_the_vote(tmp_path):
    samples = cases.group("q", CLEAR)
    greedy = dataclasses.replace(cases.group("q", ["Y"], temperature=0.0)[0], id="q/greedy")
    other = dataclasses.replace(greedy, id="z/greedy", example="z")
    late = dataclasses.replace(samples[0], id="q/late")  # sampled, but no part of the vote
    directory = cases.write_run(tmp_path / "run", [*samples, late, greedy, other], [cases.vote(samples)])
    *rest, last = view(directory).members
    assert (last.name, last.number, last.answer, last.parts) == ("q/greedy", "greedy", "Y", ()) and len(rest) == 8


def test_traces_are_wanted_by_how_much_they_explain(tmp_path):
    samples = cases.group("q", [R, R, "X", "X", R, None, "X"])
    record = cases.vote(samples, [0.5, 0.9, 0.1, 0.4, 0.9, 0.5, 0.2])
    totals = [score.total for score in record.scores]
    # The exemplar is the shorter of the two faithful ones, here not the one with the highest score of its class.
    record = dataclasses.replace(record, exemplar="q/0")
    assert max((0, 1, 4), key=totals.__getitem__) != 0 and max((2, 3, 6), key=totals.__getitem__) == 3
    greedy = dataclasses.replace(cases.group("q", [R], temperature=0.0)[0], id="q/greedy")
    ballots = votes.ballots([read_source(cases.write_run(tmp_path / "run", [*samples, greedy], [record]))])
    assert [name for _, name in votes.wanted(ballots)] == [
        "q/0", "q/3", "q/greedy", "q/1", "q/2", "q/4", "q/5", "q/6",
    ]  # fmt: skip
    abstained = dataclasses.replace(record, decision="abstain", reason="small_margin", exemplar=None, step_after=3)
    best = [f"q/{max((0, 1, 4), key=totals.__getitem__)}", "q/3"]
    assert [name for _, name in votes.wanted([dataclasses.replace(ballots[0], record=abstained)])][:2] == best


def test_each_trajectory_keeps_its_own_words(tmp_path):
    directory, record = one(tmp_path, [R, R.lower(), f" {R}"])
    assert [len(item.members) for item in record.classes] == [2, 1]
    assert [member.answer for member in view(directory).members] == [R, R.lower(), f" {R}"]
    assert [item.answer for item in view(directory).classes] == [R, f" {R}"]


def test_hostile_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'"
    samples = [dataclasses.replace(item, id=f"{evil}{item.id}") for item in cases.group(evil, [evil, evil, evil])]
    record = cases.vote(
        samples,
        calls=[voting.CallFidelity(key=evil, tool=evil, raw=None, null=None, fidelity=None)],
        neighbours=[voting.Neighbour(id=evil, cosine=0.1, value=0.1)],
        decision="rolled_back",
        reason=evil,
        exemplar=samples[0].id,
        step_after=3,
    )
    page, _ = page_of(cases.write_run(tmp_path / "run", samples, [record]))
    assert page.count("<script>") == 1 and page.count("alert(1)") > 15
    # Gone from disk, the same words come from the vote alone.
    (tmp_path / "run" / "trajectories" / "samples-0-0.jsonl").unlink()
    page, _ = page_of(tmp_path / "run")
    assert page.count("<script>") == 1 and page.count("alert(1)") > 10


def test_trajectories_that_are_gone_are_named_and_the_vote_is_still_shown(tmp_path):
    samples = cases.group("q", CLEAR)
    record = cases.vote(samples)
    directory = cases.write_run(tmp_path / "some", [item for item in samples if item.id not in ("q/0", "q/3")], [record])
    shown = view(directory)
    assert shown.notes == ("2 of 8 trajectories of this vote are not on disk: q/0, q/3",) and shown.question and shown.shots
    assert [member.note for member in shown.members].count("not on disk") == 2
    assert (shown.members[0].answer, shown.members[3].answer) == (R, "X")  # what their classes say
    assert len(shown.members[0].parts) == 6

    directory = cases.write_run(tmp_path / "all", [], [record])
    shown = view(directory)
    assert "8 of 8 trajectories" in shown.notes[0] and not shown.shots and shown.verdict == "open"
    page, words = page_of(directory)
    assert words.startswith("1 of 1 votes, 0 of 0 trajectories") and "8 of 8 trajectories of this vote" in page
    assert '<section id="traces">' not in page and 'href="#t' not in page


def test_a_medium_that_is_gone_is_noted(tmp_path):
    directory, _ = one(tmp_path, CLEAR)
    (directory / "trajectories" / "scene.png").unlink()
    shown = view(directory)
    assert not shown.shots and any("scene.png: No such file" in note for note in shown.notes)


def test_a_baseline_without_scores_or_matrix_is_shown(tmp_path):
    samples = cases.group("q", CLEAR)
    found = voting.majority([item.answer for item in samples], str.__eq__)
    names = [item.id for item in samples]
    record = voting.make_record(
        found, query="q", trajectories=names, calls=(), neighbours=(), decision="learn", reason=None, exemplar="q/2", kl=None,
        beta=None, step_before=0, step_after=1,
    )  # fmt: skip
    directory = cases.write_run(tmp_path / "run", samples, [record])
    shown = view(directory)
    assert shown.heat is None and shown.calls is None and shown.neighbours is None and not shown.members[0].parts
    page, _ = page_of(directory)
    assert '<figure class="heat">' not in page and "over queries" not in page and "exemplar" in page


def test_a_group_of_hundreds_does_not_swamp_the_page(tmp_path):
    directory, record = one(tmp_path, [f"{number // 2}" for number in range(200)])
    shown = view(directory)
    assert len(shown.members) == vote_views.MAX_MEMBERS and len(shown.heat.cells) == vote_views.MAX_MEMBERS**2
    assert "the first 32 of 200 trajectories are shown" in shown.notes and "the first 32 of 100 classes are shown" in shown.notes
    assert shown.classes[0].wins and shown.classes[0].answer == record.classes[record.winner].answer


def test_the_sums_of_a_run(tmp_path):
    names = iter("abcdefgh")
    groups = [cases.group(next(names), answers) for answers in (CLEAR, ["X"] * 4, CLEAR, [None, None], ["a", "b", "c"])]
    made = [cases.vote(groups[0]), cases.vote(groups[1], kl=0.25), cases.rolled_back(groups[2])]
    made += [cases.vote(groups[3]), cases.vote(groups[4])]
    directory = cases.write_run(tmp_path / "run", [item for group in groups for item in group], made)
    found = votes.ballots([read_source(directory)])
    summary = votes.summary("run", found)
    assert {name: (value, meaning) for name, value, meaning in summary.figures} == {
        "queries": ("5", "voted on"),
        "answered": ("80.0 %", "4 with an answer that counts"),
        "learnt from": ("40.0 %", "2 with a step that was kept"),
        "abstained": ("40.0 %", "1 few votes, 1 low mass"),
        "rolled back": ("20.0 %", "1 with a step that the guard took back"),
    }
    rows = [(*row[:4], row[-1]) for row in summary.table.rows]
    assert rows == [
        ("learnt", "", "2", "40.0 %", "50.0 % of 2"),
        ("abstained", "few votes", "1", "20.0 %", "–"),
        ("abstained", "low mass", "1", "20.0 %", "0.0 % of 1"),
        ("rolled back", "probe kl", "1", "20.0 %", "100.0 % of 1"),
    ]
    assert [row.get("probe KL after the step") for row in votes.controlled(found)] == [0.125, 0.25, 0.375, None, None]
    page, _ = page_of(directory)
    assert 'aria-label="probe KL after the step over queries"' in page and "80.0 %" in words_of(page)


def test_a_reason_with_figures_does_not_make_a_row_each(tmp_path):
    groups = [cases.group(f"q{number}", [R] * 3) for number in range(40)]
    made = [dataclasses.replace(cases.rolled_back(samples), reason=f"KL {number / 100}") for number, samples in enumerate(groups)]
    table = votes.summary("run", votes.ballots([read_source(cases.write_run(tmp_path / "run", [], made))])).table
    assert len(table.rows) == votes.MAX_REASONS + 1 and sum(int(row[2]) for row in table.rows) == 40
    assert any(row[1] == "other reasons" and row[2] == "20" for row in table.rows)


def test_of_too_many_votes_those_that_tell_most_are_shown(tmp_path):
    groups = [cases.group(f"q{number}", [R, R, R, R]) for number in range(60)]
    made = [cases.vote(samples) for samples in groups]
    made[50] = cases.rolled_back(groups[50])
    made[55] = cases.vote(groups[55][:2])
    groups[45] = cases.group("q45", [R, R, R, "X"])
    made[45] = cases.vote(groups[45])
    assert [made[place].decision for place in (45, 50, 55)] == ["learn", "rolled_back", "abstain"] and made[45].margin < 1
    directory = cases.write_run(tmp_path / "run", [item for group in groups for item in group], made)
    page, words = page_of(directory, max_votes=6, max_traces=20)
    shown = [int(number) for number in re.findall(r"<span>query (\d+)</span>", page)]
    assert len(shown) == 6 and shown == sorted(shown) and {1, 46, 51, 56} <= set(shown)
    assert words.startswith("6 of 60 votes, 20 of 240 trajectories")
    assert "6 of 60 votes are shown" in page and "Left out: 54 learnt." in page
    # Half of the traces belong to these votes: of each the exemplar, then one of every class, then the others by turns.
    traced = re.findall(r"<span>(q\d+/\d+)</span></span>", page)
    named = [f"q{number - 1}" for number in shown]
    of_votes = [name for name in traced if name.partition("/")[0] in named]
    assert len(traced) == 20 and len(of_votes) == 10
    assert {made[number - 1].exemplar for number in shown if made[number - 1].exemplar} <= set(traced) and "q45/3" in traced
    # The sums are over all.
    assert "58 with a step that was kept" in page


def test_no_vote_is_left_out_without_need_and_each_source_has_its_turn(tmp_path):
    runs = []
    for name in ("one", "two"):
        groups = [cases.group(f"{name}{number}", [R, R, R]) for number in range(12)]
        cases.write_run(tmp_path / name, [item for group in groups for item in group], [cases.vote(group) for group in groups])
        runs.append(read_source(tmp_path / name))
    found = votes.ballots(runs)
    assert votes.telling(found, 24) == found and votes.left_out(found, found) == ""
    few = votes.telling(found, 6)
    assert [ballot.run for ballot in few] == [0, 0, 0, 1, 1, 1] and few[0].number == few[3].number == 1
    assert votes.left_out(found, few) == "18 learnt"
    write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count('<dl class="figures sums">') == 2 and page.count('class="trace vote"') == 24


def test_four_hundred_queries_make_a_page_that_opens(tmp_path):
    groups = [cases.group(f"q{number}", CLEAR if number % 5 else ["a", "b", "c", "d", *[None] * 4]) for number in range(400)]
    made = [cases.vote(samples) for samples in groups[:10]]
    # The vote is the same for each of the kinds, which repeat every five queries.
    made += [
        dataclasses.replace(
            made[number % 5],
            query=f"q{number}",
            trajectories=tuple(item.id for item in groups[number]),
            exemplar=made[number % 5].exemplar and f"q{number}/{made[number % 5].exemplar.partition('/')[2]}",
        )
        for number in range(10, 400)
    ]
    directory = cases.write_run(tmp_path / "run", [item for group in groups for item in group], made)
    page, words = page_of(directory)
    assert words.startswith("40 of 400 votes, 200 of 3200 trajectories") and len(page) < 3_000_000
    assert "80 abstained" not in page and "Left out: " in page and page.count('class="trace vote"') == 40


def damaged(line, change):
    value = json.loads(line)
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda line: line[: len(line) // 2], ""),
        (lambda line: damaged(line, lambda value: value.update(schema="pixelis.vote/2")), "this version reads no other"),
        (lambda line: damaged(line, lambda value: value.update(margin="wide")), "margin"),
        (lambda line: damaged(line, lambda value: value.pop("beta")), "beta: missing"),
        (lambda line: damaged(line, lambda value: value["classes"][0].update(mass=0.1)), "sum to"),
        (lambda line: damaged(line, lambda value: value.update(step_after=3)), "line 3: learnt, but the policy went"),
        (lambda line: "\x00", ""),
        (lambda line: "[]", "a vote is a JSON object"),
    ],
)
def test_a_damaged_line_is_one_error_with_file_and_line(tmp_path, capsys, damage, words):
    samples = cases.group("q", CLEAR)
    directory = cases.write_run(tmp_path / "run", samples, [cases.vote(samples)])
    file = directory / "votes.jsonl"
    line = file.read_text().strip()
    file.write_text(f"{line}\n\n{damage(line)}\n{line}\n")
    with pytest.raises(TrajectoryError, match=r"votes\.jsonl, line 3: "):
        read_source(directory)
    status = cli.main(["report", str(directory)])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and f"{file}, line 3: " in error and words in error
    assert not (directory / "report.html").exists()


def test_an_empty_file_of_votes_is_nothing_to_show(tmp_path):
    (tmp_path / "votes.jsonl").touch()
    with pytest.raises(TrajectoryError, match="holds no trajectories, votes, metrics or results"):
        read_source(tmp_path)


def test_a_report_without_votes_is_written_without_jax(tmp_path):
    code = (
        "import sys, pathlib; from pixelis_jax.report import write_report;"
        "write_report([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2])); sys.exit('jax' in sys.modules)"
    )
    (tmp_path / "metrics-0-0.jsonl").write_text('{"step": 1, "loss": 2}\n')
    arguments = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "r.html")]
    assert subprocess.run(arguments, check=False).returncode == 0
