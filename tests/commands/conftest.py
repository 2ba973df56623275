"""Runs commands in this process, on a random tiny policy with a tokenizer of a few texts."""

import dataclasses
import sys
from pathlib import Path

import pytest
from flax import nnx

from pixelis_jax import cli
from pixelis_jax.commands import models
from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.data.look import encoder_of
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.policy import Qwen3VL

sys.path.insert(0, str(Path(__file__).parent.parent / "rollout"))  # scripted_engine


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Instead of one in each run's directory: runs of the same shapes compile once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def encoder():
    """The tiny policy's, with one layer."""
    encoder = encoder_of(TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(["What is on the red card?", "<answer>"]))))
    text = dataclasses.replace(encoder.model.text, num_hidden_layers=1)
    vision = dataclasses.replace(encoder.model.vision, depth=1, deepstack_visual_indexes=(0,))
    return dataclasses.replace(encoder, model=dataclasses.replace(encoder.model, text=text, vision=vision))


@pytest.fixture(scope="session")
def base(encoder, tmp_path_factory):
    """A model directory with random weights."""
    directory = tmp_path_factory.mktemp("models") / "base"
    models.save(Qwen3VL(encoder.model, rngs=nnx.Rngs(0)), encoder, directory)
    return directory


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty directory: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run, tmp_path):
    """Checks that a command is refused in one line that holds `words`, and that it leaves nothing behind."""

    def check(words, *arguments):
        before = sorted(tmp_path.rglob("*"))
        status, _, err = run(*arguments)
        assert status == 2 and err.startswith("pixelis: ") and err.count("\n") == 1 and words in err, err
        assert sorted(tmp_path.rglob("*")) == before

    return check
