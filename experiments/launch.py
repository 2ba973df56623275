"""Starts a training run, or a sweep of them: on this machine, or through XManager on this machine or on Vertex AI.

  python experiments/launch.py --config=configs/tiny_sft.py --workdir=runs/sft --dry_run
  python experiments/launch.py --config=configs/tiny_sft.py --workdir=runs/rates \\
    --sweep=optimizer.learning_rate=5e-4,1e-3 --sweep=total_steps=500 --seeds=0,1,2
  python experiments/launch.py --config=configs/tiny_sft.py --workdir=runs/two --processes=2
  xmanager launch experiments/launch.py -- --config=configs/tiny_sft.py --workdir=/gcs/BUCKET/rates --seeds=0,1 \\
    --executor=vertex --resources=tpu_v3=8

Every job is one `pixelis train` with a work directory of its own, named after what distinguishes it. Jobs run one after the
other; started again, the same command goes on, since a finished job has nothing left to do. --dry_run prints the commands, one a
line, for a shell or for another scheduler. `experiments/README.md` says how the hosts of a TPU pod are started.

Exit status: 0 all finished, 1 a job diverged or failed (the others were run), 2 bad input, else that of the job that ended the
sweep (3: stopped early with a checkpoint).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

ROOT = Path(__file__).resolve().parent.parent
FAILED, BAD_INPUT = 1, 2
_UNSAFE = re.compile(r"[^\w.+-]+")  # in the name of a directory

_CONFIG = flags.DEFINE_string("config", "", "a config file, such as configs/tiny_sft.py")
_WORKDIR = flags.DEFINE_string("workdir", "", "work directory of a single job; of several, the directory that holds theirs")
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "FIELD=VALUE,VALUE,...: values of a config field; may be repeated, and every combination is a job. Commas inside brackets "
    "or quotes belong to a value. A single value is the same in every job",
)
_SEEDS = flags.DEFINE_list("seeds", [], "values of the config field seed: 0,1,2")
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "xm_local", "vertex"], "where jobs run; the last two need XManager")
_PROCESSES = flags.DEFINE_integer("processes", 1, "local: processes of this machine that train one job together")
_RESOURCES = flags.DEFINE_list("resources", [], "vertex: what a job needs: tpu_v3=8, or cpu=16,ram=64 (GiB)")
_PIXELIS = flags.DEFINE_string("pixelis", None, "local, xm_local: the pixelis command (default: the one of this Python)")
_TITLE = flags.DEFINE_string("title", "pixelis", "xm_local, vertex: title of the experiment")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands and start nothing")


class InputError(Exception):
    """Bad input; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its name among its siblings (empty if it has none) and the arguments of `pixelis`."""

    name: str
    arguments: tuple[str, ...]


def make_jobs(config: str, workdir: str, sweep: Sequence[tuple[str, Sequence[str]]]) -> list[Job]:
    """Every combination of values, the last field changing fastest.

    Args:
      config: Path of the config file.
      workdir: Of a single job, or the directory that holds those of several.
      sweep: Fields with their values.

    Raises:
      InputError: Two jobs would share a work directory.
    """
    named = [field for field, values in sweep if len(values) > 1]
    jobs: dict[str, Job] = {}
    for values in itertools.product(*(values for _, values in sweep)):
        point = dict(zip((field for field, _ in sweep), values, strict=True))
        name = ",".join(f"{_short(field, named)}={_UNSAFE.sub('_', point[field]).strip('_')}" for field in named)
        if name in jobs:
            raise InputError(f"two jobs would share the work directory {workdir}/{name}: give each value once")
        where = f"{workdir.rstrip('/')}/{name}" if name else workdir
        overrides = (f"--config.{field}={value}" for field, value in point.items())
        jobs[name] = Job(name, ("train", f"--config={config}", f"--workdir={where}", *overrides))
    return list(jobs.values())


def parse_sweep(texts: Sequence[str], seeds: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Fields with their values.

    Args:
      texts: `FIELD=VALUE,VALUE`.
      seeds: Values of the field `seed`, empty for none.

    Raises:
      InputError: A text has no field, no value, or a field that came before.
    """
    sweep: dict[str, list[str]] = {}
    for text in [*texts, *([f"seed={','.join(seeds)}"] if seeds else [])]:
        field, equals, rest = text.partition("=")
        if field.startswith("config."):
            raise InputError(f"--sweep={text}: write {field.removeprefix('config.')}, without config.")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", field) or not equals:
            raise InputError(f"--sweep={text}: expected FIELD=VALUE,VALUE,... with a field such as optimizer.learning_rate")
        if field in sweep:
            raise InputError(f"--sweep: {field} is given twice" + (" (--seeds gives it too)" if field == "seed" else ""))
        sweep[field] = _split(rest)
        if not all(sweep[field]):
            raise InputError(f"--sweep={text}: a value is empty")
    for seed in seeds:
        if not seed.isdigit():
            raise InputError(f"--seeds: {seed!r} is not a whole number of at least 0")
    return list(sweep.items())


