"""The optimiser: its schedule, and what it shrinks."""

import io

import jax.numpy as jnp
import micro
import numpy as np
import rich.console
from flax import nnx

from pixelis_jax.training import optimizer
from pixelis_jax.training.progress import Progress


def test_the_schedule_warms_up_and_comes_down() -> None:
    config = micro.make_config("unused").optimizer
    schedule = optimizer.learning_rate(config, 12)
    np.testing.assert_allclose([schedule(0), schedule(1), schedule(2), schedule(7), schedule(12)],
                               [0.0, 0.005, 0.01, 0.0055, 0.001], atol=1e-8)  # fmt: skip


def test_norms_and_biases_are_not_shrunk() -> None:
    mask = optimizer.decayed(nnx.to_pure_dict(nnx.state(nnx.eval_shape(micro.make_model))))
    attention = mask["visual"]["blocks"][0]["attn"]
    assert attention["qkv"] and not attention["qkv_bias"]
    assert mask["decoder"]["embedding"] and not mask["decoder"]["norm"]["scale"]


def test_a_step_without_gradient_shrinks_matrices_alone() -> None:
    config = micro.make_config("unused").optimizer
    config.warmup_steps = 0
    rule = optimizer.create_optimizer(config, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = rule.update(zeros, rule.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.01 * 0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_progress_prints_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with Progress("sft", start=0, total=10, console=rich.console.Console(file=out)) as progress:
        progress.advance(5)
        progress.report(5, {"loss": 1.25})
        progress.say("stopped")
    assert out.getvalue() == "sft 5/10  loss 1.25\nstopped\n"


def test_progress_shows_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with Progress("sft", start=0, total=10, console=rich.console.Console(file=out, force_terminal=True)) as progress:
        progress.advance(5)
        progress.report(5, {"loss": 1.25})
    assert "5/10" in out.getvalue() and "loss 1.25" in out.getvalue() and "\x1b[" in out.getvalue()
