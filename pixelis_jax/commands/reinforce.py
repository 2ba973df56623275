"""Reinforcement learning from the command line: what `pixelis train` does for a config whose phase is `ccrft`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.policy import Qwen3VL
    from pixelis_jax.rollout.agent import Agent
    from pixelis_jax.training.loop import Result
    from tools_host.config import ToolsConfig
    from tools_host.pool import WorkerPool

VARIANTS, CREDITS = ("ensemble", "paper"), ("trajectory", "step")


def check(path: Path, config: ConfigDict) -> None:
    """Raises UserError for what only such a config has, and that no run can have."""
    from pixelis_jax.commands import ranges
    from pixelis_jax.commands.configs import flat

    share = ranges.number(0, 1)
    ranges.check(
        path,
        flat(config.to_dict()),
        (
            (
                "a whole number of at least 1",
                ranges.whole(),
                "prompts minibatches curiosity.heads curiosity.hidden curiosity.steps curriculum.window curriculum.patience "
                "patience save_trajectories_every",
            ),
            ("a whole number of at least 2", ranges.whole(2), "samples"),
            ("a whole number of at least 0", ranges.whole(0), "refills usage.most_calls"),
            ("a number above 0", ranges.number(above=0), "curiosity.learning_rate advantage.least_std"),
            (
                "a number of at least 0",
                ranges.number(),
                "weights.curiosity weights.coherence weights.penalty weights.usage usage.target usage.fine "
                "curriculum.gain curriculum.drop floors.entropy",
            ),
            ("a share, 0 to 1", share, "floors.valid_calls floors.rapr"),
            (*ranges.among(VARIANTS), "curiosity.variant"),
            (*ranges.among(CREDITS), "advantage.credit"),
        ),
    )
    if config.minibatches > config.prompts * config.samples:
        raise UserError(f"{path}: minibatches is {config.minibatches}, more than the {config.prompts * config.samples} episodes")
    check_learning(path, config)


def check_learning(path: Path, config: ConfigDict) -> None:
    """Raises UserError for what no run can have that learns from its own episodes: its start, sampling and updates."""
    from pixelis_jax.commands import ranges
    from pixelis_jax.commands.configs import flat
    from pixelis_jax.training.updater import control_settings

    ranges.check(
        path,
        flat(config.to_dict()),
        (
            (
                "a whole number of at least 1",
                ranges.whole(),
                "rollout.slots rollout.workers rollout.max_steps rollout.max_turn_tokens "
                "microbatch.rows microbatch.tokens microbatch.frames microbatch.weighted",
            ),
            ("a whole number of at least 0", ranges.whole(0), "kl.warm_up"),
            ("a number above 0", ranges.number(above=0), "temperature"),
            ("a number of at least 0", ranges.number(), "clip.low clip.high"),
        ),
    )
    if not config.init_from:
        raise UserError(f"{path}: init_from is empty: reinforcement learning starts from a policy that can call tools")
    try:
        control_settings(config.kl)
    except (TypeError, ValueError) as error:
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
    from pixelis_jax.commands.eval import build_examples
    from pixelis_jax.evaluation.run import judge
    from pixelis_jax.rollout.agent import banned_ids
    from pixelis_jax.training import ccrft
    from pixelis_jax.training.collecting import Collector

    scenes = config.scenes.to_dict()
    examples = build_examples(
        workdir / "data", scenes["split"], scenes["counts"],
        workers=scenes["workers"], seed=scenes["seed"], reframed=scenes["reframed"],
    )  # fmt: skip
    with sampler(config, loaded) as sampling:
        collector = Collector(
            sampling.agent, examples, judge=judge, prompts=config.prompts, samples=config.samples, seed=config.seed,
            temperature=config.temperature, refills=config.refills, policy=workdir.name,
        )  # fmt: skip
        return ccrft.run(
            config, workdir, loaded.model, loaded.encoder, collector, banned_ids=banned_ids(loaded.encoder), mesh=sampling.mesh
        )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What samples episodes for a run: the devices, the agent, and the tools with the pool that runs them."""

    mesh: Mesh
    agent: Agent
    tools: ToolsConfig
    pool: WorkerPool


@contextlib.contextmanager
def sampler(config: ConfigDict, loaded: Loaded) -> Iterator[Sampling]:
    """Opens an agent for a run that learns from its own episodes; its engine has the initial policy as version -1.

    Args:
      config: ``phase``, ``mesh``, ``rollout`` (``slots``, ``workers``, ``max_steps``, ``max_turn_tokens``).
      loaded: The initial policy.

    Raises:
      UserError: There are several processes.
    """
    import jax

    from pixelis_jax import sharding
    from pixelis_jax.commands.session import TIMEOUT_S
    from pixelis_jax.rollout.agent import Agent, EpisodeLimits, make_engine
    from tools_host.config import ToolsConfig
    from tools_host.pool import WorkerPool

    if jax.process_count() > 1:
        raise UserError(f"the phase {config.phase} runs in one process; give it all devices of one host")
    rollout, mesh = config.rollout, sharding.create_mesh(**config.mesh)
    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)
    engine = make_engine(
        loaded.model, loaded.encoder, slots=rollout.slots, capacity=loaded.encoder.prompt.context,
        mesh=mesh if mesh.size > 1 else None, version=-1,
    )  # fmt: skip
    engine.warm_up()
    limits = EpisodeLimits(max_steps=rollout.max_steps, max_turn_tokens=rollout.max_turn_tokens)
    with WorkerPool(tools, workers=rollout.workers, timeout_s=TIMEOUT_S) as pool:
        yield Sampling(mesh, Agent(engine, loaded.encoder, pool, tools, limits=limits, policy=loaded.info), tools, pool)
