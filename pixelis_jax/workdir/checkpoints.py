"""Checkpoints: Orbax, one named item a part of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from pixelis_jax.workdir.errors import WorkdirError


class Checkpoints:
    """The checkpoints of a run, ``checkpoints/<step>/<item>``.

    A checkpoint is complete or absent: Orbax writes into a temporary directory and renames it. Names are the callers':
    ``params``, ``heads``, ``opt_state``, ``rng``, ``data_iter``, and what later phases add.
    """

    def __init__(self, path: epath.PathLike, *, keep: int | None = None):
        """Opens the checkpoints of a run and removes what an interrupted save left behind.

        Args:
          path: the directory of the checkpoints, absolute; made if it does not exist.
          keep: number of the latest checkpoints to keep; None keeps all.
        """
        # Saved before `save` returns: the next step gets the arrays donated, and on CPU a copy to the host is no copy.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False)
        self._path = epath.Path(path)
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the step of the latest complete checkpoint, None without one."""
        return max(self.steps(), default=None)

    def save(self, step: int, *, arrays: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> None:
        """Saves a checkpoint; every process calls it.

        Args:
          step: the step that it is of.
          arrays: pytrees of arrays by item name.
          values: what JSON can hold, by item name.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonSave(value) for name, value in (values or {}).items()}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self, step: int, *, arrays: Mapping[str, Any], values: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores items of a checkpoint.

        Args:
          step: of the checkpoint.
          arrays: pytrees of arrays or `jax.ShapeDtypeStruct` by item name: what to expect and where to put it.
          values: names of the JSON items.

        Returns:
          The arrays and the values, by item name.

        Raises:
          WorkdirError: there is no such checkpoint, or it does not hold what was asked for.
        """
        if step not in self.steps():
            raise WorkdirError(f"{self._path} has no complete checkpoint of step {step}; complete are {self.steps()}")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonRestore() for name in values}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (KeyError, ValueError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WorkdirError(f"checkpoint {self._path / str(step)} does not fit this run: {reason}") from error
        return {name: restored[name] for name in arrays}, {name: restored[name] for name in values}

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        self._manager.close()
