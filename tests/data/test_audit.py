"""The audit finds what a careless split would share; the TFDS builder keeps every byte."""

import json
import shutil
import sys

import numpy as np
import pytest

from pixelis_jax.data.audit import audit, near_pairs, summary
from pixelis_jax.data.build import build, load_examples, load_traces


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    for split in ("train", "test"):
        list(build(folder, split, {"read": 5, "shape": 3}, workers=0))
    return folder


def test_near_pairs_counts_bits():
    left, right = np.array([0b1111, 0], np.uint64), np.array([0b0111, 2**63], np.uint64)
    assert near_pairs(left, right, 1) == [(0, 0, 1), (1, 1, 1)]
    assert near_pairs(left, right, 3) == [(0, 0, 1), (1, 0, 3), (1, 1, 1)]


def test_our_splits_are_apart(built):
    report = audit(built)
    assert report["clean"] and report["media"] == {"train": 8, "test": 8}
    assert summary(report).endswith("\nclean")
    json.dumps(report)


def test_a_leak_is_found(built, tmp_path):
    shutil.copytree(built, tmp_path / "leaky")
    train, test = tmp_path / "leaky/train", tmp_path / "leaky/test"
    shutil.copy(train / "examples-read-00000.jsonl", test / "examples-read-00000.jsonl")
    for path in (train / "media").iterdir():
        shutil.copy(path, test / "media")
    (pair,) = audit(tmp_path / "leaky")["pairs"]
    assert pair["same_files"] == 5 and len(pair["near_duplicates"]) >= 5 and len(pair["shared_answers"]) == 5


def test_tfds_gives_back_every_example_and_byte_without_tensorflow(built, tmp_path):
    tfds_builder = pytest.importorskip("pixelis_jax.data.tfds_builder")
    tfds_builder.PixelisScenes(source=built, data_dir=tmp_path).download_and_prepare()
    source = tfds_builder.PixelisScenes(data_dir=tmp_path).as_data_source(split="train")
    found = {}
    for index in range(len(source)):
        example, data = tfds_builder.record_example(source[index])
        found[example.id] = (example, data)
    traces = {trace.example: trace for _, trace in load_traces(built, "train")}
    for folder, example in load_examples(built, "train"):
        read, data = found[example.id]
        assert data == (folder / example.media[0]).read_bytes()
        assert (read.question, read.truth, read.gold) == (example.question, example.truth, traces.get(example.id))
    assert len(found) == 8
    assert "tensorflow" not in sys.modules


def test_tfds_says_what_is_missing(tmp_path):
    from pixelis_jax.data.tfds_builder import PixelisScenes

    with pytest.raises(ValueError, match="source=FOLDER"):
        PixelisScenes(data_dir=tmp_path / "a").download_and_prepare()
    with pytest.raises(ValueError, match="pixelis data build"):
        PixelisScenes(source=tmp_path / "b", data_dir=tmp_path / "c").download_and_prepare()
