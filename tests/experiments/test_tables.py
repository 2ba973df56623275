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
