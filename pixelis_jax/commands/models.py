"""`MODEL` on the command line and `config.init_from`: one way to name weights, everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pixelis_jax.encoding import Encoder
    from pixelis_jax.policy import Execution, Lora, Precision, Qwen3VL
    from pixelis_jax.trajectory import PolicyInfo

SHIPPED = Path(__file__).parent.parent / "weights"
"""Folder of the weights that come with the package, one sub-folder a name."""

MODEL_FOLDER = "model"
"""Where a work directory keeps the finished model, in the published layout."""

POLICY_FOLDER = "policy"
"""Where a work directory keeps what its checkpoints lack: config.json, tokenizer and prompt settings."""

CHECKPOINTS_FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Weights, and what lies between them and an episode."""

    model: Qwen3VL
    encoder: Encoder
    info: PolicyInfo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model lies.

    Attributes:
      name: What trajectories call it.
      files: Directory with config.json, the tokenizer and the other small files.
      checkpoint: The Orbax checkpoint `.../checkpoints/STEP` with the weights; None: they stand beside the files.
      notice: One line for the user where the weights are those of a run that may go on.
    """

    name: str
    files: Path
    checkpoint: Path | None = None
    notice: str = ""

    @property
    def step(self) -> int:
        """Training step of a checkpoint, 0 for finished weights."""
        return 0 if self.checkpoint is None else int(self.checkpoint.name)


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if (path / "config.json").exists()) if SHIPPED.is_dir() else []


def locate(name: str, *, finished: bool = False) -> Place:
    """Finds the files that a name stands for, without reading weights.

    Args:
      name: A shipped name, a work directory, an Orbax checkpoint or a directory in the published layout.
      finished: Refuses the latest checkpoint of a run that may go on: the same name will stand for other weights tomorrow.

    Raises:
      UserError: There is no such thing; the message says what there is.
    """
    path = Path(name)
    if not path.exists():
        if name in shipped():
            return Place(name=name, files=SHIPPED / name)
        near = difflib.get_close_matches(name, shipped(), n=1)
        guess = f"; did you mean {near[0]!r}?" if near else f" (shipped: {', '.join(shipped()) or 'none'})"
        raise UserError(f"no model {name!r}: neither a shipped name nor a directory{guess}")
    path = path.resolve()
    if (path / MODEL_FOLDER / "config.json").exists():
        return Place(name=path.name, files=path / MODEL_FOLDER)
    if (path / "_CHECKPOINT_METADATA").exists():
        return _of_checkpoint(path, name)
    if path.is_dir() and _is_work_directory(path):
        return _unfinished(name, path, finished)
    if not (path / "config.json").exists():
        steps = f"; a checkpoint is one of {name}/STEP" if path.name == CHECKPOINTS_FOLDER else ""
        raise UserError(f"{name}: not a model directory (no config.json), not a checkpoint and not a work directory{steps}")
    if (path / CHECKPOINTS_FOLDER).is_dir():
        latest = _latest(path)
        if latest is None:
            raise UserError(f"{name}: its {CHECKPOINTS_FOLDER}/ holds no complete checkpoint")
        return _of_checkpoint(path / CHECKPOINTS_FOLDER / str(latest), name)
    return Place(name=path.name, files=path)


def load(
    name: str, *, execution: Execution | None = None, precision: Precision | None = None, lora: Lora | None = None
) -> Loaded:
    """Loads a model, its tokenizer and its prompt settings.

    Args:
      name: As `locate`.
      execution: How the model is computed; layer by layer by default.
      precision: Number formats; float32 by default.
      lora: Adapters; none by default.

    Raises:
      UserError: There is no such model, or a file beside its weights is missing or lacks something.
      pixelis_jax.policy.weights.WeightsError: The weights do not fit config.json.
      pixelis_jax.workdir.WorkdirError: The same, of a checkpoint.
    """

    from pixelis_jax.encoding import Encoder
    from pixelis_jax.policy import Precision
    from pixelis_jax.rollout.agent import special_ids
    from pixelis_jax.trajectory import PolicyInfo

    place = locate(name)
    try:
        encoder = Encoder.load(place.files)
        special_ids(encoder.tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    precision = precision or Precision()
    model = read(place, precision.params, compute_dtype=precision.compute, execution=execution, lora=lora)
    return Loaded(model=model, encoder=encoder, info=PolicyInfo(model=place.name, step=place.step))


def read(
    place: Place, dtype: Any = None, *, compute_dtype: Any = None, execution: Execution | None = None, lora: Lora | None = None
) -> Qwen3VL:
    """Reads the weights of a model, and says it where they are those of an unfinished run.

    Args:
      place: Where they lie.
      dtype: Number format of the parameters; None keeps the stored one.
      compute_dtype: Number format of the computation; `dtype` by default.
      execution: How the model is computed; layer by layer by default.
      lora: Adapters; none by default.

    Raises:
      UserError: A checkpoint that holds only a part of the parameters.
      pixelis_jax.policy.weights.WeightsError: config.json cannot be read, or the weights do not fit it.
      pixelis_jax.workdir.WorkdirError: The same, of a checkpoint.
    """
    from pixelis_jax.policy import weights

    if place.notice:
        print(f"pixelis: {place.notice}", file=sys.stderr)
    if place.checkpoint is None:
        dtype = dtype or _published_dtype(place.files)
        return weights.load(place.files, dtype=dtype, compute_dtype=compute_dtype, execution=execution, lora=lora)
    return weights.restack(_of_orbax(place, dtype, compute_dtype), execution, lora)


def _of_orbax(place: Place, dtype: Any, compute_dtype: Any) -> Qwen3VL:
    """The model of a checkpoint, with its layers stacked or not, as they were saved."""
    from flax import nnx

    from pixelis_jax.policy import Execution, weights
    from pixelis_jax.policy.config import Precision, Qwen3VLConfig
    from pixelis_jax.workdir import Checkpoints

    assert place.checkpoint is not None
    config = Qwen3VLConfig.from_json(place.files)
    with contextlib.closing(Checkpoints(place.checkpoint.parent, read_only=True)) as checkpoints:
        stored = checkpoints.stored(place.step, "params")
        dtype = dtype or next(iter(stored.values())).dtype
        names = {part for path in stored for part in path.split("/")}
        if not {"visual", "decoder"} <= names or any(name.startswith("lora_") for name in names):
            raise UserError(
                f"{place.checkpoint}: holds only what its run trains; let the run finish, and use its {MODEL_FOLDER}/"
            )
        precision = Precision(params=dtype, compute=compute_dtype or dtype)
        model = weights.abstract_model(config, precision, Execution(scan_layers="stacked" in names))
        state = nnx.state(model, nnx.Param)
        arrays, _ = checkpoints.restore(place.step, arrays={"params": nnx.to_pure_dict(state)})
    nnx.replace_by_pure_dict(state, arrays["params"])
    nnx.update(model, state)
    return model


def save(model: Qwen3VL, encoder: Encoder, directory: Path) -> None:
    """Writes a model with everything `load` needs; whole or not at all."""
    import tempfile

    from pixelis_jax.policy import weights

    with tempfile.TemporaryDirectory() as scratch:
        extra = []
        for name, text in encoder.files().items():
            (Path(scratch) / name).write_text(text)
            extra.append(Path(scratch) / name)
        weights.save(model, directory, extra_files=extra)


def save_files(encoder: Encoder, directory: Path) -> None:
    """Writes what a checkpoint lacks to be a model, unless it is there."""
    from pixelis_jax.workdir import write_bytes

    if not (directory / "config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        config = json.dumps(encoder.model.to_json(), indent=2) + "\n"
        for name, text in (encoder.files() | {"config.json": config}).items():  # config.json last: then all are there
            write_bytes(directory / name, text.encode())


def _is_work_directory(path: Path) -> bool:
    """Models and runs both hold a config.json; only a run's directory holds an environment.json."""
    return (path / "environment.json").exists()


