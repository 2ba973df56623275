"""Checkpoints: Orbax, one named item a part of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pixelis_jax.workdir.errors import WorkdirError


class Checkpoints:
    """The checkpoints of a run, ``checkpoints/<step>/<item>``.

    A checkpoint is complete or absent: Orbax writes into a temporary directory and renames it. Names are the callers':
    ``params``, ``heads``, ``opt_state``, ``rng``, ``data_iter``, and what later phases add.
    """

    def __init__(
        self,
        path: epath.PathLike,
        *,
        keep: int | None = None,
        read_only: bool = False,
        write_limits: Mapping[str, int] | None = None,
    ):
        """Opens the checkpoints of a run and removes what an interrupted save left behind.

        Args:
          path: the directory of the checkpoints, absolute; made if it does not exist.
          keep: number of the latest checkpoints to keep; None keeps all.
          write_limits: most bytes of an item that are copied for writing at a time, at least its largest array; Orbax copies up
            to 96 GB by default.
          read_only: touches nothing. What looks like the rest of an interrupted save may be one that another process is making.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            # Saved before `save` returns: the next step gets the arrays donated, and on CPU a copy to the host is no copy.
            enable_async_checkpointing=False,
        )
        self._path = epath.Path(path)
        registry = None
        if write_limits:
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            for item, limit in write_limits.items():
                # In GB and declared an integer, but only ever multiplied.
                handler = ocp.StandardCheckpointHandler(save_concurrent_gb=limit / 1e9)  # type: ignore[arg-type]
                registry.add(item, ocp.args.StandardSave, handler)
                registry.add(item, ocp.args.StandardRestore, handler)
        self._manager = ocp.CheckpointManager(self._path, options=options, handler_registry=registry)

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

    def stored(self, step: int, item: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Describes an item of a checkpoint without reading its arrays.

        Args:
          step: of the checkpoint.
          item: name of a pytree of arrays.

        Returns:
          Shape and format by path, such as ``decoder/layers/0/mlp/up_proj/kernel``.

        Raises:
          WorkdirError: there is no such checkpoint or item, or it cannot be read.
        """
        self._check_step(step)
        path = self._path / str(step) / item
        if not path.is_dir():
            held = ", ".join(sorted(part.name for part in path.parent.iterdir() if part.is_dir()))
            raise WorkdirError(f"checkpoint {path.parent} does not fit: it has no {item} (it has {held})")
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
        except (OSError, ValueError) as error:
            raise WorkdirError(f"checkpoint {path} cannot be read: {_one_line(error)}") from error
        # A part without arrays, such as the state of a stateless transformation, has no shape.
        leaves = [(name, leaf) for name, leaf in _by_path(tree).items() if hasattr(leaf, "shape")]
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves}

    def restore(
        self, step: int, *, arrays: Mapping[str, Any], values: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores items of a checkpoint, on whatever devices saved it.

        Args:
          step: of the checkpoint.
          arrays: pytrees of arrays or `jax.ShapeDtypeStruct` by item name: what to expect, in which format, and where to put
            it; without a sharding, on this process's first device.
          values: names of the JSON items.

        Returns:
          The arrays and the values, by item name.

        Raises:
          WorkdirError: there is no such checkpoint, or it does not hold what was asked for.
        """
        self._check_step(step)
        for item, tree in arrays.items():
            self._check_fits(step, item, tree)
        items = {name: ocp.args.StandardRestore(jax.tree.map(_placed, tree)) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonRestore() for name in values}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise WorkdirError(f"checkpoint {self._path / str(step)} does not fit: {_one_line(error)}") from error
        return {name: restored[name] for name in arrays}, {name: restored[name] for name in values}

    def _check_step(self, step: int) -> None:
        if step not in self.steps():
            raise WorkdirError(f"{self._path} has no complete checkpoint of step {step}; complete are {self.steps()}")

    def _check_fits(self, step: int, item: str, tree: Any) -> None:
        """Compares names and shapes before Orbax starts to read: its threads would print what they meet."""
        stored, expected = self.stored(step, item), _by_path(tree)
        differing = [f"{name} is missing" for name in sorted(expected.keys() - stored.keys())]
        differing += [f"{name} is not expected" for name in sorted(stored.keys() - expected.keys())]
        differing += [
            f"{name} has shape {stored[name].shape}, expected {tuple(leaf.shape)}"
            for name, leaf in expected.items()
            if name in stored and stored[name].shape != tuple(leaf.shape)
        ]
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            where = self._path / str(step) / item
            raise WorkdirError(f"checkpoint {where} does not fit: {'; '.join(differing[:3])}{more}")

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        self._manager.close()


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _placed(leaf: Any) -> Any:
    """Names a device where none is named: Orbax would look for those that the checkpoint was saved on."""
    if getattr(leaf, "sharding", None) is not None:
        return leaf
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
