"""What a person sees while a run goes: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from greentrain.plan import Estimate, Plan

if TYPE_CHECKING:
    from greentrain.runtime.messages import Progress

__all__ = ["Watcher"]

# Without a terminal: a line at least this far apart.
_LINE_EVERY_S = 5.0


class Watcher:
    """Shows progress lines of a run and remembers the last one.

    Args:
        plan: The plan.
        price: What the rounds are predicted to cost.
        beginning: What happens before the first round.
        quiet: Show nothing.
    """

    def __init__(self, plan: Plan, price: Estimate, beginning: str, *, quiet: bool) -> None:
        self.last: Progress | None = None
        self._plan = plan
        self._price = price
        self._beginning = beginning
        self._quiet = quiet
        self._bar: Bar | None = None
        self._line_s = 0.0

    @property
    def steps_done(self) -> int:
        """Rounds completed so far."""
        return 0 if self.last is None else self.last.step

    def __enter__(self) -> Watcher:
        if self._quiet:
            return self
        click.echo(
            f"Training {self._plan.model} on {', '.join(self._plan.devices)}: predicted "
            f"{self._price.samples_per_s:.4g} samples/s, {self._price.energy_j_per_sample:.4g} J/sample; "
            f"{self._beginning}",
            err=True,
        )
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"),
                       TimeRemainingColumn())  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._bar.add_task("rounds", total=None, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, progress: Progress) -> None:
        """Show one progress line."""
        self.last = progress
        if self._quiet:
            return
        rate = progress.step * self._plan.batch / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        state = (
            f"round {progress.step}/{progress.steps}, epoch {progress.epoch}, loss {progress.loss:.4f}, "
            f"{rate:.4g} samples/s (predicted {self._price.samples_per_s:.4g})"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress.step, total=progress.steps, state=state)
        elif progress.step == progress.steps or time.monotonic() - self._line_s >= _LINE_EVERY_S:
            self._line_s = time.monotonic()
            click.echo(f"  {state}", err=True)
