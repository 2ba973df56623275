"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Self

import rich.console
import rich.progress


class Progress:
    """Shows the steps of a run; a context manager."""

    def __init__(self, name: str, *, start: int, total: int, console: rich.console.Console | None = None):
        """Prepares the display.

        Args:
          name: what is shown before the numbers.
          start: steps already done.
          total: steps of the run.
          console: where to show it; standard output by default.
        """
        self._name, self._start, self._total = name, start, total
        self._console = console or rich.console.Console()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[scalars]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=self._total, completed=self._start, scalars="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows scalars beside the bar, or as a line of their own.

        Args:
          step: the step that they belong to.
          scalars: by name.
        """
        text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        self._bar.update(self._task, scalars=text)
        if not self._console.is_terminal:
            self._console.print(f"{self._name} {step}/{self._total}  {text}", soft_wrap=True, highlight=False)

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(message, soft_wrap=True, highlight=False, markup=False)
