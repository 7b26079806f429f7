"""One file per meter: ``detect(sysroot) -> None | why_not`` and ``open_meter(*, sysroot, device) -> Meter``.

The file's name is the name of the meter. To add one: write the file, add its name to :data:`METERS`,
and the contract suite (``tests/contract/test_meters.py``) runs on it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from greentrain.device import Device
from greentrain.errors import UsageError
from greentrain.reading import Meter
from greentrain_harness.meters._credentials import without_password

__all__ = [
    "ALIASES",
    "METERS",
    "MeterModule",
    "choose",
    "detect_all",
    "meter_module",
    "open_named",
    "without_password",
]

METERS: tuple[str, ...] = ("ina3221", "jtop", "rapl", "nvml", "combined", "hwmon", "wall", "replay", "modelled")

# What people say, and the meter behind it.
ALIASES: dict[str, str] = {"jetson": "ina3221", "cpu": "rapl", "nvidia": "nvml"}

# The order of "auto": the sensor that sees most of the machine first, the model last. A sensor that sees only
# a GPU is not among them: beside a computing processor it would call an idle card's joules the machine's.
_AUTO: tuple[str, ...] = ("ina3221", "jtop", "combined", "rapl", "modelled")

# Meters that take an argument after their name: replay:FILE, wall:URL.
_REPLAY, _WALL = "replay:", "wall:"


class MeterModule(Protocol):
    """What a meter's file offers."""

    def detect(self, sysroot: Path = ...) -> str | None:
        """None when usable, else one sentence why not and where it looked."""
        ...

    def open_meter(self, *, sysroot: Path = ..., device: Device | None = ...) -> Meter:
        """Open the meter, or raise UnavailableError."""
        ...


def meter_module(name: str) -> MeterModule:
    """The file behind the name of a meter (not an alias)."""
    return cast("MeterModule", importlib.import_module(f"{__name__}.{name}"))


def detect_all(sysroot: Path = Path("/")) -> dict[str, str | None]:
    """Every meter's name with None when it is usable here, else why not."""
    return {name: meter_module(name).detect(sysroot) for name in METERS}


def choose(name: str, *, sysroot: Path = Path("/")) -> str:
    """The meter behind a name; ``auto`` becomes the first one that is usable here.

    Raises:
        UsageError: There is no meter of that name.
    """
    if name == "auto":
        return next(meter for meter in _AUTO if meter_module(meter).detect(sysroot) is None)
    meter = ALIASES.get(name, name)
    if meter not in METERS and not meter.startswith((_REPLAY, _WALL)):
        raise UsageError(
            f"unknown meter {without_password(name)!r}.",
            hint=f"Known: auto, {', '.join(ALIASES)}, {', '.join(METERS)}, replay:FILE, wall:URL.",
        )
    return meter


def open_named(name: str, *, sysroot: Path = Path("/"), device: Device | None = None) -> Meter:
    """Open a meter by its name.

    Args:
        name: ``auto``, ``jetson``, ``nvidia``, ``cpu``, the name of a meter, ``replay:FILE`` or
            ``wall:URL``.
        sysroot: Prefix of /sys, /proc and /etc.
        device: Gives the power curve of a modelled meter.

    Raises:
        UsageError: There is no meter of that name.
        UnavailableError: The sensor or a permission is missing; the sentence says what was looked for, and where.
    """
    meter = choose(name, sysroot=sysroot)
    if meter.startswith(_REPLAY):
        from greentrain_harness.meters.replay import open_recording

        return open_recording(Path(meter.removeprefix(_REPLAY)))
    if meter.startswith(_WALL):
        from greentrain_harness.meters.wall import open_plug

        return open_plug(meter.removeprefix(_WALL))
    return meter_module(meter).open_meter(sysroot=sysroot, device=device)
