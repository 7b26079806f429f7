"""The part that all controls share: keep what was found, set points, put back however the block ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Protocol

from greentrain.device import OperatingPoint
from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain.reading import Control
from greentrain_harness.controls._journal import FileSetting, Setting, forget, keep, put_back

__all__ = [
    "Knob",
    "PointControl",
    "RestoringControl",
    "as_found",
    "read_number",
    "spread",
    "undisturbed",
    "write_number",
]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# The kernel rounds a clock to one that the chip has.
_ROUNDING = 0.05


class PointControl(Control, Protocol):
    """A control that can say what its points mean."""

    def operating_point(self, name: str) -> OperatingPoint:
        """Clocks and caps of a point."""
        ...

    def __enter__(self) -> PointControl: ...


class Knob(Protocol):
    """What is different in every control."""

    @property
    def name(self) -> str: ...

    def found(self) -> tuple[Setting, ...]:
        """What has to be put back, in the order in which it must be undone from the end."""
        ...

    def turn(self, point: OperatingPoint) -> None:
        """Set a point.

        Raises:
            UnavailableError: The kernel or the driver refuses.
        """
        ...


class RestoringControl:
    """A control around a knob: nothing is changed before it is written down, and all is put back at the end.

    Use as a context manager. Exceptions, ``SIGTERM`` and ``SIGHUP`` put back, too; after a ``SIGKILL`` the next
    start of greentrain does.
    """

    def __init__(self, knob: Knob, points: tuple[OperatingPoint, ...], sysroot: Path) -> None:
        self._knob = knob
        self._points = {point.name: point for point in points}
        self._sysroot = sysroot
        self._kept: tuple[Setting, ...] | None = None
        self._handlers: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str:
        """Name of the control."""
        return self._knob.name

    def points(self) -> tuple[str, ...]:
        """Names of the operating points, the fastest first."""
        return tuple(self._points)

    def operating_point(self, name: str) -> OperatingPoint:
        """Clocks and caps of a point.

        Raises:
            UsageError: There is none of that name.
        """
        if name not in self._points:
            raise UsageError(
                f"control {self.name} has no point {name!r}.", hint=f"It has: {', '.join(self._points)}."
            )  # fmt: skip
        return self._points[name]

    def set(self, point: str) -> None:
        """Set an operating point.

        Raises:
            UsageError: There is none of that name.
            UnavailableError: No permission, or the kernel refuses.
        """
        wanted = self.operating_point(point)
        if self._kept is None:
            found = self._knob.found()
            keep(self.name, found, self._sysroot)
            self._kept = found
        self._knob.turn(wanted)

    def __enter__(self) -> RestoringControl:
        """Get ready to be stopped; nothing is changed yet."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _leave) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was found.

        Raises:
            RunError: Something could not be put back; the journal is kept for the next start.
        """
        with undisturbed():
            kept, self._kept = self._kept, None
            failures = put_back(kept) if kept is not None else []
            if not failures:
                forget(self.name, self._sysroot)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._handlers = {}
        if failures:
            raise RunError(
                f"{self.name}: not everything was put back: {'; '.join(failures)}.", hint="Run: sudo greentrain doctor"
            )


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End by way of all ``finally`` blocks."""
    del frame
    raise SystemExit(128 + number)


@contextlib.contextmanager
def undisturbed():
    """Hold signals back while settings are put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def as_found(path: Path) -> FileSetting:
    """A file with its present text, to be written back as it was.

    Raises:
        UnavailableError: It cannot be read, and so could not be put back.
    """
    try:
        return FileSetting(str(path), path.read_text())
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be read ({error.strerror}), so that it could not be put back.", hint="Look at it by hand."
        ) from error


def read_number(path: Path) -> int | None:
    """An integer in a file; None when there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def write_number(path: Path, value: int) -> None:
    """Write a clock and look whether the kernel took it.

    Raises:
        UnavailableError: No permission, or the kernel refuses or takes another value.
    """
    try:
        path.write_text(f"{value}\n")
    except PermissionError as error:
        raise UnavailableError(f"{path} may only be written by root.", hint="Run the command with sudo.") from error
    except OSError as error:
        raise UnavailableError(
            f"{path} refuses {value} ({error.strerror}).", hint="See which points the control has."
        ) from error
    taken = read_number(path)
    if taken is None or abs(taken - value) > _ROUNDING * value:
        raise UnavailableError(f"{path} took {taken} instead of {value}.", hint="Another limit holds the clock.")


def spread(values: list[int], most: int) -> list[int]:
    """At most so many of the values, the highest first, evenly from the highest to the lowest."""
    rising = sorted(set(values))
    if len(rising) <= most:
        return rising[::-1]
    steps = [round(index * (len(rising) - 1) / (most - 1)) for index in range(most)]
    return [rising[step] for step in reversed(steps)]
