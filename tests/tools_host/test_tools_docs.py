"""docs/tools.md tells the truth: its table is the registry's, and its examples run."""

import base64
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tools_host.backend import BACKENDS
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.pool import InlinePool
from tools_host.protocol import ERROR_CODES, ToolCall
from tools_host.schema import TOOLS

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found, name
    return found[1]


def test_the_table_is_the_registrys() -> None:
    config = ToolsConfig()
    config.load()
    for name in config.tools:
        tool = TOOLS[name]
        backends = [f"`{entry.name}`" for entry in BACKENDS.values() if entry.tool == name and entry.name != "paddleocr"]
        own = [argument for argument in tool.arguments if not (tool.stands_in and argument.name == "region")]
        arguments = ", ".join(argument.name + ("" if argument.required else "?") for argument in own)
        cells = [f"`{name}`", tool.paper, ", ".join(tool.kinds), f"`{arguments}`", ", ".join(backends) or "built in"]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_every_error_code_is_explained() -> None:
    assert all(f"`{code}`" in PAGE for code in ERROR_CODES)


def test_the_example_of_a_tool_runs(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_lab_tools")
    monkeypatch.setitem(sys.modules, "my_lab_tools", module)
    exec(example("tool"), module.__dict__)
    config = ToolsConfig(tools=("sharpness",), imports=("my_lab_tools",))
    environment = EpisodeEnvironment([photo], config)
    call = ToolCall(name="sharpness", arguments={"media": 1, "bbox_2d": [0, 0, 500, 500]})
    seen = environment.run(call, InlinePool(config))
    assert seen.ok and seen.data["variance"] > 1000 and seen.text.startswith("sharpness ")


FAKE_ENGINE = """
class PaddleOCR:
    def __init__(self, lang):
        print("a model is loading ...")

    def predict(self, image):
        assert image.shape == (4, 6, 3)
        return [{"rec_boxes": [[0, 1, 2, 3]], "rec_texts": [f"blue {image[0, 0, 0]}"], "rec_scores": [0.5]}]
"""


def test_the_example_of_a_back_end_in_its_own_interpreter_runs(tmp_path: Path) -> None:
    """With a stand-in for the engine, whose chatter must not disturb the protocol."""
    (tmp_path / "paddleocr.py").write_text(FAKE_ENGINE)
    (tmp_path / "script.py").write_text(example("script"))
    module = types.ModuleType("my_lab_backends")
    exec(example("adapter"), module.__dict__)
    reader = module.__dict__["PaddleReader"](python=sys.executable, script=str(tmp_path / "script.py"))
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 2] = 200
    line = reader.read(image)[0]
    assert (line.box_px, line.text, line.score) == ((0, 1, 2, 3), "blue 200", 0.5)


def test_the_protocol_needs_nothing_of_ours(tmp_path: Path) -> None:
    """The lines of the page's table, written by hand."""
    (tmp_path / "paddleocr.py").write_text(FAKE_ENGINE)
    (tmp_path / "script.py").write_text(example("script"))
    data = base64.b64encode(bytes(72)).decode()
    array = {"__array__": data, "dtype": "uint8", "shape": [4, 6, 3]}
    asked = json.dumps({"id": 1, "method": "read", "params": {"image": array}}) + "\nnot JSON\n"
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == {"ready": True} and lines[1]["id"] == 1 and lines[1]["result"][0]["text"] == "blue 0"
