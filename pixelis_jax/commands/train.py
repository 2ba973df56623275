"""Trains one phase; run again, the same command goes on where the last one stopped.

  pixelis train --config=configs/tiny_sft.py --workdir=runs/sft
  pixelis train --config=configs/tiny_sft.py --workdir=runs/sft --config.seed=1 --config.max_minutes=10

The work directory holds config.json, environment.json, metrics, checkpoints, the data that was built for the run, and in the end
`model/` in the published layout. Exit status: 0 finished, 3 stopped early (time limit or SIGTERM) with a checkpoint, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded

STOPPED_EARLY = 3
PHASES = ("look", "sft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config and the work directory."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="a Python file with get_config(); --config.FIELD=VALUE changes a field",
    )
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="where the run lives; made if absent")


def run(args: argparse.Namespace) -> int:
    """Builds the data if there is none, trains, and writes the model."""
    from pixelis_jax.commands.configs import load_config

    config = load_config(args.config, args.overrides)
    if config.phase not in PHASES:
        raise UserError(f"{args.config}: unknown phase {config.phase!r} (known: {', '.join(PHASES)})")
    return 0 if train(config, args.workdir) else STOPPED_EARLY


def train(config: ConfigDict, workdir: Path) -> bool:
    """Runs a phase; returns whether it finished.

    Args:
      config: See `configs/tiny_sft.py` and `configs/tiny_base.py`.
      workdir: The run's directory.
    """
    from pixelis_jax.commands import models
    from pixelis_jax.rollout.agent import never_sampled_ids
    from pixelis_jax.training import sft

    _use_compilation_cache(workdir)
    loaded = _initial(config, workdir)
    if not config.data:
        with config.unlocked():
            config.data = str(build_data(config, workdir, loaded))
    elif not Path(config.data).exists():
        raise UserError(f"config.data: no such file: {config.data}")
    banned = never_sampled_ids(loaded.encoder.tokenizer)
    model, result = sft.train(config, workdir, loaded.model, banned_ids=banned)
    if result.finished:
        models.save(model, loaded.encoder, workdir / models.MODEL_FOLDER)
    return result.finished


def build_data(config: ConfigDict, workdir: Path, loaded: Loaded) -> Path:
    """Draws the scenes that `config.scenes` asks for, runs their chains, and encodes them; skips what is there already."""
    from pixelis_jax.data.build import build
    from pixelis_jax.data.look import look_examples
    from pixelis_jax.data.records import write_records
    from pixelis_jax.data.supervised import supervised_examples
    from pixelis_jax.training.progress import Progress
    from tools_host.config import ToolsConfig

    path = workdir / "data" / f"{config.phase}.array_record"
    if path.exists():
        return path
    scenes = config.scenes.to_dict()
    if config.phase == "look":
        write_records(path, look_examples(scenes["counts"], loaded.encoder, workers=scenes["workers"], seed=config.seed))
        return path
    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)
    folder = workdir / "data" / "scenes"
    shards = build(
        folder, "train", scenes["counts"], scenes["workers"], seed=scenes["seed"], styles=scenes["styles"], config=tools
    )
    total = sum(-(-count // 100) for count in scenes["counts"].values())
    with Progress("traces", start=0, total=total) as progress:
        for number, _ in enumerate(shards, start=1):
            progress.advance(number)
    write_records(path, supervised_examples(folder, "train", loaded.encoder, tools))
    return path


def _initial(config: ConfigDict, workdir: Path) -> Loaded:
    """The weights that `config.init_from` names; empty: a new tiny policy with a tokenizer of its own, kept for a restart."""
    from flax import nnx

    from pixelis_jax.commands import models
    from pixelis_jax.data.look import tiny_encoder
    from pixelis_jax.policy import Qwen3VL
    from pixelis_jax.trajectory import PolicyInfo

    if config.init_from:
        return models.load(config.init_from)
    initial = workdir / "initial"
    if not initial.exists():
        encoder = tiny_encoder()
        models.save(Qwen3VL(encoder.model, rngs=nnx.Rngs(config.seed)), encoder, initial)
    loaded = models.load(str(initial))
    return models.Loaded(model=loaded.model, encoder=loaded.encoder, info=PolicyInfo(model="new"))


def _use_compilation_cache(workdir: Path) -> None:
    """A restart finds what was compiled before, beside the run."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # jax adds its options at run time
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
