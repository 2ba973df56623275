"""What several commands refuse before they begin: places that cannot be written or read, and seeds out of range."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pixelis_jax.commands.errors import UserError

SEEDS = 2**32
"""Seeds lie below this: no generator takes more bits, so two larger ones could mean the same."""


def check_output_file(option: str, path: Path) -> None:
    """Raises UserError if no file can be written there. Folders may be missing: they are made when the file is."""
    if path.is_dir():
        raise UserError(f"{option}: {path} is a directory; give a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{option}: {path} is no ordinary file, and would be replaced")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written: {folder}: {error.strerror or error}") from error


def check_directory(option: str, path: Path) -> None:
    """Raises UserError if there is no such directory."""
    if not path.is_dir():
        raise UserError(f"{option}: {path} is not a directory")


def check_seed(option: str, seed: int) -> None:
    """Raises UserError for a seed that is not in 0 .. 2^32 - 1."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"{option} must lie in 0 .. 2^32 - 1, got {seed}")
