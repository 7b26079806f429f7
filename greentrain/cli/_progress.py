"""What a person sees while a run or a search goes: live on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from greentrain.plan import Estimate, Plan
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from greentrain.runtime.messages import DeviceLive, Progress

__all__ = ["Patience", "Watcher"]

# Without a terminal: a line at least this far apart.
_LINE_EVERY_S = 5.0
# A search that ends sooner says nothing.
_SILENT_S = 2.0
_SHORTEST_LINE_S = 0.2


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
        # One that tells of a change comes without the devices.
        devices = progress.devices or ({} if self.last is None else self.last.devices)
        self.last = msgspec.structs.replace(progress, devices=devices)
        if self._quiet:
            return
        if progress.event is not None:
            click.echo(f"  {progress.event}", err=True)
        if progress.loss is None:
            return
        rate = progress.step * self._plan.batch / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        state = (
            f"round {progress.step}/{progress.steps}, epoch {progress.epoch}, loss {progress.loss:.4f}, "
            f"{rate:.4g} samples/s (predicted {self._price.samples_per_s:.4g}){self._energy_text(devices)}"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress.step, total=progress.steps, state=state)
        elif progress.step == progress.steps or time.monotonic() - self._line_s >= _LINE_EVERY_S:
            self._line_s = time.monotonic()
            click.echo(f"  {state}", err=True)

    def _energy_text(self, devices: Mapping[str, DeviceLive]) -> str:
        """Joules per sample, predicted beside them, watts by device, and what is left of a budget."""
        known = {name: live for name, live in devices.items() if live.joules_per_sample is not None}
        if not known:
            return ""
        silent = len(known) < len(devices)
        per_sample_j = sum(live.joules_per_sample or 0.0 for live in known.values())
        parts = [
            f"{per_sample_j:.4g} J/sample (predicted {self._price.energy_j_per_sample:.4g}"
            f"{', of ' + ' '.join(known) if silent else ''})"
        ]
        parts += [
            f"{name} {live.power_w:.3g} W {live.joules_per_sample:.3g} J/sample (predicted {self._predicted_j(name)})"
            for name, live in known.items()
            if live.power_w is not None
        ]
        budget_j = self._plan.objective.budget_j
        if budget_j is not None:
            left_j = budget_j - sum(live.energy_j or 0.0 for live in known.values())
            parts.append(f"{format_quantity(left_j, 'energy')} of the budget left")
        return "; " + "; ".join(parts)

    def _predicted_j(self, name: str) -> str:
        causes = self._price.energy_j.get(name)
        return "none" if causes is None else f"{sum(causes.values()) / self._plan.batch:.3g}"


class Patience:
    """Tells how far a search is, and lets Ctrl-C end it with what it has.

    Inside it an interrupt is remembered: a planner that ends its innermost search only is interrupted again when
    it reports the next time.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.interrupted = False
        self._quiet = quiet
        self._begun_s = time.monotonic()
        self._line_s = self._begun_s + _SILENT_S - _LINE_EVERY_S
        self._shown = 0
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Patience:
        # Only the main thread may; elsewhere nobody presses Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self._clear()

    def report(self, text: str) -> None:
        """Show how far the search is.

        Raises:
            KeyboardInterrupt: It should end.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        now_s = time.monotonic()
        live = sys.stderr.isatty()
        if self._quiet or now_s - self._line_s < (_SHORTEST_LINE_S if live and self._shown else _LINE_EVERY_S):
            return
        self._line_s = now_s
        line = f"  {now_s - self._begun_s:.0f} s: {text}; Ctrl-C takes the best plan so far"
        if live:
            click.echo(f"\r{line:{self._shown}}", err=True, nl=False)
            self._shown = len(line)
        else:
            click.echo(line, err=True)

    def _clear(self) -> None:
        if self._shown:
            click.echo(f"\r{'':{self._shown}}\r", err=True, nl=False)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        raise KeyboardInterrupt
