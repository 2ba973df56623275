"""`MODEL` on the command line and `config.init_from`: one way to name weights, everywhere."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from pixelis_jax.commands.errors import UserError

if TYPE_CHECKING:
    from pixelis_jax.encoding import Encoder
    from pixelis_jax.policy import Execution, Lora, Precision, Qwen3VL
    from pixelis_jax.trajectory import PolicyInfo

SHIPPED = Path(__file__).parent.parent / "weights"
"""Folder of the weights that come with the package, one sub-folder a name."""

MODEL_FOLDER = "model"
"""Where a work directory keeps the finished model, in the published layout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Weights, and what lies between them and an episode."""

    model: Qwen3VL
    encoder: Encoder
    info: PolicyInfo


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if (path / "config.json").exists()) if SHIPPED.is_dir() else []


def locate(name: str) -> Path:
    """The directory in the published layout that a name stands for.

    Args:
      name: A shipped name, a work directory, or a directory with config.json.

    Raises:
      UserError: There is no such thing; the message says what there is.
    """
    path = Path(name)
    if not path.exists():
        if name in shipped():
            return SHIPPED / name
        near = difflib.get_close_matches(name, shipped(), n=1)
        guess = f"; did you mean {near[0]!r}?" if near else f" (shipped: {', '.join(shipped()) or 'none'})"
        raise UserError(f"no model {name!r}: neither a shipped name nor a directory{guess}")
    if (path / MODEL_FOLDER / "config.json").exists():
        return path / MODEL_FOLDER
    if path.is_dir() and _is_work_directory(path):
        raise UserError(f"{name}: a work directory without {MODEL_FOLDER}/: its run has not finished, or is no training")
    if not (path / "config.json").exists():
        raise UserError(f"{name}: not a model directory (no config.json) and not a finished work directory")
    return path


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
    """
    from pixelis_jax.encoding import Encoder
    from pixelis_jax.policy import Precision, weights
    from pixelis_jax.rollout.agent import special_ids
    from pixelis_jax.trajectory import PolicyInfo

    directory = locate(name)
    try:
        encoder = Encoder.load(directory)
        special_ids(encoder.tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    precision = precision or Precision()
    model = weights.load(directory, dtype=precision.params, compute_dtype=precision.compute, execution=execution, lora=lora)
    return Loaded(model=model, encoder=encoder, info=PolicyInfo(model=Path(name).resolve().name))


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


def _is_work_directory(path: Path) -> bool:
    """Models and runs both hold a config.json; only a run's directory holds an environment.json."""
    return (path / "environment.json").exists()
