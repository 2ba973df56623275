"""What a run ran on."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

ROOT = Path(__file__).parent.parent.parent
"""The checkout."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-contrib-python-headless")


def describe_environment(seed: int) -> dict[str, Any]:
    """Describes commit, versions, devices and seed.

    Args:
      seed: of the run.

    Returns:
      What ``environment.json`` holds.
    """
    device = jax.devices()[0]
    return {
        "seed": seed,
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
    }


def describe_parameters(params: Any) -> str:
    """Returns a table of names, shapes, types and sizes.

    Args:
      params: a nested dict of arrays.
    """
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def without_machine(word: str) -> str:
    """A word of a command with an absolute path cut down to what lies below the checkout, or to its name."""
    option, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    path = Path(value)
    if not path.is_absolute():
        return word
    return f"{option}{equals}{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree with ``+dirty`` where it has changes; None in an installed package."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _git(ROOT, "rev-parse", "HEAD")
        return f"{commit}+dirty" if _git(ROOT, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
