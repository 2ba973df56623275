"""The notebooks: readable as they are committed, and every cell runs."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:/[A-Za-z][\w.-]*/|~/|[A-Za-z]:\\)")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in a kernel of this environment; nothing outside the test's directory is written."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        place = {"metadata": {"path": str(tmp_path)}}
        return NotebookClient(notebook, kernel_name="python3", timeout=240, resources=place).execute()

    return run


def test_there_is_one() -> None:
    assert [path.name for path in NOTEBOOKS] == ["inspect_checkpoint.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_reads_as_a_tutorial(path: Path) -> None:
    """Text says what comes before every piece of code, which does something; no output is committed, no path of a machine."""
    notebook = read(path)
    nbformat.validate(notebook)
    cells = notebook.cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for before, cell in zip(cells, cells[1:], strict=False):
        assert "markdown" in (before.cell_type, cell.cell_type), f"code without a word before it: {cell.source[:60]}"
    for cell in cells:
        assert cell.source.strip() and not ABSOLUTE.search(cell.source), cell.source[:60]
        if cell.cell_type == "markdown":
            assert len(cell.source.split()) >= 5, cell.source
        else:
            assert ast.parse(cell.source).body, "nothing but comments"
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_points_at_exists(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    files = re.findall(r"`([\w./]+\.(?:py|md|json))`", text)
    assert all((ROOT / file).exists() for file in files if "/" in file) and any("/" in file for file in files)
    targets = re.findall(r"`make (\w+)`", text)
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    ("text", "found"),
    [("open('/home/me/x')", True), ("~/runs", True), ("C:\\runs", True), ("a/b/c and 1 / 2", False), ("https://a.org/b", False)],
)
def test_an_absolute_path_is_recognised(text: str, found: bool) -> None:
    assert bool(ABSOLUTE.search(text)) == found


@pytest.mark.notebook
def test_an_error_in_a_cell_would_be_seen(execute) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", "1 / 0")]
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(nbformat.v4.new_notebook(cells=cells))


@pytest.mark.notebook
def test_inspect_checkpoint_runs_and_shows_what_it_says(execute, tmp_path: Path) -> None:
    notebook = execute(read(FOLDER / "inspect_checkpoint.ipynb"))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "policy: tiny_sft at step 0" in printed
    assert re.search(r"^9\d arrays, 1,\d{3},\d{3} numbers$", printed, re.MULTILINE)
    assert "on 2x2x2   P('tensor', 'fsdp')" in printed
    assert "visual/patch_embed/kernel (384, 96) float32 144 KiB" in printed
    # The policy zooms, segments and measures; what it says is what was drawn.
    assert re.search(r"1\. .*\n   zoom\{.*\n(.*\n)*2\. .*\n   segment\{", printed)
    (known,) = re.findall(r"^Known answer: (.+)$", printed, re.MULTILINE)
    assert re.findall(r"^Answer: (.+)$", printed, re.MULTILINE) == [known]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2 + 1 + 3  # sizes and filters, the question's image, one row a step
    assert not list((tmp_path / "tmpdir").glob("checkpoint-*"))
