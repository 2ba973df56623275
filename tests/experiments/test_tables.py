"""What the README and the pages of docs/ say is what the artefacts say."""

import json
from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "page"), [("tiny_sft", "README.md"), ("kl_plant", "docs/ttrl.md")])
def test_the_numbers_of_a_page_are_those_of_the_artefact(name, page):
    printed = getattr(tables, name)()
    assert printed.count("\n") > 8
    assert printed in (ROOT / page).read_text()


def test_marked_tables_are_those_of_the_artefacts_and_are_put_back(tmp_path):
    for page, mark in tables.MARKED:
        text = (ROOT / "docs" / page).read_text()
        assert text.count(f"<!-- {mark} -->") == text.count(f"<!-- end {mark} -->") == 1
        (tmp_path / page).write_text(text)
    assert tables.write(tmp_path) == []
    plan = (tmp_path / "plan.md").read_text()
    (tmp_path / "plan.md").write_text(plan.replace("| 8b | sft | v5e-256 |", "| 8b | sft | v5e-255 |"))
    assert tables.write(tmp_path) == ["plan.md: TABLE"]
    assert (tmp_path / "plan.md").read_text() == plan


def test_streams_are_compared_query_by_query(tmp_path, monkeypatch):
    """By hand: whatever the order, and only queries that every run has."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "ttrl").mkdir()

    def run(variant, seed, **right):
        items = {
            "queries": list(right),
            "accuracy": "".join(v[0] for v in right.values()),
            "vote": "".join(v[1] for v in right.values()),
        }
        (tmp_path / "ttrl" / f"{variant}-{seed}.json").write_text(json.dumps({"items": items}))

    for seed in range(2):
        run("safe", seed, a="11", b="01", c="11", d="11")
        run("frozen", seed, d="10", c="01", b="01", a="11")
    run("safe", 2, c="00", d="11", a="11", e="11")
    run("frozen", 2, a="10", c="00", d="00", e="00")
    rows = {line.split(" | ")[0]: line for line in tables.stream().splitlines()}
    # Greedy of a, c and d: learning 3, 3 and 2 of 3, frozen 2, 2 and 1.
    greedy = rows["| greedy, learning - greedy, frozen"]
    assert (
        greedy.startswith("| greedy, learning - greedy, frozen | 88.9 % | 55.6 % | +33.3 | ")
        and "| +33.3, +33.3, +33.3 |" in greedy
    )
    # Votes: learning 3, 3 and 2, frozen 2, 2 and 0.
    assert "| 88.9 % | 44.4 % | +44.4 | " in rows["| vote of 8, learning - vote of 8, frozen"]
    assert tables.stream().endswith("3 queries that every seed has, 3 seeds.")


def test_controls_are_compared_with_the_start_and_with_the_whole_seed_by_seed(tmp_path, monkeypatch):
    """By hand: three questions."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "ttrl" / "eval").mkdir(parents=True)
    runs = {"tiny_sft_early": "001", "short_safe-0": "111", "short_safe-1": "011", "ans_ssc-1": "001"}
    runs |= {"value_off-0": "111", "value_off-1": "011", "poison_value_off-1": "000"}
    for name, right in runs.items():
        record = {
            "questions": "q",
            "items": {"with_tools": right},
            "with_tools": {"accuracy": right.count("1") / 3, "mean_chain": 1},
        }
        (tmp_path / "ttrl" / "eval" / f"{name}.json").write_text(json.dumps(record))
        (tmp_path / "ttrl" / f"{name}.json").write_text(json.dumps({"curves": {"learnt": [1, 0, 1]}}))
    (tmp_path / "ttrl" / "drift.json").write_text(json.dumps({"divergence": {"short_safe-0": 0.02, "short_safe-1": 0.04}}))
    whole, answers, _, _, _, poison = tables.controls().splitlines()[2:]
    assert whole.startswith("| `short_safe` | as shipped | 2 | 2, 2 | 0.030 | 83.3 % | 1.00 | +50.0 | ") and whole.endswith(
        "| - | - | - |"
    )
    assert answers.startswith("| `ans_ssc` | votes by answers alone (Ans-SSC) | 1 | 2 | - | 33.3 % | 1.00 | +0.0 | ")
    assert "`poison_value_off` less `value_off`: -66.7 points" in poison  # on the seed that both have
    assert " | -33.3 | " in answers  # less the whole with the same seed