def run_here(jobs: Sequence[Job], pixelis: str, processes: int) -> int:
    """Runs jobs one after the other; returns the exit status."""
    failed = []
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {shlex.join((pixelis, *job.arguments))}", flush=True)
        status = _run_together([pixelis, *job.arguments], _environments(processes))
        if status == FAILED:
            failed.append(job.name or job.arguments[2])
        elif status != 0:
            print(f"launch: job {number} of {len(jobs)} ended with status {status}; no further one is started", file=sys.stderr)
            return status
    if failed:
        print(f"launch: {len(failed)} of {len(jobs)} diverged or failed: {'; '.join(failed)}", file=sys.stderr)
    return FAILED if failed else 0


def run_with_xmanager(jobs: Sequence[Job], executor: str, resources: Mapping[str, Any], pixelis: str, title: str) -> int:
    """Adds jobs to an XManager experiment: one after the other on this machine, all at once on Vertex AI.

    Returns:
      The exit status.

    Raises:
      InputError: XManager is not installed, or Vertex AI has no such resources or knows nothing of the user.
    """
    try:
        from google.auth.exceptions import GoogleAuthError
        from xmanager import xm, xm_local
    except ImportError as error:
        raise InputError(
            f"--executor={executor} needs XManager, in an environment of its own: "
            f"pip install -r experiments/requirements-xmanager.txt ({error})"
        ) from error

    if executor == "vertex":
        where = xm_local.Vertex(requirements=vertex_requirements(resources))
        what = xm.Dockerfile(path=str(ROOT), dockerfile=str(ROOT / "experiments" / "Dockerfile"))
    else:
        where, what = xm_local.Local(), xm.Binary(path=pixelis)

    async def submit() -> None:
        async with xm_local.create_experiment(experiment_title=title) as experiment:
            (executable,) = experiment.package([xm.Packageable(executable_spec=what, executor_spec=where.Spec())])
            for job in jobs:
                unit = await experiment.add(xm.Job(executable=executable, executor=where, args=list(job.arguments)))
                if executor == "xm_local":
                    await unit.wait_until_complete()

    try:
        asyncio.run(submit())
    except xm.ExperimentUnitFailedError as error:
        print(f"launch: {error}; no further job is started", file=sys.stderr)
        return FAILED
    except GoogleAuthError as error:
        raise InputError(f"--executor={executor}: {error}") from error
    return 0


def vertex_requirements(resources: Mapping[str, Any]) -> Any:
    """`xm.JobRequirements` of what Vertex AI can give.

    Args:
      resources: Amounts by XManager's names, in small letters; memory in GiB.

    Raises:
      InputError: There is no such resource, or XManager cannot start it there.
    """
    from xmanager import xm

    amounts = {name: amount * xm.GiB if name in ("ram", "memory", "disk") else amount for name, amount in resources.items()}
    try:
        requirements = xm.JobRequirements(amounts)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--resources: {str(error).strip(chr(34))}") from error
    tpu = requirements.accelerator
    if tpu is not None and tpu in xm.TpuType and tpu.name not in ("TPU_V2", "TPU_V3"):
        raise InputError(
            f"--resources: XManager starts TPU v2 and v3 on Vertex AI, not {tpu.name.lower()}; "
            "start the command of --dry_run on each host of the pod (experiments/README.md)"
        )
    return requirements


