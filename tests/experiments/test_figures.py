"""Summaries of runs, and the figures that are drawn from them: numbers by hand, what is read, and what is refused."""

import json
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import figures
import numpy as np
import pytest
import summarize_run

from pixelis_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]


def summary(folder, variant, seed, iterations, **curves):
    """A made-up summary; curves that are not given are flat at 0.5."""
    names = ("accuracy", "rapr", "racpr", "chain", "valid_calls", "kl")
    values = {name: curves.get(name, [0.5] * len(iterations)) for name in names}
    path = folder / "ccrft" / f"{variant}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"variant": variant, "seed": seed, "curves": {"iteration": iterations, **values}}))
    return path


def drawn(folder):
    return {panel.get_title(): panel for panel in figures.figure_3(figures.read_runs(folder / "ccrft")).axes}


def test_line_and_band_by_hand(tmp_path):
    summary(tmp_path, "full", 0, [0, 10, 20], accuracy=[0.0, 0.4, 0.6], chain=[1, 2, 3])
    summary(tmp_path, "full", 1, [0, 20, 40], accuracy=[0.2, 0.4, 0.9], chain=[3, 4, 5])
    summary(tmp_path, "base", 0, [0, 10], accuracy=[0.1, None])
    panels = drawn(tmp_path)
    assert list(panels) == ["accuracy", "RaPR", "RaCPR", "mean chain length (calls)"]
    base, full = panels["accuracy"].lines
    # On 0, 10, 20: the second seed is at 0.3 half way from 0.2 to 0.4; at 40 only it has been.
    np.testing.assert_allclose(full.get_xdata(), [0, 10, 20])
    np.testing.assert_allclose(full.get_ydata(), [0.1, 0.35, 0.5])
    assert (full.get_label(), base.get_label()) == ("full (2 seeds)", "base (1 seed)")
    np.testing.assert_allclose((base.get_xdata(), base.get_ydata()), ([0], [0.1]))
    corners = {tuple(point) for point in panels["accuracy"].collections[1].get_paths()[0].vertices.round(6).tolist()}
    assert {(0, 0.0), (0, 0.2), (10, 0.3), (10, 0.4), (20, 0.4), (20, 0.6)} == corners
    np.testing.assert_allclose(panels["mean chain length (calls)"].lines[1].get_ydata(), [2, 2.75, 3.5])


def test_smoothing_moves_neither_ends_nor_sums_by_hand():
    np.testing.assert_allclose(figures.smoothed(np.array([1.0, 2, 6, 4, 0]), 3), [1, 3, 4, 10 / 3, 0])
    line = np.linspace(0, 1, 30)
    np.testing.assert_allclose(figures.smoothed(line, 7), line)
    np.testing.assert_allclose(figures.smoothed(line**2, 1), line**2)


def test_the_command_names_what_it_read_and_draws_the_same_bytes_again(tmp_path, capsys):
    paths = [summary(tmp_path, variant, seed, [1, 2]) for variant in ("full", "no_curiosity") for seed in (0, 1)]
    arguments = [f"--results={tmp_path}", f"--out={tmp_path / 'images'}"]
    assert figures.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0].strip() for line in lines[1:]] == [str(path) for path in paths]
    image = tmp_path / "images" / "figure_3.svg"
    first = image.read_bytes()
    ElementTree.fromstring(first)
    for words in (b"no_curiosity (2 seeds)", b"RaCPR", b"band: least to greatest"):
        assert words in first
    assert figures.main(arguments) == 0 and image.read_bytes() == first
    assert figures.main([*arguments, "--smooth=3"]) == 0 and b"smoothed over 3 points" in image.read_bytes()
    summary(tmp_path, "full", 0, [1, 2], accuracy=[0.1, 0.2])
    assert figures.main(arguments) == 0 and image.read_bytes() != first


