"""Several controls as one: every combination of their points, all put back.

``cpufreq+devfreq`` sets CPU and GPU clocks together; its points are named as ``cpu1.2GHz-gpu0.918GHz``.
"""

from __future__ import annotations

import contextlib
import itertools
from types import TracebackType

import msgspec

from greentrain.device import OperatingPoint
from greentrain.errors import RunError, UsageError
from greentrain_harness.controls._base import PointControl, undisturbed

__all__ = ["ProductControl"]


class ProductControl:
    """A control whose points are the product of other controls' points.

    Use as a context manager. All controls are put back, the last one first, even when one of them fails.

    Args:
        controls: At least two; no two may set the same clock or cap.

    Raises:
        UsageError: Two of them set the same thing.
    """

    def __init__(self, controls: tuple[PointControl, ...]) -> None:
        self._controls = controls
        self.name = "+".join(control.name for control in controls)
        self._check_apart()
        self._names: dict[str, tuple[str, ...]] = {}
        self._points: dict[str, OperatingPoint] = {}
        for names in itertools.product(*(control.points() for control in controls)):
            parts = [control.operating_point(name) for control, name in zip(controls, names, strict=True)]
            point = _united(parts)
            self._names[point.name], self._points[point.name] = names, point

    def points(self) -> tuple[str, ...]:
        """Names of all combinations; the first is the fastest of every control."""
        return tuple(self._points)

    def operating_point(self, name: str) -> OperatingPoint:
        """Clocks and caps of a combination.

        Raises:
            UsageError: There is none of that name.
        """
        if name not in self._points:
            raise UsageError(f"control {self.name} has no point {name!r}.", hint=f"It has: {', '.join(self._points)}.")
        return self._points[name]

    def set(self, point: str) -> None:
        """Set a combination, one control after the other.

        Raises:
            UsageError: There is none of that name.
            UnavailableError: No permission, or the kernel refuses.
        """
        self.operating_point(point)
        for control, name in zip(self._controls, self._names[point], strict=True):
            control.set(name)

    def __enter__(self) -> ProductControl:
        """Enter all controls; nothing is changed yet."""
        with contextlib.ExitStack() as stack:
            for control in self._controls:
                stack.enter_context(control)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what all controls found.

        Raises:
            RunError: Something could not be put back; all of it is named.
        """
        failures: list[RunError] = []
        with undisturbed():
            for control in reversed(self._controls):
                try:
                    control.__exit__(kind, error, trace)
                except RunError as failure:
                    failures.append(failure)
        if failures:
            raise RunError(" ".join(failure.message for failure in failures), hint=failures[0].hint)

    def _check_apart(self) -> None:
        taken: dict[str, str] = {}
        for control in self._controls:
            fields = {field for name in control.points() for field in _set_fields(control.operating_point(name))}
            for field in sorted(fields):
                if field in taken:
                    raise UsageError(
                        f"controls {taken[field]} and {control.name} both set {field}.",
                        hint="Combine controls of different things, such as cpufreq+devfreq.",
                    )
            taken |= dict.fromkeys(fields, control.name)


def _set_fields(point: OperatingPoint) -> dict[str, float]:
    return {
        field: value
        for field in ("cpu_hz", "gpu_hz", "mem_hz", "cap_w")
        if (value := getattr(point, field)) is not None
    }


def _united(parts: list[OperatingPoint]) -> OperatingPoint:
    fields: dict[str, float] = {}
    for part in parts:
        fields |= _set_fields(part)
    return msgspec.convert({"name": "-".join(map(_part_name, parts)), **fields}, OperatingPoint)


def _part_name(point: OperatingPoint) -> str:
    """``cpu1.2GHz`` for a point that is nothing but a clock, else its own name."""
    fields = _set_fields(point)
    for field, what in (("cpu_hz", "cpu"), ("gpu_hz", "gpu")):
        if set(fields) == {field}:
            return f"{what}{fields[field] / 1e9:.4g}GHz"
    return point.name
