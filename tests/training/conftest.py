"""The scripted policy, and what its learners have compiled, for the tests of a module."""

import jax
import pytest
import scripted_answers as scripted


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """Learners and runs of the same shapes compile once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def encoder():
    return scripted.make_encoder()


@pytest.fixture(scope="module")
def model(encoder):
    return scripted.make_model(encoder)