def test_nothing_to_draw_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "figures.py"), f"--results={tmp_path}", f"--out={tmp_path / 'images'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"figures: {tmp_path}: no summaries (experiments/summarize_run.py writes them)\n"
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Expecting", "{"),
        ("it has no 'curves'", "{}"),
        ("it has no 'rapr'", '{"curves": {"iteration": [1], "accuracy": [1]}}'),
        ("do not increase", json.dumps({"curves": {"iteration": [2, 1]} | dict.fromkeys(figures.PANELS, [0, 0])})),
        ("do not increase", json.dumps({"curves": {"iteration": []} | dict.fromkeys(figures.PANELS, [])})),
        (
            "accuracy has 1 points for 2 iterations",
            json.dumps({"curves": {"iteration": [1, 2]} | dict.fromkeys(figures.PANELS, [0])}),
        ),
        ("it has no 'variant'", json.dumps({"curves": {"iteration": [1, 2]} | dict.fromkeys(figures.PANELS, [0, 0])})),
        ("no summary of a run", "[]"),
    ],
)
def test_what_is_no_summary(tmp_path, capsys, words, text):
    summary(tmp_path, "full", 0, [1, 2])
    (tmp_path / "ccrft" / "other-0.json").write_text(text)
    assert figures.main([f"--results={tmp_path}", f"--out={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and "other-0.json" in err


def test_runs_that_cannot_be_drawn_together(tmp_path, capsys):
    summary(tmp_path, "full", 0, [1, 2]).rename(tmp_path / "ccrft" / "copy.json")
    summary(tmp_path, "full", 0, [1, 2])
    assert figures.main([f"--results={tmp_path}", f"--out={tmp_path}"]) == 2
    assert "are both of variant full, seed 0" in capsys.readouterr().err
    (tmp_path / "ccrft" / "copy.json").unlink()
    summary(tmp_path, "full", 1, [3, 4])
    assert figures.main([f"--results={tmp_path}", f"--out={tmp_path}"]) == 2
    assert "full, accuracy: its seeds have no iterations in common" in capsys.readouterr().err
    assert figures.main(["--smooth=2"]) == 2 and "must be odd" in capsys.readouterr().err


def online(folder, variant, seed, accuracy, kl, updates, *, inside=None, name=None):
    """A made-up summary of a run that answered a stream of queries."""
    curves = {"iteration": list(range(1, len(accuracy) + 1)), "accuracy": accuracy, "kl": kl, "updates": updates}
    shares = inside and {"inside": inside, "below": 0.25, "above": 0.75 - inside, "median": 0.125, "p95": 0.3}
    value = {"variant": variant, "seed": seed, "curves": curves, "corridor": inside and {"after_warm_up": shares}}
    path = folder / "ttrl" / (name or f"{variant}-{seed}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_figure_4_by_hand(tmp_path):
    # Not every query is learnt from: the divergence stands at the number of the update.
    online(tmp_path, "safe", 0, [0.2, 0.4, 0.6, 0.8], [0.1, None, 0.3, 0.2], [1, None, 2, 3], inside=0.5)
    online(tmp_path, "safe", 1, [0.4, 0.4, 0.4, 0.4], [None, 0.3, None, 0.1], [None, 1, None, 2], inside=0.25)
    online(tmp_path, "frozen", 0, [0.5] * 4, [None] * 4, [None] * 4)
    online(tmp_path, "no_safety", 0, [0.1] * 4, [0.9] * 4, [1, 2, 3, 4])  # all of it was warm-up
    online(tmp_path, "other", 0, [0.1], [None], [None])  # is none of the figure's
    (tmp_path / "ttrl" / "kl_plant.json").write_text("{}")
    runs = figures.read_online_runs(tmp_path / "ttrl")
    assert [(run.variant, run.seed) for run in runs] == [("safe", 0), ("safe", 1), ("no_safety", 0), ("frozen", 0)]
    accuracy, divergence = figures.figure_4(runs).axes
    lines = {line.get_label(): line for line in accuracy.lines}
    assert list(lines) == ["safe (2 seeds)", "no_safety (1 seed)", "frozen (1 seed)"]
    np.testing.assert_allclose(lines["safe (2 seeds)"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(lines["safe (2 seeds)"].get_ydata(), [0.3, 0.4, 0.5, 0.6])
    lines = {line.get_label(): line for line in divergence.lines}
    assert list(lines) == ["safe (2 seeds)", "no_safety (1 seed)"]  # what is frozen does not diverge
    np.testing.assert_allclose(lines["safe (2 seeds)"].get_xdata(), [1, 2])
    np.testing.assert_allclose(lines["safe (2 seeds)"].get_ydata(), [0.2, 0.2])
    (shaded,) = divergence.patches
    assert (shaded.get_y(), shaded.get_height()) == pytest.approx((0.1, 0.1))
    expected = ["safe: 38 % inside, 25 % below, 38 % above; median 0.125, P95 0.300"]
    assert figures.corridor_lines(runs) == expected
    assert divergence.get_xlabel() == f"update\n{expected[0]}"


def test_means_over_fewer_queries_are_not_drawn_where_there_are_others(tmp_path):
    accuracy = [1.0] * 49 + [0.5] * 2
    online(tmp_path, "frozen", 0, accuracy, [None] * 51, [None] * 51)
    (run,) = figures.read_online_runs(tmp_path / "ttrl")
    np.testing.assert_allclose(run.curves["accuracy"], ([50, 51], [0.5, 0.5]))
    assert figures.RUNNING_MEAN == summarize_run.RUNNING_MEAN


def risks(folder, **changes):
    """A made-up record of risk_coverage.py."""
    curves = {"coverage": [0.5, 1.0]} | {
        name: {"risk": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]} for name in figures.WAYS
    }
    curves["ours"] = {"risk": [0.05, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]}
    record = {"curves": curves, "runs": [{}, {}], "queries": 5, "coverage": 0.8, "abstaining": {"coverage": 0.7, "risk": 0.11}}
    path = folder / "ttrl" / "risk_coverage.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))
    return path


def test_risk_against_coverage_by_hand(tmp_path):
    (axes,) = figures.figure_risk_coverage(json.loads(risks(tmp_path).read_text())).axes
    lines = {line.get_label(): line for line in axes.lines}
    ours = lines["vote over trajectories, by mass"]
    np.testing.assert_allclose((ours.get_xdata(), ours.get_ydata()), ([0.5, 1.0], [0.05, 0.2]))
    own = lines["where the vote abstains by itself"]
    np.testing.assert_allclose((own.get_xdata(), own.get_ydata()), ([0.7], [0.11]))
    assert set(figures.WAYS.values()) < set(lines)
    silent = json.loads(risks(tmp_path, abstaining={"coverage": 0.0, "risk": None}).read_text())
    labels = [line.get_label() for line in figures.figure_risk_coverage(silent).axes[0].lines]
    assert "where the vote abstains by itself" not in labels


def test_only_figures_whose_files_are_there_are_drawn(tmp_path, capsys):
    arguments, images = [f"--results={tmp_path}", f"--out={tmp_path / 'images'}"], tmp_path / "images"
    risks(tmp_path)
    assert figures.main(arguments) == 0
    assert sorted(path.name for path in images.iterdir()) == ["risk_coverage.svg"]
    summary(tmp_path, "full", 0, [1, 2])
    path = online(tmp_path, "safe", 0, [0.2, 0.4], [0.1, 0.3], [1, 2], inside=0.5)
    capsys.readouterr()
    assert figures.main(arguments) == 0
    assert sorted(path.name for path in images.iterdir()) == ["figure_3.svg", "figure_4.svg", "risk_coverage.svg"]
    out = capsys.readouterr().out
    assert str(path) in out and "safe: 50 % inside" in out
    drawn = (images / "figure_4.svg").read_bytes()
    assert b"safe (1 seed)" in drawn and b"50 % inside" in drawn
    assert figures.main(arguments) == 0 and (images / "figure_4.svg").read_bytes() == drawn


def test_what_cannot_be_drawn_of_a_stream(tmp_path, capsys):
    def refused(words):
        assert figures.main([f"--results={tmp_path}", f"--out={tmp_path / 'images'}"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err, err

    online(tmp_path, "other", 0, [0.1], [None], [None], name="safe-0.json")
    refused("its variant 'other' is none of safe, no_safety, frozen")
    online(tmp_path, "safe", 0, [0.1, 0.2], [0.1, 0.2], [2, 1])
    refused("its updates do not increase")
    summary(tmp_path, "full", 0, [1, 2]).rename(tmp_path / "ttrl" / "safe-0.json")  # of another phase
    refused("safe-0.json is no summary of a run: it has no 'updates'")
    online(tmp_path, "safe", 0, [0.1], [None], [None])
    online(tmp_path, "safe", 0, [0.1], [None], [None], name="safe-1.json")
    refused("are both of variant safe, seed 0")
    (tmp_path / "ttrl" / "safe-1.json").unlink()
    risks(tmp_path, curves={"coverage": [0.5]})
    refused("risk_coverage.json is no record of risk_coverage.py: it has no 'majority'")
    risks(tmp_path).write_text("[")
    refused("is no record of risk_coverage.py: Expecting")
    assert not (tmp_path / "images").exists()


COMMAND = [
    "/opt/lab/pixelis_jax/__main__.py", "train", f"--config={ROOT}/configs/a b.py", "--workdir=/home/me/runs/full",
    "--config.seed=7", "--config.weights.curiosity=0.0", "--config.init_from=/home/me/sft",
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    """Makes a work directory with metrics, a list of (step, time, scalars) a shard."""

    def make(*shards, seed=7):
        config = {"seed": seed, "weights": {"curiosity": 0.0, "task": 1.0}, "init_from": "/home/me/sft"}
        devices = {"platform": "cpu", "kind": "cpu", "count": 2}
        environment = {"command": COMMAND, "commit": "abc+dirty", "machine": "Linux-x86_64", "devices": devices}
        Workdir.create(tmp_path / "run", config=config, environment=environment)
        for number, rows in enumerate(shards):
            lines = [json.dumps({"step": step, "time": time, **scalars}) for step, time, scalars in rows]
            (tmp_path / "run" / f"metrics-{number}-0.jsonl").write_text("".join(line + "\n" for line in lines))
        if queries := [step - 1 for rows in shards for step, _, scalars in rows if "accuracy/greedy" in scalars]:
            answers = [json.dumps({"number": number, "query": f"read-shift-{number}"}) for number in queries]
            (tmp_path / "run" / "answers.jsonl").write_text("".join(line + "\n" for line in answers))
        return tmp_path / "run"

    return make


def made(workdir, tmp_path, *arguments):
    options = ["--study=ccrft", "--variant=full", "--seed=7", f"--results={tmp_path / 'results'}"]
    return summarize_run.main([str(workdir), *options, *arguments])


def test_a_summary_is_what_the_work_directory_says(workdir, tmp_path, capsys):
    accuracy = summarize_run.METRICS["accuracy"]
    one = [(1, 100.0, {accuracy: 0.5, "kl": "nan"}), (2, 160.0, {"loss": 3}), (3, 220.0, {accuracy: 0.25, "kl": 0.125})]
    run = workdir(one, [(1, 100.5, {accuracy: 0.7}), (4, 5000.0, {"rollout/chain": 2})])
    (tmp_path / "results.json").write_text(
        '{"model": "/home/me", "config": {"split": "test"}, "results": {"with_tools": {"n": 3}}}'
    )
    assert made(run, tmp_path, f"--eval={tmp_path / 'results.json'}") == 0
    path = tmp_path / "results" / "ccrft" / "full-7.json"
    assert capsys.readouterr().out == f"{path}: 3 points a curve\n"
    found = json.loads(path.read_text())
    # Step 1 is the mean of two processes, step 2 has none of the metrics.
    assert found["curves"] == {
        "iteration": [1, 3, 4],
        "accuracy": [0.6, 0.25, None],
        "rapr": [None] * 3,
        "racpr": [None] * 3,
        "chain": [None, None, 2.0],
        "valid_calls": [None] * 3,
        "kl": [None, 0.125, None],
    }
    assert found["wall_time_s"] == 120  # the pause of 4,780 s before the last row is none of it
    assert shlex.split(found["command"]) == [
        "pixelis", "train", "--config=configs/a b.py", "--workdir=full", "--config.seed=7", "--config.weights.curiosity=0.0",
        "--config.init_from=sft",
    ]  # fmt: skip
    assert found["config_diff"] == {"seed": 7, "weights.curiosity": 0.0, "init_from": "sft"}
    assert (found["study"], found["variant"], found["seed"]) == ("ccrft", "full", 7)
    assert (found["commit"], found["machine"]) == ("abc+dirty", "Linux-x86_64, 2 x cpu")
    assert found["eval"] == {"config": {"split": "test"}, "results": {"with_tools": {"n": 3}}}
    assert "/home" not in path.read_text() and str(ROOT) not in path.read_text()


def test_a_summary_is_drawn(workdir, tmp_path):
    run = workdir([(step, float(step), dict.fromkeys(summarize_run.METRICS.values(), step / 10)) for step in range(1, 6)])
    assert made(run, tmp_path) == 0
    (panel, *_) = figures.figure_3(figures.read_runs(tmp_path / "results" / "ccrft")).axes
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [0.1, 0.2, 0.3, 0.4, 0.5])


def stream(queries, *, updated=lambda query: True):
    """Rows of a run that answers queries, every second one right; where it is updated its divergence is 0.01 times the query."""
    rows = []
    for query in range(1, queries + 1):
        scalars = {"accuracy/greedy": query % 2, "accuracy/vote": 1.0, "beta": 0.5, "rolled_back": 0, "abstained": 0}
        scalars |= {"learnt": 1, "kl": 0.01 * query} if updated(query) else {"learnt": 0}
        rows.append((query, float(query), scalars))
    return rows


def test_a_stream_of_queries_by_hand(workdir, tmp_path):
    run = workdir(stream(6, updated=lambda query: query != 3))
    assert made(run, tmp_path) == 0
    found = json.loads((tmp_path / "results" / "ccrft" / "full-7.json").read_text())
    assert found["curves"] == {
        "iteration": [1, 2, 3, 4, 5, 6],
        "accuracy": [1.0, 0.5, pytest.approx(2 / 3, abs=1e-5), 0.5, 0.6, 0.5],
        "vote": [1.0] * 6,
        "kl": [0.01, 0.02, None, 0.04, 0.05, 0.06],
        "beta": [0.5] * 6,
        "rolled_back": [0.0] * 6,
        "learnt": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        "abstained": [0.0] * 6,
        "updates": [1.0, 2.0, None, 3.0, 4.0, 5.0],
    }
    assert found["items"] == {
        "queries": [f"read-shift-{number}" for number in range(6)],
        "accuracy": "101010",
        "vote": "111111",
    }


def test_running_means_and_shares_are_taken_before_points_are_thinned(workdir, tmp_path):
    run = workdir(stream(1000))
    config = json.loads((run / "config.json").read_text()) | {"kl": {"warm_up": 15}}
    (run / "config.json").write_text(json.dumps(config))
    assert made(run, tmp_path) == 0
    found = json.loads((tmp_path / "results" / "ccrft" / "full-7.json").read_text())
    curves = found["curves"]
    assert len(curves["accuracy"]) == 500 and curves["accuracy"][0] == 0.75  # of 1 and 0.5
    assert curves["accuracy"][25:] == [0.5] * 475  # 50 queries: half are right, whichever
    assert curves["updates"][:2] == [1.5, 3.5] and curves["kl"][:2] == [0.015, 0.035]
    # 0.01 .. 10: 9 lie below 0.10 and 11 up to 0.20; without the first 15 there are 5 left within, and none below.
    corridor = found["corridor"]
    assert (corridor["bottom"], corridor["top"], corridor["warm_up"], corridor["not_finite"]) == (0.1, 0.2, 15, 0)
    assert (corridor["all"]["updates"], corridor["after_warm_up"]["updates"]) == (1000, 985)
    assert (corridor["all"]["below"], corridor["all"]["inside"]) == (0.009, 0.011)
    assert (corridor["after_warm_up"]["below"], corridor["after_warm_up"]["inside"]) == pytest.approx((0, 5 / 985))
    assert corridor["after_warm_up"]["median"] == pytest.approx(5.08)


def test_a_stream_without_updates_has_no_corridor(workdir, tmp_path):
    never = stream(3, updated=lambda query: False)
    assert made(workdir([*never, (4, 4.0, {"accuracy/greedy": 1, "kl": "inf"})]), tmp_path) == 0
    found = json.loads((tmp_path / "results" / "ccrft" / "full-7.json").read_text())
    assert found["corridor"] is None and found["curves"]["kl"] == [None] * 4
    # Such a summary is drawn as a line of accuracies.
    path = tmp_path / "ttrl" / "frozen-7.json"
    path.parent.mkdir()
    path.write_text(json.dumps(found | {"variant": "frozen"}))
    accuracy, divergence = figures.figure_4(figures.read_online_runs(path.parent)).axes
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [1, 0.5, 2 / 3, 0.75], atol=1e-5)
    assert not divergence.lines


def test_a_divergence_that_is_not_finite_is_counted_apart(workdir, tmp_path):
    assert made(workdir([*stream(2), (3, 3.0, {"accuracy/greedy": 1, "kl": "nan"})]), tmp_path) == 0
    corridor = json.loads((tmp_path / "results" / "ccrft" / "full-7.json").read_text())["corridor"]
    assert corridor["not_finite"] == 1 and corridor["all"]["updates"] == 2 and corridor["warm_up"] == 0


def test_many_points_are_thinned_to_means_of_stretches(workdir, tmp_path):
    name = summarize_run.METRICS["rapr"]
    run = workdir([(step, float(step), {name: float(step % 2)}) for step in range(1, 1001)])
    assert made(run, tmp_path) == 0
    curves = json.loads((tmp_path / "results" / "ccrft" / "full-7.json").read_text())["curves"]
    assert curves["iteration"][:2] == [1.5, 3.5] and curves["rapr"] == [0.5] * 500
    assert {len(points) for points in curves.values()} == {500}


def test_what_cannot_be_summarized(workdir, tmp_path, capsys):
    run = workdir([(1, 0.0, {"loss": 2.0})])

    def refused(words, *arguments, of=run):
        assert made(of, tmp_path, *arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("summarize_run: ") and err.count("\n") == 1 and words in err, err

    refused("its metrics are loss")
    refused("--seed=8, but", "--seed=8")
    refused("cannot be part of a file's name", "--variant=../x")
    refused("is not a directory", of=tmp_path / "none")
    (run / "metrics-0-1.jsonl").write_text('{"step": 2, "time": 1, "kl": 0.5}\n')
    refused("No such file", f"--eval={tmp_path / 'none.json'}")
    refused("is no results.json", f"--eval={run / 'config.json'}")
    (run / "metrics-0-1.jsonl").write_text('{"step": 2, "time": 1, "accuracy/greedy": 1, "accuracy/vote": 1}\n')
    refused("answers.jsonl: No such file")
    (run / "answers.jsonl").write_text('{"number": 0, "query": "read-shift-0"}\n')
    refused("does not hold the queries")
    assert not (tmp_path / "results").exists()
    (run / "metrics-0-1.jsonl").write_text("{")
    refused("damaged")
