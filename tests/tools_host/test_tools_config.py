"""The config: plain data, checked by name, versions for the trajectory."""

import dataclasses
import hashlib
import pickle
from pathlib import Path

import pytest

from tools_host.backend import BACKENDS, Backend, backend
from tools_host.config import ToolsConfig
from tools_host.registry import UnknownNameError


def test_it_pickles_and_hashes_by_value(lab_config: ToolsConfig) -> None:
    twin = pickle.loads(pickle.dumps(lab_config))
    assert twin == lab_config and hash(twin) == hash(lab_config) and twin.key == lab_config.key
    assert dataclasses.replace(lab_config, max_lines=3).key != lab_config.key


def test_versions_name_tool_back_end_and_options(lab_config: ToolsConfig) -> None:
    lab_config.load()
    versions = lab_config.tool_versions()
    assert list(versions) == list(lab_config.tools)
    assert versions["lab_crop"] == {"backend": "builtin", "version": "1", "weights_sha256": None}
    assert versions["lab_engine"] == {"backend": "counter", "version": "2+7", "weights_sha256": None}
    other = dataclasses.replace(lab_config, backends={"lab_engine": "fixed"})
    assert other.tool_versions()["lab_engine"]["backend"] == "fixed"
    optioned = dataclasses.replace(lab_config, backend_options={"lab_engine": {"start": 3}})
    assert optioned.version("lab_engine").startswith("2+7+")
    assert optioned.version("lab_engine") != lab_config.version("lab_engine")


def test_weights_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    entry = Backend(tool="t", name="b", load=dict, version="1", weights=lambda folder: (Path(folder) / "weights",))
    inner = hashlib.sha256(b"abc").digest()
    assert entry.weights_sha256({"folder": str(tmp_path)}) == hashlib.sha256(inner).hexdigest()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tools": ("lab_cropp",)}, UnknownNameError, "did you mean 'lab_crop'"),
        ({"backends": {"lab_engine": "fixt"}}, UnknownNameError, "did you mean 'lab_engine/fixed'"),
        ({"backends": {"lab_crop": "x"}}, UnknownNameError, "unknown back-end 'lab_crop/x'"),
        ({"backend_options": {"lab_engine": {"strat": 1}}}, ValueError, r"no option 'strat' \(known: start\)"),
        ({"backend_options": {"lab_crop": {"start": 1}}}, ValueError, "takes no options"),
        ({"imports": ("no_such_lab",)}, ImportError, "no_such_lab"),
    ],
)
def test_wrong_names_are_told(changes: dict[str, object], error: type[Exception], message: str, lab_config: ToolsConfig) -> None:
    lab_config.load()
    with pytest.raises(error, match=message):
        dataclasses.replace(lab_config, **changes).load()  # type: ignore[arg-type]


def test_a_back_end_is_registered_once(lab_config: ToolsConfig) -> None:
    lab_config.load()
    assert [name for name in BACKENDS if name.startswith("lab_engine/")] == ["lab_engine/counter", "lab_engine/fixed"]
    with pytest.raises(ValueError, match="registered twice"):
        backend("lab_engine", "fixed", version="9")(dict)


def test_the_six_tools_of_the_paper_are_the_default() -> None:
    config = ToolsConfig()
    config.load()
    assert [schema["function"]["name"] for schema in config.schemas()] == [
        "zoom",
        "segment",
        "track",
        "ocr",
        "localize",
        "properties",
    ]
