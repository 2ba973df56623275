"""What the README says is what the artefacts say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_numbers_of_the_readme_are_those_of_the_artefact():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    printed = tables.tiny_sft()
    assert printed.count("\n") > 8
    assert printed in (ROOT / "README.md").read_text()
