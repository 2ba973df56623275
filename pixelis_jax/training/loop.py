"""The loop of every phase. A run that is stopped anywhere goes on as if it had not been."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
import optax
from clu import metrics as clu_metrics
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax import sharding
from pixelis_jax.training.optimizer import create_optimizer, learning_rate
from pixelis_jax.training.progress import Progress
from pixelis_jax.training.state import PyTree, TrainState, create_state, join_parameters
from pixelis_jax.workdir import Checkpoints, Workdir, describe_environment, describe_parameters, write_bytes

Metrics = Mapping[str, clu_metrics.Average]
# What another start of the same run may change: none of it changes the result.
MAY_DIFFER = ("max_minutes", "log_every", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """What a phase of training gives to the loop.

    Attributes:
      name: shown beside the progress.
      params: initial parameters of the policy that are trained, a nested dict.
      heads: initial parameters of the heads, a nested dict.
      shardings: ``params``, ``heads`` and ``frozen``: where they lie on the mesh.
      loss: (params, heads, batch, key) -> (loss, metrics), of all parameters. Traced once for each shape of batch.
      batches: step -> batch from a checkpointable iterator; each process yields its rows.
      frozen: parameters that are not trained, a nested dict.
    """

    name: str
    params: PyTree
    heads: PyTree
    shardings: Mapping[str, PyTree]
    loss: Callable[[PyTree, PyTree, Any, jax.Array], tuple[jax.Array, Metrics]]
    batches: grain.DatasetIterator
    frozen: PyTree = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      state: after the last step taken; its checkpoint is on disk.
      finished: False where a time limit, SIGTERM or Ctrl-C ended it before its last step.
      compilations: shapes for which the update was compiled.
    """

    state: TrainState
    finished: bool
    compilations: int


def run(phase: Phase, config: ConfigDict, path: epath.PathLike, mesh: Mesh) -> Result:
    """Trains from the latest checkpoint in a work directory, or from the start.

    Args:
      phase: what to train.
      config: ``seed``, ``total_steps``, ``optimizer`` (`create_optimizer`), ``log_every``, ``checkpoint_every_steps``,
        ``checkpoint_every_minutes``, ``keep_checkpoints``, ``max_minutes`` (None: no limit).
      path: the work directory.
      mesh: the devices.

    Returns:
      How it ended.

    Raises:
      WorkdirError: the directory is another run's, or no work directory.
      FloatingPointError: loss or gradient of a step to be saved is not finite; it is not saved.
    """
    pace = Pace(config)
    workdir = Workdir.create(path, config=config.to_dict(), environment=describe_environment(config.seed), may_differ=MAY_DIFFER)
    optimizer = create_optimizer(config.optimizer, config.total_steps)
    key = jax.random.key(config.seed)
    state = create_state(phase.params, phase.heads, optimizer, key, dict(phase.shardings), phase.frozen)
    checkpoints = workdir.open_checkpoints(config.keep_checkpoints)
    state = _restore(checkpoints, state, phase.batches)
    step = saved = int(state.step)
    writer = workdir.open_metrics()
    writer.resume(step)
    update = make_update(phase.loss, optimizer, state)
    schedule = learning_rate(config.optimizer, config.total_steps)
    window = _Window(schedule)

    def save() -> None:
        nonlocal saved
        _check_finite(metrics, step)
        writer.flush()
        checkpoints.save(step, arrays=state.items(), values={"data_iter": phase.batches.get_state()})
        saved = step
        pace.saved()

    with (
        contextlib.closing(checkpoints),
        contextlib.closing(writer),
        Progress(phase.name, start=step, total=config.total_steps) as progress,
        catch_signals() as interrupted,
        on_mesh(mesh),
    ):
        if step == 0:
            overview = describe_parameters(state.trainable)
            write_bytes(workdir.path / "parameters.txt", overview.encode())
            progress.say(f"parameters: {overview.splitlines()[-1]}")
        elif step < config.total_steps:
            progress.say(f"going on from step {step} of {workdir.path}")
        while step < config.total_steps:
            waited = time.monotonic()
            batch = place_batch(next(phase.batches), mesh)
            window.waited += time.monotonic() - waited
            with jax.transfer_guard("disallow"):
                state, metrics = update(state, batch)
            step += 1
            window.add(metrics)
            progress.advance(step)

            last = step == config.total_steps
            if step % config.log_every == 0 or last:
                scalars = window.close(step) | {"compilations": update._cache_size()}
                writer.write_scalars(step, scalars)
                progress.report(step, {name: scalars[name] for name in ("loss", "steps_per_second")})
            stop = _any_process(interrupted.is_set() or pace.out_of_time)
            if last or stop or _any_process(pace.due(step)):
                save()
            if stop and not last:
                progress.say(f"stopped at step {step}; the same command goes on from there")
                break
    return Result(state=state, finished=saved == config.total_steps, compilations=update._cache_size())


