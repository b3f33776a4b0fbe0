"""The progress bar of a fit, silent where there is no terminal to draw on."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows steps, rate, and training and held-out nats (or losses) on stderr; a context manager."""

    def __init__(self, steps: int, start: int, shown: bool, in_nats: bool = True):
        self._bar: Any = None
        self._sign, self._unit = (-1, " nats") if in_nats else (1, "")
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("fit"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[losses]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("fit", total=steps, completed=start, rate="", losses="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self) -> None:
        """One step more."""
        if self._bar:
            self._bar.advance(self._task)

    def report(self, train_loss: float, validation_loss: float | None, rate: float) -> None:
        """What the last evaluation said; rate in steps per second."""
        if self._bar:
            held = "" if validation_loss is None else f"  held-out {self._sign * validation_loss:.3f}"
            losses = f"train {self._sign * train_loss:.3f}{held}{self._unit}"
            self._bar.update(self._task, rate=f"{rate:.0f}/s", losses=losses)
