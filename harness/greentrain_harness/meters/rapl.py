"""RAPL energy counters of x86 processors through /sys/class/powercap.

Packages and their DRAM are the roots. Core and uncore lie inside the package and are not read; psys
overlaps everything and is never added; ``intel-rapl-mmio`` repeats the packages. Where a machine shows no
packages, the mmio ones are taken, and else psys by itself.
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._files import SensorFile, read_text

__all__ = ["MEND", "RaplMeter", "Unwrapper", "Zone", "detect", "open_meter"]

_FOLDER = "sys/class/powercap"
_RATE_HZ = 20.0
_UPDATE_S = 0.001
# Not stated by the vendors; comparisons with wall meters scatter by about this much.
_GAIN_ERROR_RATIO = 0.05
# More than any processor package draws: a counter that ran faster was reset.
_MOST_W = 5000.0

MEND = (
    'echo \'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"\' | '
    "sudo tee /etc/udev/rules.d/70-greentrain-rapl.rules && "
    "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=powercap"
)


class Unwrapper:
    """Turns a wrapping counter of microjoules into joules since the first reading.

    After a reset of the counter (a driver loaded anew) it starts again at 0: the fall tells the sampler
    that the joules in between are unknown.
    """

    def __init__(self, range_uj: int) -> None:
        self._range_uj = range_uj
        self._last: tuple[float, int] | None = None
        self._total_uj = 0

    def energy_j(self, t_s: float, raw_uj: int | None) -> float | None:
        """Joules so far; None when the counter did not answer."""
        if raw_uj is None:
            return None
        if self._last is not None:
            last_s, last_uj = self._last
            delta_uj = raw_uj - last_uj
            if delta_uj < 0:
                delta_uj += self._range_uj
                if delta_uj < 0 or delta_uj > _MOST_W * max(t_s - last_s, 0.001) * 1e6:
                    delta_uj = -self._total_uj
            self._total_uj += delta_uj
        self._last = (t_s, raw_uj)
        return self._total_uj / 1e6


@dataclass(frozen=True)
class Zone:
    """A root domain on disk."""

    name: str
    folder: Path


class RaplMeter:
    """Joules of every package and its DRAM since the meter was opened."""

    def __init__(self, zones: tuple[Zone, ...], *, note: str, clock: Clock = time.monotonic) -> None:
        self._files = tuple(SensorFile(zone.folder / "energy_uj") for zone in zones)
        self._counters = tuple(Unwrapper(_range_uj(zone.folder)) for zone in zones)
        self._clock = clock
        self.name = "rapl"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.rate_hz = _RATE_HZ
        self.note = note
        self.channels = tuple(
            Channel(name=zone.name, quantity="energy_j", gain_error_ratio=_GAIN_ERROR_RATIO, update_s=_UPDATE_S)
            for zone in zones
        )
        self.sample()

    def sample(self) -> Sample:
        """Read every counter; one that does not answer gives None."""
        before_s = self._clock()
        raw = [file.read() for file in self._files]
        t_s = (before_s + self._clock()) / 2
        pairs = zip(self._counters, raw, strict=True)
        return Sample(t_s=t_s, values=tuple(counter.energy_j(t_s, value) for counter, value in pairs))

    def close(self) -> None:
        """Close the counters' files."""
        for file in self._files:
            file.close()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when every package's counter can be read, else one sentence why not."""
    zones = _zones(sysroot)
    if not zones:
        return f"no RAPL package was found under {sysroot / _FOLDER}/intel-rapl:*"
    for zone in zones:
        path = zone.folder / "energy_uj"
        try:
            text = path.read_text()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                return f"{path} may only be read by root (a kernel default since 5.10)"
            return f"{path} cannot be read ({os.strerror(error.errno or 0)})"
        if not text.strip().isdigit():
            return f"{path} holds {text.strip()!r}, expected a number"
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> RaplMeter:
    """Open the packages' counters.

    Args:
        sysroot: Prefix of /sys.
        device: Not needed.

    Raises:
        UnavailableError: No RAPL, or no permission.
    """
    del device
    why_not = detect(sysroot)
    if why_not is not None:
        hint = f"Run: {MEND}" if "by root" in why_not else "Use --device auto, or --device modelled."
        raise UnavailableError(f"No CPU energy counter: {why_not}.", hint=hint)
    zones, mirrored = _without_mirrors(_zones(sysroot))
    remark = f"; {', '.join(mirrored)} left out: the same counter shown twice" if mirrored else ""
    seen = "the whole platform (psys)" if zones[0].name == "psys" else "processor packages and DRAM"
    rest = "" if zones[0].name == "psys" else ", not the rest of the machine"
    return RaplMeter(zones, note=f"{seen}{rest}{remark}")


def _zones(sysroot: Path) -> tuple[Zone, ...]:
    """The packages and their DRAM through one interface; a machine that shows none may still show psys."""
    for interface in ("intel-rapl", "intel-rapl-mmio"):
        zones = _packages(sysroot, interface)
        if zones:
            return zones
    folders = sorted((sysroot / _FOLDER).glob("intel-rapl:*"))
    return tuple(Zone("psys", folder) for folder in folders if read_text(folder / "name") == "psys")[:1]


def _packages(sysroot: Path, interface: str) -> tuple[Zone, ...]:
    zones: list[Zone] = []
    # "intel-rapl:*" does not match intel-rapl-mmio:*.
    for folder in sorted((sysroot / _FOLDER).glob(f"{interface}:*")):
        name = read_text(folder / "name")
        if name is None:
            continue
        if re.fullmatch(r"package-\d+(-die-\d+)?", name):
            zones.append(Zone(name, folder))
        elif name == "dram":
            package = read_text(folder.parent / folder.name.rsplit(":", 1)[0] / "name") or folder.name
            zones.append(Zone(f"{package}-dram", folder))
    return tuple(zones)


def _without_mirrors(zones: tuple[Zone, ...]) -> tuple[tuple[Zone, ...], list[str]]:
    """Drop dies that show the counter of another die of their package (older AMD processors)."""
    kept: list[Zone] = []
    mirrored: list[str] = []
    for zone in zones:
        twin = next((other for other in kept if _same_package(other, zone) and _shows_same(other, zone)), None)
        if twin is None:
            kept.append(zone)
        else:
            mirrored.append(zone.name)
    return tuple(kept), mirrored


def _same_package(one: Zone, other: Zone) -> bool:
    first, second = one.name.partition("-die-"), other.name.partition("-die-")
    return bool(first[1] and second[1]) and first[0] == second[0] and "dram" not in one.name + other.name


def _shows_same(one: Zone, other: Zone) -> bool:
    """Two separate counters never agree to the microjoule around one instant."""
    file, twin = SensorFile(one.folder / "energy_uj"), SensorFile(other.folder / "energy_uj")
    before, between, after = file.read(), twin.read(), file.read()
    file.close()
    twin.close()
    if before is None or between is None or after is None:
        return False
    return before <= between <= after


def _range_uj(folder: Path) -> int:
    text = read_text(folder / "max_energy_range_uj") or ""
    # Without the file: the 32-bit counter at the usual 61 µJ per step.
    return int(text) if text.isdigit() else 262_143_328_850