def _of_checkpoint(path: Path, name: str) -> Place:
    """A checkpoint, with the small files that stand beside it where `convert` made it, or in a folder of its run."""
    root = path.parent.parent
    if path.name.isdigit() and path.parent.name == CHECKPOINTS_FOLDER:
        beside = root if not _is_work_directory(root) else root / POLICY_FOLDER
        for files in (beside, root / MODEL_FOLDER):
            if (files / "config.json").exists():
                return Place(name=root.name, files=files, checkpoint=path)
    raise UserError(
        f"{name}: found no config.json and tokenizer for this checkpoint; they lie in {POLICY_FOLDER}/ or {MODEL_FOLDER}/ of a "
        f"work directory whose {CHECKPOINTS_FOLDER}/ holds it (starting its training once more writes them)"
    )


def _unfinished(name: str, path: Path, finished: bool) -> Place:
    """The latest checkpoint of a work directory."""
    from pixelis_jax.workdir import Workdir

    step, total = _latest(path), Workdir(path).config.get("total_steps")
    if step is None:
        lacks = f"without {MODEL_FOLDER}/ and without a complete checkpoint"
        raise UserError(f"{name}: a work directory {lacks}: its run has just begun, or is no training")
    state = f"{name} has not finished: its latest checkpoint is of step {step}" + (f" of {total}" if total else "")
    if finished:
        raise UserError(f"{state}, later it will be another; let it finish, or give {name}/{CHECKPOINTS_FOLDER}/{step}")
    place = _of_checkpoint(path / CHECKPOINTS_FOLDER / str(step), name)
    return dataclasses.replace(place, notice=f"{state}, which is used here")


def _latest(path: Path) -> int | None:
    from pixelis_jax.workdir import Checkpoints

    if not (path / CHECKPOINTS_FOLDER).is_dir():
        return None
    with contextlib.closing(Checkpoints(path / CHECKPOINTS_FOLDER, read_only=True)) as checkpoints:
        return checkpoints.latest()


def _published_dtype(directory: Path) -> np.dtype:
    """The number format of safetensors: a conversion must neither double nor round anything."""
    import jax.numpy as jnp
    import numpy as np
    import safetensors

    from pixelis_jax.policy.weights import WeightsError

    stored: set[str] = set()
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safetensors.safe_open(str(file), "numpy") as tensors:
                stored |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{file}: not a safetensors file: {error}") from error
    if len(stored) > 1:
        raise UserError(f"{directory} mixes number formats ({', '.join(sorted(stored))}); say which one is wanted with --dtype")
    return np.dtype({"BF16": jnp.bfloat16, "F16": jnp.float16}.get("".join(stored), jnp.float32))
