"""Reinforcement learning from the command line: what `pixelis train` does for a config whose phase is `ccrft`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.policy import Qwen3VL
    from pixelis_jax.training.loop import Result

VARIANTS, CREDITS = ("ensemble", "paper"), ("trajectory", "step")


def check(path: Path, config: ConfigDict) -> None:
    """Raises UserError for what only such a config has, and that no run can have."""
    from pixelis_jax.commands.configs import flat
    from pixelis_jax.training.ccrft import control_settings

    def whole(value: Any, least: int = 1) -> bool:
        return isinstance(value, int) and value >= least

    def number(value: Any, least: float = 0.0, most: float = math.inf) -> bool:
        return isinstance(value, int | float) and least <= value <= most

    ranges: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        (
            "a whole number of at least 1",
            whole,
            "prompts minibatches rollout.slots rollout.workers rollout.max_steps rollout.max_turn_tokens curiosity.heads "
            "curiosity.hidden curiosity.steps curriculum.window curriculum.patience patience save_trajectories_every "
            "microbatch.rows microbatch.tokens microbatch.frames microbatch.weighted",
        ),
        ("a whole number of at least 2", lambda value: whole(value, 2), "samples"),
        ("a whole number of at least 0", lambda value: whole(value, 0), "refills usage.most_calls kl.warm_up"),
        (
            "a number above 0",
            lambda value: number(value) and value > 0,
            "temperature curiosity.learning_rate advantage.least_std",
        ),
        (
            "a number of at least 0",
            number,
            "weights.curiosity weights.coherence weights.penalty weights.usage usage.target usage.fine clip.low clip.high "
            "curriculum.gain curriculum.drop floors.entropy",
        ),
        ("a share, 0 to 1", lambda value: number(value, 0, 1), "floors.valid_calls floors.rapr"),
        (f"one of {', '.join(VARIANTS)}", lambda value: value in VARIANTS, "curiosity.variant"),
        (f"one of {', '.join(CREDITS)}", lambda value: value in CREDITS, "advantage.credit"),
    )
    values = flat(config.to_dict())
    for words, fits, names in ranges:
        for name in names.split():
            if not fits(values[name]):
                raise UserError(f"{path}: {name} must be {words}, got {values[name]!r}")
    if config.minibatches > config.prompts * config.samples:
        raise UserError(f"{path}: minibatches is {config.minibatches}, more than the {config.prompts * config.samples} episodes")
    if not config.init_from:
        raise UserError(f"{path}: init_from is empty: reinforcement learning starts from a policy that can call tools")
    try:
        control_settings(config.kl)
    except ValueError as error:
        raise UserError(f"{path}: kl: {error}") from error
    if not config.kl.least <= config.kl.beta <= config.kl.most:
        raise UserError(f"{path}: kl.beta is {config.kl.beta}, outside {config.kl.least} to {config.kl.most}")


def train(config: ConfigDict, workdir: Path, loaded: Loaded) -> tuple[Qwen3VL, Result]:
    """Builds the questions, samples and updates.

    Args:
      config: See `configs/tiny_ccrft.py`.
      workdir: The run's directory.
      loaded: The initial policy.

    Raises:
      UserError: There are several processes.
      WorkdirError: The directory is another run's, or no work directory.
      CollapseError: What is sampled has fallen under a floor.
      FloatingPointError: A loss or gradient is not finite.
    """
    import jax

    from pixelis_jax import sharding
    from pixelis_jax.commands.eval import build_examples
    from pixelis_jax.commands.session import TIMEOUT_S
    from pixelis_jax.evaluation.run import judge
    from pixelis_jax.rollout.agent import Agent, EpisodeLimits, banned_ids, make_engine
    from pixelis_jax.training import ccrft
    from pixelis_jax.training.collecting import Collector
    from tools_host.config import ToolsConfig
    from tools_host.pool import WorkerPool

    if jax.process_count() > 1:
        raise UserError("the phase ccrft runs in one process; give it all devices of one host")
    scenes, rollout = config.scenes.to_dict(), config.rollout
    examples = build_examples(
        workdir / "data", scenes["split"], scenes["counts"],
        workers=scenes["workers"], seed=scenes["seed"], reframed=scenes["reframed"],
    )  # fmt: skip
    mesh = sharding.create_mesh(**config.mesh)
    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)
    engine = make_engine(
        loaded.model, loaded.encoder, slots=rollout.slots, capacity=loaded.encoder.prompt.context,
        mesh=mesh if mesh.size > 1 else None, version=-1,
    )  # fmt: skip
    engine.warm_up()
    limits = EpisodeLimits(max_steps=rollout.max_steps, max_turn_tokens=rollout.max_turn_tokens)
    with WorkerPool(tools, workers=rollout.workers, timeout_s=TIMEOUT_S) as pool:
        agent = Agent(engine, loaded.encoder, pool, tools, limits=limits, policy=loaded.info)
        collector = Collector(
            agent, examples, judge=judge, prompts=config.prompts, samples=config.samples, seed=config.seed,
            temperature=config.temperature, refills=config.refills, policy=workdir.name,
        )  # fmt: skip
        return ccrft.run(
            config, workdir, loaded.model, loaded.encoder, collector, banned_ids=banned_ids(loaded.encoder), mesh=mesh
        )
