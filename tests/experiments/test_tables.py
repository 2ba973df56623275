"""What the README and the pages of docs/ say is what the artefacts say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "page"), [("tiny_sft", "README.md"), ("kl_plant", "docs/ttrl.md")])
def test_the_numbers_of_a_page_are_those_of_the_artefact(tables, name, page):
    printed = getattr(tables, name)()
    assert printed.count("\n") > 8
    assert printed in (ROOT / page).read_text()


def test_marked_tables_are_those_of_the_artefacts_and_are_put_back(tables, tmp_path):
    for page, mark in tables.MARKED:
        text = (ROOT / "docs" / page).read_text()
        assert text.count(f"<!-- {mark} -->") == text.count(f"<!-- end {mark} -->") == 1
        (tmp_path / page).write_text(text)
    assert tables.write(tmp_path) == []
    plan = (tmp_path / "plan.md").read_text()
    (tmp_path / "plan.md").write_text(plan.replace("| 8b | sft | v5e-256 |", "| 8b | sft | v5e-255 |"))
    assert tables.write(tmp_path) == ["plan.md: TABLE"]
    assert (tmp_path / "plan.md").read_text() == plan
