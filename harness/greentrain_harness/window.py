"""``measure``: joules of a block or of a function, in two lines of user code.

    with greentrain.measure("epoch") as epoch:
        train_one_epoch()
    print(epoch.energy_j, epoch.error_j, epoch.source)

Parts of a window share its open meter and cost a few microseconds each:

    with greentrain.measure("epoch") as epoch:
        with epoch.part("forward") as forward:
            ...

It never raises for a missing or lost sensor: then ``energy_j`` is None and ``note`` says why.

Where a launcher runs several ranks on one board, each would measure the same joules: only local rank 0 counts a
meter that sees the whole board, so that the sum over ranks is the sum over boards.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Span
from greentrain.units import format_quantity
from greentrain_harness.meters import open_named
from greentrain_harness.sampler import Sampler

__all__ = ["Window", "describe", "local_rank", "measure"]

# The rank on its board, as torchrun, Open MPI and Slurm say it; torchrun first, since it may run inside the others.
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("greentrain")


class Window:
    """A measured stretch of code; its figures are there after the block has ended.

    Attributes:
        label: Shown in the log line at the end.
        calls: As a decorator: one window per call that has ended, in order.
    """

    def __init__(
        self, label: str | None, *, device: str, sysroot: Path, synchronize: Callable[[], object] | None = None,
        whole: Window | None = None,
    ) -> None:  # fmt: skip
        self.label = label
        self.calls: list[Window] = []
        self._device = device
        self._sysroot = sysroot
        self._synchronize = synchronize
        self._whole = whole
        self._sampler: Sampler | None = None
        self._known: Span | None = None
        self._note = "not measured yet"
        self._start_s = 0.0
        self._stop_s: float | None = None

    @property
    def span(self) -> Span | None:
        """The figures, worked out when they are asked for; None while the block runs, or without a meter."""
        if self._known is None and self._stop_s is not None and self._sampler is not None:
            self._known = self._sampler.span(self._start_s, self._stop_s)
        return self._known

    @property
    def energy_j(self) -> float | None:
        """Joules of the meter's roots together; None when nothing was measured."""
        return None if self.span is None else self.span.energy_j

    @property
    def error_j(self) -> float | None:
        """± joules; None when nothing was measured."""
        return None if self.span is None else self.span.error_j

    @property
    def duration_s(self) -> float:
        """Seconds; 0 while the block runs."""
        return 0.0 if self._stop_s is None else self._stop_s - self._start_s

    @property
    def mean_w(self) -> float | None:
        """Mean power, watts; None when nothing was measured."""
        return None if self.span is None else self.span.mean_w

    @property
    def gap_s(self) -> float:
        """Seconds without data, which the energy leaves out."""
        return self.duration_s if self.span is None else self.span.gap_s

    @property
    def source(self) -> Source | None:
        """``measured`` or ``modelled``; None when nothing was measured."""
        return None if self.span is None else self.span.source

    @property
    def meter(self) -> str | None:
        """Name of the meter; None when there was none."""
        return None if self.span is None else self.span.meter

    @property
    def channels(self) -> dict[str, float | None]:
        """Joules by channel."""
        return {} if self.span is None else self.span.channels_j

    @property
    def rails(self) -> tuple[Channel, ...]:
        """The meter's channels, with what contains what; empty without a meter."""
        return () if self._sampler is None else self._sampler.channels

    @property
    def throttled(self) -> tuple[str, ...] | None:
        """Why clocks were held back, as seen once a second and at the ends of the whole window.

        Empty when nothing held them back; None when the meter cannot tell, or was not asked.
        """
        if self._sampler is None or self._stop_s is None:
            return None
        return self._sampler.throttled(self._start_s, self._stop_s)

    @property
    def note(self) -> str:
        """What a reader must know of the figures."""
        return self._note

    def part(self, label: str | None = None) -> Window:
        """A window inside this one, on the same open meter; parts may nest, overlap and follow each other."""
        return Window(
            label, device=self._device, sysroot=self._sysroot, synchronize=self._synchronize, whole=self
        )  # fmt: skip

    def __enter__(self) -> Window:
        """Open the meter and start."""
        self._known, self._stop_s = None, None
        if self._whole is None:
            self._sampler = self._opened()
        else:
            self._sampler, self._note = self._whole._sampler, self._whole.note
        if self._synchronize is not None:
            self._synchronize()
        self._look_at_counters()
        self._start_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and close the meter; errors of the block pass through."""
        # After an error in the block the device may be in no state to be waited for.
        if self._synchronize is not None and error is None:
            self._synchronize()
        self._look_at_counters()
        if self._sampler is not None and self._whole is None:
            self._sampler.look_at_clocks()
        self._stop_s = time.monotonic()
        if self._sampler is not None and self._whole is None:
            self._known = self._sampler.span(self._start_s, self._stop_s)
            self._sampler.close()
            _log.info("%s: %s", self.label or "measure", describe(self._known))

    def _look_at_counters(self) -> None:
        """A counter is interpolated between the samples around an end: the closer they are, the better."""
        if self._sampler is not None and self._whole is None and self._sampler.counts:
            self._sampler.sample_now()

    def _opened(self) -> Sampler | None:
        try:
            meter = open_named(self._device, sysroot=self._sysroot)
        except UnavailableError as error:
            # Code that is measured must run on machines without the sensor too.
            self._note = str(error)
            _log.warning("%s: nothing is measured: %s", self.label or "measure", error)
            return None
        rank = local_rank(os.environ)
        if meter.scope == "board" and rank:
            meter.close()
            self._note = f"this is local rank {rank}: local rank 0 counts the joules of this board (meter {meter.name})"
            return None
        self._note = meter.note
        if meter.scope == "board" and rank is None and _is_distributed(os.environ):
            self._note += "; RANK is set and LOCAL_RANK is not: other ranks on this board would count the same joules"
        return Sampler(meter).__enter__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Measure every call of a function; the windows are kept in :attr:`calls`."""

        @functools.wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            window = Window(
                self.label or function.__name__, device=self._device, sysroot=self._sysroot,
                synchronize=self._synchronize, whole=self._whole,
            )  # fmt: skip
            try:
                with window:
                    return function(*args, **kwargs)
            finally:
                self.calls.append(window)

        return measured