def main(argv: Sequence[str]) -> int:
    """Runs with parsed flags, as `xmanager launch` calls it; returns the exit status."""
    try:
        return _main(argv)
    except InputError as error:
        print("launch: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT


def _main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise InputError(f"--{flag.name} is missing")
    executor, resources = _EXECUTOR.value, _parse_resources(_RESOURCES.value)
    if not Path(_CONFIG.value).is_file():
        raise InputError(f"--config: no such file: {_CONFIG.value}")
    if _PROCESSES.value < 1 or (_PROCESSES.value > 1 and executor != "local"):
        raise InputError(f"--processes={_PROCESSES.value}: at least 1, and more only with --executor=local")
    if executor == "vertex":
        _check_for_vertex(_CONFIG.value, _WORKDIR.value, resources)
    elif resources:
        raise InputError("--resources: only with --executor=vertex")
    jobs = make_jobs(_CONFIG.value, _WORKDIR.value, parse_sweep(_SWEEP.value, _SEEDS.value))
    if _DRY_RUN.value:
        for job in jobs:
            for environment in _environments(_PROCESSES.value):
                settings = "".join(f"{name}={value} " for name, value in environment.items())
                print(settings + shlex.join((_PIXELIS.value or "pixelis", *job.arguments)))
        return 0
    pixelis = "" if executor == "vertex" else _find_pixelis(_PIXELIS.value)
    if executor == "local":
        return run_here(jobs, pixelis, _PROCESSES.value)
    return run_with_xmanager(jobs, executor, resources, pixelis, _TITLE.value)


def _short(field: str, fields: Sequence[str]) -> str:
    """The last part of a dotted name, or all of it where another field ends alike."""
    last = field.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in fields) == 1 else field


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    if depth or quote:
        raise InputError(f"--sweep: a bracket or quote is left open in {text!r}")
    return [part.strip() for part in parts]


def _parse_resources(texts: Sequence[str]) -> dict[str, int]:
    resources = {}
    for text in texts:
        name, _, amount = text.partition("=")
        if not amount.isdigit() or int(amount) < 1:
            raise InputError(f"--resources: {text!r} is not NAME=AMOUNT, such as tpu_v3=8")
        resources[name] = int(amount)
    return resources


def _check_for_vertex(config: str, workdir: str, resources: Mapping[str, int]) -> None:
    """What runs in a container finds the checkout's files, and keeps only what it writes into a bucket."""
    if Path(config).is_absolute() or not (ROOT / config).is_file():
        raise InputError(f"--config={config}: with --executor=vertex, a path relative to the checkout and inside it")
    if not workdir.startswith("/gcs/"):
        raise InputError(f"--workdir={workdir}: with --executor=vertex, /gcs/BUCKET/..., where Vertex AI mounts your buckets")
    if not resources:
        raise InputError("--executor=vertex needs --resources, such as tpu_v3=8")


def _find_pixelis(given: str | None) -> str:
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(given or "pixelis", path=beside)
    if found is None:
        raise InputError(f"no command {given or 'pixelis'!r}: install the package, or name it with --pixelis")
    return found


def _environments(processes: int) -> list[dict[str, str]]:
    """What each process of a job adds to its environment; `pixelis_jax.sharding.initialize_distributed` reads it."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(processes)}
    return [shared | {"JAX_PROCESS_ID": str(index)} for index in range(processes)]


def _run_together(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Starts a process in each environment and waits for all; returns the status of the first that failed, else 0."""
    children = [subprocess.Popen(command, env=os.environ | dict(environment)) for environment in environments]
    with _forwarding_signals(children):
        statuses = [child.wait() for child in children]
    # Killed by a signal: as a shell says it.
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)


@contextlib.contextmanager
def _forwarding_signals(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Lets the children end by themselves: training saves a checkpoint first. Ctrl-C reaches them without us."""

    def forward(number: int, _: object) -> None:
        for child in children:
            child.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(argv: Sequence[str]) -> int:
    """Parses the command line as `absl.app.run` does, with one line for an error."""
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
        return 0
    try:
        rest = flags.FLAGS(list(argv), known_only=True)
        if _EXECUTOR.value != "local" and not _DRY_RUN.value:
            with contextlib.suppress(ImportError):
                importlib.import_module("xmanager.xm_local")  # declares flags of its own, which may be among the rest
        rest = flags.FLAGS(rest)
    except flags.Error as error:
        print("launch: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    return main(rest)


if __name__ == "__main__":
    sys.exit(_run(sys.argv))
