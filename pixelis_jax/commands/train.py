"""Trains one phase; run again, the same command goes on where the last one stopped.

  pixelis train --config=configs/tiny_sft.py --workdir=runs/sft
  pixelis train --config=configs/tiny_sft.py --workdir=runs/sft --config.seed=1 --config.max_minutes=10

The work directory holds config.json, environment.json, metrics, checkpoints, `policy/` (what they lack to be a MODEL), the data
that was built for the run, and in the end `model/` in the published layout. It may be moved between two starts. Exit status: 0
finished, 1 diverged, 2 bad input, 3 stopped early (time limit, SIGTERM, Ctrl-C) with a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.data.records import EncodedExample
    from pixelis_jax.policy import Qwen3VL

DIVERGED, STOPPED_EARLY = 1, 3
PHASES = ("look", "sft", "ccrft", "ttrl")
SAMPLING = ("ccrft", "ttrl")
"""Phases that learn from their own episodes, and build their questions themselves."""

SAY_EVERY = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config and the work directory."""
    from pixelis_jax.commands.configs import add_config

    add_config(parser)
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="where the run lives; made if absent")


def run(args: argparse.Namespace) -> int:
    """Builds the data if there is none, trains, and writes the model."""
    from pixelis_jax.commands.configs import load_config
    from pixelis_jax.sharding import initialize_distributed
    from pixelis_jax.training.watch import CollapseError

    config = load_config(args.config, args.overrides)
    initialize_distributed()
    check_config(args.config, config)
    _check_mesh(args.config, config)
    try:
        finished = train(config, args.workdir)
    except (FloatingPointError, CollapseError) as error:
        print(f"pixelis: {error}", file=sys.stderr)
        return DIVERGED
    if finished:
        print(args.workdir)
    return 0 if finished else STOPPED_EARLY


def train(config: ConfigDict, workdir: Path) -> bool:
    """Runs a phase; returns whether it finished.

    Args:
      config: See `configs/tiny_sft.py` and `configs/tiny_base.py`.
      workdir: The run's directory.

    Raises:
      UserError: There are no such weights or data.
      RecordError: `config.data` cannot be read, or an example fits into no bucket.
      WorkdirError: The directory is another run's, or no work directory.
      FloatingPointError: The loss is no longer finite.
      CollapseError: Reinforcement learning has fallen under one of its floors.
    """
    import jax

    from pixelis_jax.commands import models
    from pixelis_jax.data.records import RecordSource
    from pixelis_jax.training import ccrft, loop, ttrl
    from pixelis_jax.workdir import Workdir, WriterLock, describe_environment

    if config.init_from:
        models.locate(config.init_from, finished=True)
    given = config.get("data", "")
    if given and not Path(given).exists():
        raise UserError(f"config.data: no such file: {given}")
    if given:
        RecordSource(given)
    # Opened before anything is put into it: a directory of another run keeps its files, and gets none of this one.
    environment = describe_environment(config.seed)
    may_differ = {"ccrft": ccrft.MAY_DIFFER, "ttrl": ttrl.MAY_DIFFER}.get(config.phase, loop.MAY_DIFFER)
    Workdir.create(workdir, config=config.to_dict(), environment=environment, may_differ=may_differ)
    _use_compilation_cache(workdir)
    # The other processes of a run come to nothing without the first.
    with WriterLock(workdir / ".lock", workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return _train(config, workdir, Path(given) if given else None)


def _train(config: ConfigDict, workdir: Path, data: Path | None) -> bool:
    """Runs a phase in a work directory that no other process writes into; returns whether it finished."""
    import jax

    from pixelis_jax.commands import adapt, models, reinforce
    from pixelis_jax.policy.adapters import merge_adapters
    from pixelis_jax.rollout.agent import banned_ids
    from pixelis_jax.training import sft

    with _first_process_first():
        loaded = _initial(config, workdir)
        models.save_files(loaded.encoder, workdir / models.POLICY_FOLDER)
        if config.phase not in SAMPLING:
            data = data or build_data(config, workdir, loaded)
    if config.phase in SAMPLING:
        sampling_phase = {"ccrft": reinforce.train, "ttrl": adapt.train}[config.phase]
        model, result = sampling_phase(config, workdir, loaded)
    else:
        model, result = sft.train(config, workdir, loaded.model, banned_ids=banned_ids(loaded.encoder), data=data)
    if result.finished and not (workdir / models.MODEL_FOLDER).exists():
        _gather(model)
        if jax.process_index() == 0:
            models.save(merge_adapters(model), loaded.encoder, workdir / models.MODEL_FOLDER)
    return result.finished


def build_data(config: ConfigDict, workdir: Path, loaded: Loaded) -> Path:
    """Draws the scenes that `config.scenes` asks for, runs their chains, and encodes them; skips what is there already."""
    from pixelis_jax.commands.data import build_split
    from pixelis_jax.data.look import look_examples
    from pixelis_jax.data.records import write_records
    from pixelis_jax.data.supervised import supervised_examples
    from tools_host.config import ToolsConfig

    path = workdir / "data" / f"{config.phase}.array_record"
    if path.exists():
        return path
    scenes = config.scenes.to_dict()
    if config.phase == "look":
        looks = look_examples(
            scenes["counts"],
            loaded.encoder,
            kinds=scenes["kinds"],
            asked_share=scenes["asked_share"],
            reframed=scenes["reframed"],
            workers=scenes["workers"],
            seed=config.seed,
        )
        write_records(path, _counted(looks))
        return path
    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text)
    folder = workdir / "data" / "scenes"
    build_split(
        folder,
        scenes["split"],
        scenes["counts"],
        scenes["workers"],
        seed=scenes["seed"],
        styles=scenes["styles"],
        reframed=scenes["reframed"],
        config=tools,
    )
    examples = supervised_examples(
        folder,
        scenes["split"],
        loaded.encoder,
        tools,
        answer_only=scenes["answer_only"],
        workers=scenes["workers"],
        seed=config.seed,
    )
    write_records(path, _counted(examples))
    return path


