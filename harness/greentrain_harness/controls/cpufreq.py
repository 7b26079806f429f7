"""Highest CPU clock through /sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq (kHz)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from greentrain.device import OperatingPoint
from greentrain.errors import UnavailableError
from greentrain_harness.controls._base import RestoringControl, as_found, read_number, spread, write_number
from greentrain_harness.controls._journal import Setting

__all__ = ["detect", "open_control"]

_FOLDER = "sys/devices/system/cpu/cpufreq"
_MOST_POINTS = 4


@dataclass(frozen=True)
class _CpuFreq:
    policies: tuple[Path, ...]
    name: str = "cpufreq"

    def found(self) -> tuple[Setting, ...]:
        # Undone from the end: the limit goes up before the floor does.
        return tuple(
            as_found(policy / file) for policy in self.policies for file in ("scaling_min_freq", "scaling_max_freq")
        )

    def turn(self, point: OperatingPoint) -> None:
        assert point.cpu_hz is not None
        for policy in self.policies:
            # Clusters differ in their range; each goes to its own nearest clock below.
            fitting = [khz for khz in _clocks_khz(policy) if khz * 1e3 <= point.cpu_hz * 1.001]
            khz = max(fitting, default=min(_clocks_khz(policy)))
            floor_khz = read_number(policy / "scaling_min_freq")
            if floor_khz is not None and floor_khz > khz:
                write_number(policy / "scaling_min_freq", khz)
            write_number(policy / "scaling_max_freq", khz)


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when the clock can be limited, else one sentence why not."""
    policies = _policies(sysroot)
    if not policies:
        return f"the kernel shows no CPU clocks under {sysroot / _FOLDER}/policy*"
    if len(_points(policies)) < 2:
        return f"the CPU has a single clock under {sysroot / _FOLDER}"
    if not os.access(policies[0] / "scaling_max_freq", os.W_OK):
        return f"{policies[0] / 'scaling_max_freq'} may only be written by root"
    return None


def open_control(*, sysroot: Path = Path("/")) -> RestoringControl:
    """Open the CPU clock.

    Raises:
        UnavailableError: There is none, or no permission.
    """
    why_not = detect(sysroot)
    if why_not is not None:
        hint = "Run the command with sudo." if "by root" in why_not else "Use --points current."
        raise UnavailableError(f"No CPU clock to set: {why_not}.", hint=hint)
    policies = _policies(sysroot)
    return RestoringControl(_CpuFreq(policies), _points(policies), sysroot)


def _policies(sysroot: Path) -> tuple[Path, ...]:
    return tuple(policy for policy in sorted((sysroot / _FOLDER).glob("policy*")) if _clocks_khz(policy))


def _clocks_khz(policy: Path) -> list[int]:
    """Clocks that a policy can have: the driver's list, else four steps over its range."""
    try:
        listed = [int(text) for text in (policy / "scaling_available_frequencies").read_text().split()]
    except (OSError, ValueError):
        listed = []
    low, high = read_number(policy / "cpuinfo_min_freq"), read_number(policy / "cpuinfo_max_freq")
    if listed or low is None or high is None:
        return listed
    return [round(low + (high - low) * step / (_MOST_POINTS - 1)) for step in range(_MOST_POINTS)]


def _points(policies: tuple[Path, ...]) -> tuple[OperatingPoint, ...]:
    fastest = max(policies, key=lambda policy: max(_clocks_khz(policy)))
    chosen = spread(_clocks_khz(fastest), _MOST_POINTS)
    return tuple(OperatingPoint(name=f"cpu-{round(khz / 1e3)}MHz", cpu_hz=khz * 1e3) for khz in chosen)