def measure(
    label: str | None = None,
    *,
    device: str = "auto",
    sysroot: Path = Path("/"),
    synchronize: Callable[[], object] | None = None,
) -> Window:
    """Measure the joules of a ``with`` block, or of every call of a decorated function.

    Work on a GPU must be waited for at both ends, or its energy falls outside the window.
    On a local rank other than 0, a meter of the whole board gives None: local rank 0 counts its joules.

    Args:
        label: Shown in the log line at the end (logger ``greentrain``).
        device: ``auto``, ``jetson``, ``nvidia``, ``cpu``, ``modelled`` or the name of a meter.
        sysroot: Prefix of /sys, /proc and /etc.
        synchronize: Called at both ends, such as ``torch.cuda.synchronize``.

    Raises:
        UsageError: On entry, when there is no meter of that name.
    """
    return Window(label, device=device, sysroot=sysroot, synchronize=synchronize)


def local_rank(environment: Mapping[str, str]) -> int | None:
    """This process's number among the ranks on its board; None when no launcher says so.

    Args:
        environment: Environment variables.
    """
    for name in _LOCAL_RANKS:
        text = environment.get(name, "")
        if text.isdecimal():
            return int(text)
    return None


def _is_distributed(environment: Mapping[str, str]) -> bool:
    """Whether a launcher numbers this process, without saying on which board."""
    return environment.get("RANK", "").isdecimal() and environment.get("WORLD_SIZE") != "1"


def describe(span: Span) -> str:
    """A span in one line: joules ± error, seconds, watts, source and meter."""
    if span.energy_j is None or span.error_j is None:
        text = f"nothing measured in {format_quantity(span.duration_s, 'time')}"
    else:
        text = (
            f"{format_quantity(span.energy_j, 'energy', digits=4)} ± {format_quantity(span.error_j, 'energy')} in "
            f"{format_quantity(span.duration_s, 'time')} (mean {format_quantity(span.mean_w, 'power')})"
        )
    gap = f", {format_quantity(span.gap_s, 'time')} without data" if span.gap_s > 0 else ""
    return f"{text}{gap}, source={span.source}, meter {span.meter}"
