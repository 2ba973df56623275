"""Small media, and the test tools of `lab_tools` on the import path of this process and of its workers."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from lab_media import write_clip  # noqa: E402

from tools_host.config import ToolsConfig  # noqa: E402

LAB_TOOLS = ("lab_crop", "lab_film", "lab_all_types", "lab_fault", "lab_engine")


@pytest.fixture(scope="session")
def lab_config() -> ToolsConfig:
    return ToolsConfig(tools=LAB_TOOLS, imports=("lab_tools",))


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PNG of 200 x 100 random pixels."""
    path = tmp_path_factory.mktemp("media") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two seconds at 10 frames a second; see `write_clip`."""
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mp4")