def make_update(
    loss: Callable[..., tuple[jax.Array, Metrics]], optimizer: optax.GradientTransformation, state: TrainState
) -> Any:
    """Builds the jitted training step.

    Args:
      loss: (params, heads, batch, key) -> (loss, metrics).
      optimizer: over ``{"params": ..., "heads": ...}``.
      state: placed on the mesh; its updates stay where it lies.

    Returns:
      (state, batch) -> (state, metrics); the state that goes in is donated.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.rng, state.step)

        def loss_of(trainable: Mapping[str, PyTree]) -> tuple[jax.Array, Metrics]:
            return loss(join_parameters(trainable["params"], state.frozen), trainable["heads"], batch, key)

        (value, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        norms = {"loss": value, "gradient_norm": optax.global_norm(gradients)}
        metrics = {**metrics, **{name: clu_metrics.Average.from_model_output(norm) for name, norm in norms.items()}}
        state = dataclasses.replace(
            state, step=state.step + 1, params=trainable["params"], heads=trainable["heads"], opt_state=opt_state
        )
        return state, metrics

    # Left to the compiler, the state could come back placed otherwise, and the next step would be compiled again.
    placed = jax.tree.map(lambda array: array.sharding, state)
    return jax.jit(update, donate_argnums=0, out_shardings=(placed, None))


class Pace:
    """When a run saves by the clock or by its steps, and when its time is over."""

    def __init__(self, config: ConfigDict):
        """Starts the clock; ``config`` has ``checkpoint_every_steps``, ``checkpoint_every_minutes`` and ``max_minutes``."""
        self._config = config
        self._started = self._saved = time.monotonic()

    @property
    def out_of_time(self) -> bool:
        """Whether `max_minutes` are over."""
        most = self._config.max_minutes
        return most is not None and time.monotonic() - self._started >= 60 * most

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due behind a step, by the clock of this process or by the step's number."""
        late = time.monotonic() - self._saved >= 60 * self._config.checkpoint_every_minutes
        return late or step % self._config.checkpoint_every_steps == 0

    def saved(self) -> None:
        """Notes that a checkpoint was saved."""
        self._saved = time.monotonic()


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Makes a mesh that of the context, so that activations are placed on it; a single device needs none."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def place_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Puts this process's rows of a batch onto the mesh.

    Args:
      batch: NumPy arrays whose first axis is the batch.
      mesh: the devices.

    Returns:
      Global arrays, split along the batch.
    """
    place = sharding.batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(place, array), batch)


class _Window:
    """Metrics since they were last written, averaged by their counts."""

    def __init__(self, schedule: optax.Schedule):
        self._schedule = schedule
        self._start()

    def _start(self) -> None:
        self._metrics: list[Metrics] = []
        self._opened = time.monotonic()
        self.waited = 0.0

    def add(self, metrics: Metrics) -> None:
        self._metrics.append(metrics)

    def close(self, step: int) -> dict[str, float]:
        # The only place where the host waits for the devices.
        fetched = jax.device_get(self._metrics)
        total = jax.tree.map(lambda *values: np.sum(values), *fetched)
        scalars = {name: float(metric.total) / max(float(metric.count), 1e-9) for name, metric in total.items()}
        seconds = time.monotonic() - self._opened
        scalars["learning_rate"] = float(self._schedule(step - 1))
        scalars["steps_per_second"] = len(fetched) / seconds
        scalars["data_wait"] = self.waited / seconds
        self._start()
        return scalars


def _restore(checkpoints: Checkpoints, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
    latest = checkpoints.latest()
    if latest is None:
        return state
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.items())
    items, values = checkpoints.restore(latest, arrays=shapes, values=["data_iter"])
    batches.set_state(values["data_iter"])
    return state.with_items(items)


def _check_finite(metrics: Metrics, step: int) -> None:
    """Keeps a step whose update was not finite out of the checkpoints."""
    loss, norm = (float(jax.device_get(metrics[name].total)) for name in ("loss", "gradient_norm"))
    if not np.isfinite([loss, norm]).all():
        raise FloatingPointError(f"step {step} has loss {loss} and gradient norm {norm}; it is not saved")


def _any_process(flag: bool) -> bool:
    """Whether the flag is set in any process: all must save and stop at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


@contextlib.contextmanager
def catch_signals() -> Iterator[threading.Event]:
    """Turns SIGTERM and the first Ctrl-C into an event that the loop looks at after each step; a second one ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _: object) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
