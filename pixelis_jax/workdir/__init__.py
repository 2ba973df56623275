"""A run's directory: configuration, environment, metrics, checkpoints."""

from pixelis_jax.workdir.atomic import write_bytes, write_json
from pixelis_jax.workdir.checkpoints import Checkpoints
from pixelis_jax.workdir.environment import describe_environment, describe_parameters, without_machine
from pixelis_jax.workdir.errors import WorkdirError
from pixelis_jax.workdir.lock import WriterLock
from pixelis_jax.workdir.metrics import MetricsWriter, read_metrics
from pixelis_jax.workdir.workdir import Workdir, differing_fields

__all__ = [
    "Checkpoints",
    "MetricsWriter",
    "Workdir",
    "WorkdirError",
    "WriterLock",
    "describe_environment",
    "describe_parameters",
    "differing_fields",
    "read_metrics",
    "without_machine",
    "write_bytes",
    "write_json",
]
