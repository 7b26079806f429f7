"""Highest GPU clock of a Jetson through /sys/class/devfreq/*/max_freq (Hz), found by its device-tree name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from greentrain.device import OperatingPoint
from greentrain.errors import UnavailableError
from greentrain_harness.controls._base import RestoringControl, as_found, read_number, spread, write_number
from greentrain_harness.controls._journal import Setting

__all__ = ["detect", "open_control"]

_FOLDER = "sys/class/devfreq"
_GPU_NAMES = frozenset({"gv11b", "gp10b", "ga10b", "gb10b", "gpu"})
_MOST_POINTS = 4


@dataclass(frozen=True)
class _DevFreq:
    folder: Path
    name: str = "devfreq"

    def found(self) -> tuple[Setting, ...]:
        # Undone from the end: the limit goes up before the floor does.
        return tuple(as_found(self.folder / file) for file in ("min_freq", "max_freq"))

    def turn(self, point: OperatingPoint) -> None:
        assert point.gpu_hz is not None
        hz = round(point.gpu_hz)
        floor_hz = read_number(self.folder / "min_freq")
        if floor_hz is not None and floor_hz > hz:
            write_number(self.folder / "min_freq", hz)
        write_number(self.folder / "max_freq", hz)


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when the GPU's clock can be limited, else one sentence why not."""
    folder = _gpu(sysroot)
    if folder is None:
        return f"no GPU ({', '.join(sorted(_GPU_NAMES))}) was found under {sysroot / _FOLDER}/*/device/of_node/name"
    if len(_clocks_hz(folder)) < 2:
        return f"{folder / 'available_frequencies'} lists no two clocks"
    if not os.access(folder / "max_freq", os.W_OK):
        return f"{folder / 'max_freq'} may only be written by root"
    return None


def open_control(*, sysroot: Path = Path("/")) -> RestoringControl:
    """Open the GPU's clock.

    Raises:
        UnavailableError: There is none, or no permission.
    """
    why_not = detect(sysroot)
    folder = _gpu(sysroot)
    if why_not is not None or folder is None:
        hint = "Run the command with sudo." if "by root" in (why_not or "") else "Use --points current."
        raise UnavailableError(f"No GPU clock to set: {why_not}.", hint=hint)
    points = tuple(
        OperatingPoint(name=f"gpu-{round(hz / 1e6)}MHz", gpu_hz=float(hz))
        for hz in spread(_clocks_hz(folder), _MOST_POINTS)
    )
    return RestoringControl(_DevFreq(folder), points, sysroot)


def _gpu(sysroot: Path) -> Path | None:
    for folder in sorted((sysroot / _FOLDER).glob("*")):
        try:
            name = (folder / "device/of_node/name").read_text().strip("\0\n ")
        except OSError:
            continue
        if name in _GPU_NAMES:
            return folder
    return None


def _clocks_hz(folder: Path) -> list[int]:
    try:
        return [int(text) for text in (folder / "available_frequencies").read_text().split()]
    except (OSError, ValueError):
        return []
