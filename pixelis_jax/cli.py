"""The `pixelis` command: finds the command's module, parses its arguments, and turns errors into one line.

Exit status: 0 done, 1 the command found a difference or a failure, 2 bad input, 3 training stopped early, 130 interrupted, 141
the reader of the output has gone. Nothing is imported before it is needed: a spawned tool worker imports this module too, and
must stay free of JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tools_host.registry import did_you_mean

INTERRUPTED = 130

COMMANDS = {
    "demo": "train the tiny policy here, evaluate it, and write its report",
    "ask": "answer a question about images and videos, step by step",
    "tools": "list the tools, or run one without a model",
    "replay": "run every call of a trace again and compare",
    "report": "write report.html: curves, tables, every trace drawn on its pixels",
    "data": "build scenes and oracle traces, or audit a data set for near-duplicates",
    "train": "train a phase; resumes by itself from its work directory",
    "eval": "judge a model on scenes, with and without tools",
    "sweep": "run every combination of a sweep's variants, or print the commands",
    "plan": "compile for a TPU slice, on a machine without one",
    "convert": "convert weights between the published layout and Orbax",
    "bench": "measure what the README claims",
}
"""Every command and what it does; its module is `pixelis_jax.commands.<name>`."""

_USER_ERRORS = (
    ("tools_host.images", "MediaError"),
    ("tools_host.registry", "UnknownNameError"),
    ("pixelis_jax.trajectory.errors", "TrajectoryError"),
    ("pixelis_jax.workdir.errors", "WorkdirError"),
    ("pixelis_jax.data.records", "RecordError"),
    ("pixelis_jax.memory.errors", "StoreError"),
    ("pixelis_jax.policy.config", "ConfigError"),
    ("pixelis_jax.policy.weights", "WeightsError"),
    ("pixelis_jax.plan.topologies", "PlanError"),
    ("pixelis_jax.rollout.call_grammar", "GrammarError"),
    ("pixelis_jax.commands.errors", "UserError"),
)
"""Errors whose message is meant for the user, by module: one that was never imported can have raised none."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that names the nearest known word, and that takes no abbreviations."""

    def __init__(self, *args: object, **keywords: object) -> None:
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        keywords["allow_abbrev"] = False
        super().__init__(*args, **keywords)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where help is, and exits with status 2."""
        self.exit(2, f"pixelis: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base class, but nothing is left over: the parser of a sub-command knows its own options best."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            guess = did_you_mean(left[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(left)}{guess}")
        return found, left

    def takes(self, option: str) -> bool:
        """Whether it declares an option."""
        return option in self._option_string_actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            guess = did_you_mean(str(value), map(str, action.choices))
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{guess} (known: {known})")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the program's name; those of the process if None.

    Returns:
      The exit status.
    """
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _end_at_interrupt()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this, the interpreter would complain once more when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{(error.strerror or str(error)).lower()}{where}")
    except Exception as error:
        if isinstance(error, _loaded_user_errors()):
            return _fail(str(error))
        raise


def overview() -> str:
    """The text of `pixelis --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pixelis COMMAND ...",
            "",
            "An agent that answers questions about images and videos by acting on their pixels.",
            "",
            "commands:",
            *lines,
            "",
            "`pixelis COMMAND --help` says more; `pixelis --version` prints the version.",
        ]
    )


def _run(argv: list[str]) -> int:
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:  # bytes of the command line that are not UTF-8 come as halves of surrogate pairs
            return _fail(f"{argument!r} is not UTF-8, so no trace could name it; rename the file, or write the text in UTF-8")
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from pixelis_jax import __version__

        print(f"pixelis {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (known: {', '.join(COMMANDS)})")
    module = importlib.import_module(f"pixelis_jax.commands.{name}")
    parser = Parser(prog=f"pixelis {name}", description=module.__doc__)
    module.add_arguments(parser)
    # `--config.x=y` changes a field of the config file; argparse cannot declare such a family of options.
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    if overrides and not parser.takes("--config"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}; only a command with --config takes them")
    args = parser.parse_args([argument for argument in rest if argument not in overrides])
    args.overrides = overrides
    return int(module.run(args))


def _end_at_interrupt() -> None:
    """Makes Ctrl-C end this process at once, wherever it is; a training loop puts its own handler before this one.

    A KeyboardInterrupt is raised wherever Python happens to be: in an import, in a callback of XLA that swallows it, or below C++
    that does not survive it. Nothing is lost without one: files appear whole or not at all, and workers end with this process.
    """

    def end(*_: object) -> None:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
        # Workers would end by themselves (`tools_host.process_life`), but a moment later if they are still starting.
        multiprocessing = sys.modules.get("multiprocessing")
        for worker in multiprocessing.active_children() if multiprocessing else ():
            worker.kill()
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    # Semaphores that nobody took back are cleaned up by a helper of Python's, which would report them.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))


def _loaded_user_errors() -> tuple[type[BaseException], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _USER_ERRORS if module in sys.modules)


def _fail(message: str) -> int:
    print("pixelis: " + " ".join(message.split()), file=sys.stderr)
    return 2
