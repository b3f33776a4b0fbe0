"""The progress bar of a fit, silent where there is no terminal to draw on."""

from __future__ import annotations

import sys
from typing import Any

from diffeo.training.plan import Plan


class Progress:
    """Shows steps, rate, training and held-out nats (or losses), and time left on stderr; a context manager."""

    def __init__(self, plan: Plan, shown: bool, in_nats: bool = True):
        self._bar: Any = None
        self._plan = plan
        self._sign, self._unit = (-1, " nats") if in_nats else (1, "")
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("fit"),
                BarColumn(),
                TextColumn("{task.fields[steps]} steps"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[losses]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("fit", total=1.0, steps=0, rate="", losses="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int, elapsed: float) -> None:
        """So many steps are done, after so many seconds; the bar and the time left follow the plan's time limit too."""
        if self._bar:
            self._bar.update(
                self._task, completed=self._plan.done(step, elapsed), steps=f"{step:,}/{self._plan.steps:,}"
            )

    def report(self, train_loss: float, validation_loss: float | None, rate: float) -> None:
        """What the last evaluation said; rate in steps per second."""
        if self._bar:
            held = "" if validation_loss is None else f"  held-out {self._sign * validation_loss:.3f}"
            losses = f"train {self._sign * train_loss:.3f}{held}{self._unit}"
            self._bar.update(self._task, rate=f"{rate:.0f}/s", losses=losses)
