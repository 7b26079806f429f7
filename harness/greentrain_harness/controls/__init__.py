"""Knobs of a device, one file each: ``detect(sysroot) -> None | why_not`` and ``open_control(*, sysroot)``.

A control is a context manager that puts back what it found: at the end, after an exception, on SIGTERM, and
after a SIGKILL at the next start of greentrain.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from greentrain.errors import UnavailableError, UsageError
from greentrain_harness.controls._base import PointControl
from greentrain_harness.controls._journal import restore_after_crash
from greentrain_harness.controls._product import ProductControl

__all__ = [
    "CONTROLS",
    "ControlModule",
    "PointControl",
    "control_module",
    "control_with",
    "detect_all",
    "open_control",
    "restore_after_crash",
]

# Combinations that are looked through for a point, beside the single controls.
_GRIDS = (("cpufreq", "devfreq"),)
CONTROLS: tuple[str, ...] = ("nvpmodel", "nvml_limit", "cpufreq", "devfreq", "jetson_clocks")


class ControlModule(Protocol):
    """What a control's file offers."""

    def detect(self, sysroot: Path = ...) -> str | None:
        """None when usable, else one sentence why not and where it looked."""
        ...

    def open_control(self, *, sysroot: Path = ...) -> PointControl:
        """Open the control, or raise UnavailableError."""
        ...


def control_module(name: str) -> ControlModule:
    """The file behind the name of a control.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in CONTROLS:
        raise UsageError(f"unknown control {name!r}.", hint=f"Known: auto, {', '.join(CONTROLS)}; several with +.")
    return cast("ControlModule", importlib.import_module(f"{__name__}.{name}"))


def detect_all(sysroot: Path = Path("/")) -> dict[str, str | None]:
    """Every control's name with None when it is usable here, else why not."""
    return {name: control_module(name).detect(sysroot) for name in CONTROLS}


def open_control(name: str, *, sysroot: Path = Path("/"), meter: str | None = None) -> PointControl:
    """Open a control by its name.

    Args:
        name: Its name, or ``auto``: power modes of a Jetson, the limit of a GPU where the meter sees only that,
            else the CPU clock. Several joined by a plus sign are one control of all combinations:
            ``cpufreq+devfreq``.
        sysroot: Prefix of /sys, /proc and /etc.
        meter: Name of the meter that will look on.

    Raises:
        UsageError: There is none of that name, or two of a combination set the same thing.
        UnavailableError: It cannot be used here; the sentence says why.
    """
    if "+" in name:
        parts = name.split("+")
        if len(set(parts)) < len(parts) or "auto" in parts:
            raise UsageError(
                f"control {name!r} names one twice, or auto.", hint="Combine different controls: cpufreq+devfreq."
            )
        return ProductControl(tuple(control_module(part).open_control(sysroot=sysroot) for part in parts))
    if name != "auto":
        return control_module(name).open_control(sysroot=sysroot)
    candidates = ("nvml_limit",) if meter == "nvml" else ("nvpmodel", "cpufreq")
    reasons: list[str] = []
    for candidate in candidates:
        why_not = control_module(candidate).detect(sysroot)
        if why_not is None:
            return control_module(candidate).open_control(sysroot=sysroot)
        reasons.append(f"{candidate}: {why_not}")
    raise UnavailableError(
        f"No operating points can be set here ({'; '.join(reasons)}).",
        hint="Run the command with sudo, or measure the present one with --points current.",
    )


def control_with(point: str, *, sysroot: Path = Path("/"), meter: str | None = None) -> PointControl:
    """The control that offers a point: any that can be used here, or CPU and GPU clocks together.

    Args:
        point: Name of an operating point.
        sysroot: Prefix of /sys, /proc and /etc.
        meter: Name of the meter that will look on.

    Returns:
        The control; that of ``auto`` when none offers the point, so that the caller can say what there is.

    Raises:
        UnavailableError: No control can be used here.
    """
    usable = [name for name, why_not in detect_all(sysroot).items() if why_not is None]
    grids = ["+".join(grid) for grid in _GRIDS if set(grid) <= set(usable)]
    for name in (*usable, *grids):
        control = open_control(name, sysroot=sysroot)
        if point in control.points():
            return control
    return open_control("auto", sysroot=sysroot, meter=meter)