def _counted(examples: Iterable[EncodedExample]) -> Iterator[EncodedExample]:
    """Says how far it is: how many examples there will be is not known before."""
    for number, example in enumerate(examples, start=1):
        if number % SAY_EVERY == 0:
            print(f"examples: {number}", flush=True)
        yield example


def check_config(path: Path, config: ConfigDict) -> None:
    """Raises UserError for a config that can be trained nowhere; looks at no device and at no file but the config."""
    from configs import tiny_base, tiny_ccrft, tiny_sft, tiny_ttrl
    from pixelis_jax.commands import adapt, reinforce
    from pixelis_jax.commands.configs import check_fields
    from pixelis_jax.commands.data import check_counts
    from pixelis_jax.data.captions import KINDS
    from pixelis_jax.data.scenes import FAMILIES, SPLITS
    from pixelis_jax.data.traces import STYLES
    from pixelis_jax.policy import ConfigError
    from pixelis_jax.training import sft

    if config.get("phase") not in PHASES:
        raise UserError(f"{path}: phase is {config.get('phase')!r}, expected one of {', '.join(PHASES)}")
    shipped = {"look": tiny_base, "sft": tiny_sft, "ccrft": tiny_ccrft, "ttrl": tiny_ttrl}[config.phase]
    check_fields(path, config, shipped.get_config())
    _check_ranges(path, config)
    if config.phase == "ccrft":
        reinforce.check(path, config)
    if config.phase == "ttrl":
        adapt.check(path, config)
    updates, words = config.total_steps, f"total_steps ({config.total_steps})"
    if config.phase == "ccrft":
        updates, words = updates * config.minibatches, f"{words} times minibatches ({config.minibatches})"
    if not 0 <= config.optimizer.warmup_steps < updates:
        raise UserError(
            f"{path}: optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be at least 0 and less than {words}"
        )
    for name in ("log_every", "checkpoint_every_steps", "keep_checkpoints"):
        if config.get(name) is not None and config[name] < 1:
            raise UserError(f"{path}: {name} must be at least 1, got {config[name]}")
    if not config.get("data"):
        check_counts(config.scenes.counts.to_dict(), config.scenes.workers)
        if config.phase == "look" and set(config.scenes.kinds) - set(KINDS):
            raise UserError(f"{path}: scenes.kinds must be among {', '.join(KINDS)}, got {', '.join(config.scenes.kinds)}")
        styles = config.scenes.get("styles", {})
        if config.phase == "sft" and (set(styles) - set(STYLES) or sum(styles.values()) <= 0 or min(styles.values()) < 0):
            raise UserError(f"{path}: scenes.styles must be shares of {', '.join(STYLES)}, got {styles.to_dict()}")
        if config.phase != "look" and config.scenes.split not in SPLITS:
            raise UserError(f"{path}: no split {config.scenes.split!r} (known: {', '.join(SPLITS)})")
        if not 0 <= config.scenes.reframed <= 1:
            raise UserError(f"{path}: scenes.reframed is a share, got {config.scenes.reframed}")
        for family, share in config.scenes.get("answer_only", {}).items():
            _ = FAMILIES[family]
            if not 0 <= share <= 1:
                raise UserError(f"{path}: scenes.answer_only.{family} is a share, got {share}")
    if config.trainable not in sft.TRAINABLE:
        raise UserError(f"{path}: trainable is {config.trainable!r}, known are {', '.join(sft.TRAINABLE)}")
    try:
        sft.check_base(config.trainable, config.lora.base)
        if config.phase not in SAMPLING:
            sft.check_packing(config)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    if (config.trainable == "adapters") != bool(config.lora.rank):
        raise UserError(
            f"{path}: lora.rank is {config.lora.rank}, but trainable is {config.trainable!r}: adapters go with adapters"
        )
    try:
        model_options(config)
    except (ConfigError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def _check_mesh(path: Path, config: ConfigDict) -> None:
    """Raises UserError for a mesh that the devices here cannot make."""
    from pixelis_jax.sharding import create_mesh

    try:
        create_mesh(**config.mesh)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: mesh: {error}") from error


def _check_ranges(path: Path, config: ConfigDict) -> None:
    """Raises UserError for a number that no run can have."""
    from pixelis_jax.commands import ranges
    from pixelis_jax.commands.checks import SEEDS
    from pixelis_jax.commands.configs import flat, is_free

    def several(fits: ranges.Fits) -> ranges.Fits:
        return lambda values: len(values) > 0 and all(map(fits, values))

    values = flat(config.to_dict())
    ranges.check(
        path,
        values,
        (
            (
                "a whole number of at least 1",
                ranges.whole(),
                "total_steps operations loss.chunk loss.vocab_chunk buckets.tokens_per_batch",
            ),
            ("a whole number in 0 .. 2^32 - 1", ranges.whole(0, SEEDS), "seed scenes.seed"),
            ("whole numbers of at least 1", several(ranges.whole()), "buckets.tokens buckets.frames"),
            (
                "a number above 0",
                ranges.number(above=0),
                "optimizer.learning_rate optimizer.eps optimizer.clip_norm loss.beta",
            ),
            (
                "a number of at least 0",
                ranges.number(below=math.inf),
                "optimizer.weight_decay optimizer.final_ratio loss.heads_weight loss.patches_weight loss.iou_weight "
                "checkpoint_every_minutes max_minutes",
            ),
            ("at least 0 and less than 1", ranges.number(below=1), "optimizer.b1 optimizer.b2"),
            ("numbers", several(ranges.number(-math.inf)), "pixels.mean"),
            ("numbers above 0", several(ranges.number(above=0)), "pixels.std"),
            ("a share, 0 to 1", ranges.number(0, 1), "scenes.asked_share"),
        ),
    )
    free = ranges.number(-math.inf)
    for name, value in values.items():
        if is_free(name) and not free(value):
            raise UserError(f"{path}: {name} must be a number, got {value!r}")


def _initial(config: ConfigDict, workdir: Path) -> Loaded:
    """The weights that `config.init_from` names; empty: a new tiny policy with a tokenizer of its own, kept for a restart."""
    from flax import nnx

    from pixelis_jax.commands import models
    from pixelis_jax.data.look import tiny_encoder
    from pixelis_jax.policy import Qwen3VL
    from pixelis_jax.policy.initialization import scale_by_fan_in
    from pixelis_jax.trajectory import PolicyInfo

    options = model_options(config)
    if config.init_from:
        loaded = models.load(config.init_from, **options)
        prompt = dataclasses.replace(loaded.encoder.prompt, blind=config.get("blind", False))
        return dataclasses.replace(loaded, encoder=dataclasses.replace(loaded.encoder, prompt=prompt))
    initial = workdir / "initial"
    if not initial.exists():
        print("making a tokenizer from the words of some scenes", flush=True)
        encoder = tiny_encoder()
        model = Qwen3VL(encoder.model, rngs=nnx.Rngs(config.seed))
        scale_by_fan_in(model)
        models.save(model, encoder, initial)
    loaded = models.load(str(initial), **options)
    return models.Loaded(model=loaded.model, encoder=loaded.encoder, info=PolicyInfo(model="new"))


def model_options(config: ConfigDict) -> dict[str, Any]:
    """`execution`, `precision` and `lora` of a config, as the policy takes them.

    Raises:
      ConfigError: A value that the policy does not know.
    """
    from pixelis_jax.policy import Execution, Lora, Precision

    lora = Lora(**config.lora) if config.lora.rank else None
    precision = Precision(**{name: _number_format(name, config.precision[name]) for name in ("params", "compute")})
    return {"execution": Execution(**config.execution), "precision": precision, "lora": lora}


def _number_format(field: str, name: str) -> Any:
    from pixelis_jax.policy import ConfigError

    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"precision.{field} is {name!r}, known are float32, bfloat16")
    import jax.numpy as jnp

    return getattr(jnp, name)


@contextlib.contextmanager
def _first_process_first() -> Iterator[None]:
    """Lets the first process go through a block alone; the others come after it and find the files that it wrote."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("files")
    yield
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("files")


def _gather(model: Qwen3VL) -> None:
    """Brings all parameters to every process, in place; a single process has them."""
    import jax
    from flax import nnx
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        nnx.update(model, multihost_utils.process_allgather(nnx.state(model), tiled=True))


def _use_compilation_cache(workdir: Path) -> None:
    """A restart finds what was compiled before, beside the run."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # jax adds its options at run time
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
