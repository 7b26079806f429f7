"""Power sensors of PCs and laptops in /sys/class/hwmon and /sys/class/power_supply.

Only drivers of which it is known what they see are used: a sensor of unknown place could contain another
one. While a laptop runs on battery, the battery's discharge is the whole machine, and the root of all else;
on the mains a battery knows nothing, and gives none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._files import SensorFile, read_text

__all__ = ["HwmonMeter", "detect", "open_meter"]

_CLASS = "sys/class/hwmon"
_SUPPLY = "sys/class/power_supply"
_RATE_HZ = 10.0
_GAIN_ERROR_RATIO = 0.05

Part = Literal["machine", "gpu", "processor"]


@dataclass(frozen=True)
class _Driver:
    """What a hwmon driver's sensors see.

    Attributes:
        part: The part of the machine.
        files: Patterns of the files that hold it, the best first; energy is in µJ, power in µW.
        labels: Beginnings of the labels that are wanted; empty takes all.
        update_s: How often the sensor refreshes, seconds.
    """

    part: Part
    files: tuple[str, ...]
    labels: tuple[str, ...] = ()
    update_s: float = 1.0


_DRIVERS: dict[str, _Driver] = {
    "power_meter": _Driver("machine", ("power*_average", "power*_input")),
    "macsmc_hwmon": _Driver("machine", ("power*_input",), labels=("Total System Power",)),
    "amdgpu": _Driver("gpu", ("power1_average", "power1_input"), update_s=0.1),
    "xe": _Driver("gpu", ("energy*_input",), labels=("card",), update_s=0.1),
    "i915": _Driver("gpu", ("energy1_input",), update_s=0.1),
    "amd_energy": _Driver("processor", ("energy*_input",), labels=("Esocket",), update_s=0.1),
}
_OTHER_METERS = frozenset({"ina3221", "ina238"})


@dataclass(frozen=True)
class _Found:
    """A sensor on disk: the product of its files, in units of ``scale``."""

    channel: Channel
    part: Part
    paths: tuple[Path, ...]
    scale: float
    status: Path | None = None


class _Reader:
    """The value of one sensor now."""

    def __init__(self, found: _Found) -> None:
        self._files = tuple(SensorFile(path) for path in found.paths)
        self._scale = found.scale
        self._status = found.status
        self._closed = False

    def value(self) -> float | None:
        if self._closed or (self._status is not None and read_text(self._status) != "Discharging"):
            return None
        product = self._scale
        for file in self._files:
            raw = file.read()
            if raw is None:
                return None
            # Some gauges count a current that leaves the battery as negative.
            product *= abs(raw)
        return product

    def close(self) -> None:
        self._closed = True
        for file in self._files:
            file.close()


class HwmonMeter:
    """Power (or energy) of the sensors that together see most of the machine."""

    def __init__(self, found: tuple[_Found, ...], *, note: str, clock: Clock = time.monotonic) -> None:
        self._readers = tuple(_Reader(sensor) for sensor in found)
        self._clock = clock
        self.name = "hwmon"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.channels = tuple(sensor.channel for sensor in found)
        self.rate_hz = _RATE_HZ
        self.note = note

    def sample(self) -> Sample:
        """Read every sensor; one that does not answer gives None."""
        before_s = self._clock()
        values = tuple(reader.value() for reader in self._readers)
        return Sample(t_s=(before_s + self._clock()) / 2, values=values)

    def close(self) -> None:
        """Close the sensor files."""
        for reader in self._readers:
            reader.close()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when a known sensor answers, else one sentence why not."""
    if _answering(sysroot):
        return None
    unknown = sorted(_unknown_drivers(sysroot))
    but = f"; of {', '.join(unknown)} it is not known what they see" if unknown else ""
    battery = "; the battery is not discharging" if any((sysroot / _SUPPLY).glob("*/status")) else ""
    return f"no known power sensor answers under {sysroot / _CLASS} or {sysroot / _SUPPLY}{battery}{but}"


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> HwmonMeter:
    """Open the sensors.

    Args:
        sysroot: Prefix of /sys.
        device: Not needed.

    Raises:
        UnavailableError: There is none.
    """
    del device
    found = _answering(sysroot)
    if not found:
        raise UnavailableError(f"No power sensor: {detect(sysroot)}.", hint="Use --device auto, or --device modelled.")
    roots = [sensor for sensor in found if sensor.channel.parent is None]
    names = " + ".join(sensor.channel.name for sensor in roots)
    whole = roots[0].part == "machine"
    return HwmonMeter(found, note=f"total = {names}, {'the whole machine' if whole else 'not the rest of the machine'}")


def _answering(sysroot: Path) -> tuple[_Found, ...]:
    """Sensors that answer now, with one that sees the whole machine as the parent of the others."""
    found: list[_Found] = []
    for sensor in (*_batteries(sysroot), *_chips(sysroot)):
        reader = _Reader(sensor)
        if reader.value() is not None:
            found.append(sensor)
        reader.close()
    machine = [sensor for sensor in found if sensor.part == "machine"]
    if not machine:
        return tuple(found)
    # Two batteries that discharge together feed the machine together; other whole-machine sensors see the same.
    kind = machine[0].channel.name.partition("-")[0]
    roots = [sensor for sensor in machine if sensor.channel.name.partition("-")[0] == kind]
    inner = [sensor for sensor in found if sensor not in roots]
    return (*roots, *(_inside(sensor, roots[0].channel.name) for sensor in inner))


def _inside(sensor: _Found, parent: str) -> _Found:
    channel = sensor.channel
    return _Found(
        Channel(
            name=channel.name, quantity=channel.quantity, parent=parent, gain_error_ratio=channel.gain_error_ratio,
            offset_error_w=channel.offset_error_w, update_s=channel.update_s,
        ),
        sensor.part, sensor.paths, sensor.scale, sensor.status,
    )  # fmt: skip


def _batteries(sysroot: Path) -> Iterator[_Found]:
    for folder in sorted((sysroot / _SUPPLY).glob("*")):
        # scope = Device is the battery of a mouse or a headset.
        if read_text(folder / "type") != "Battery" or read_text(folder / "scope") == "Device":
            continue
        if (folder / "power_now").exists():
            paths, scale = (folder / "power_now",), 1e-6
        else:
            paths, scale = (folder / "voltage_now", folder / "current_now"), 1e-12
        # Gauges of laptops refresh every few seconds.
        channel = Channel(
            name=f"battery-{folder.name}", quantity="power_w", gain_error_ratio=_GAIN_ERROR_RATIO, update_s=5.0
        )
        yield _Found(channel, "machine", paths, scale, folder / "status")


def _chips(sysroot: Path) -> Iterator[_Found]:
    for folder in sorted((sysroot / _CLASS).glob("hwmon*")):
        name = read_text(folder / "name") or ""
        driver = _DRIVERS.get(name)
        if driver is None:
            continue
        pattern = next((pattern for pattern in driver.files if any(folder.glob(pattern))), None)
        for path in sorted(folder.glob(pattern)) if pattern else ():
            stem = path.name.partition("_")[0]
            label = read_text(folder / f"{stem}_label") or stem
            if driver.labels and not label.startswith(driver.labels):
                continue
            channel = Channel(
                name=f"{name}-{folder.name.removeprefix('hwmon')}-{label.replace(' ', '-')}",
                quantity="energy_j" if stem.startswith("energy") else "power_w",
                gain_error_ratio=_GAIN_ERROR_RATIO,
                update_s=driver.update_s,
            )
            yield _Found(channel, driver.part, (path,), 1e-6)


def _unknown_drivers(sysroot: Path) -> set[str]:
    """Names of hwmon drivers that show power or energy, but are not listed here."""
    chips = {path.parent for pattern in ("power*_input", "power*_average", "energy*_input")
             for path in (sysroot / _CLASS).glob(f"hwmon*/{pattern}")}  # fmt: skip
    return {read_text(chip / "name") or chip.name for chip in chips} - _DRIVERS.keys() - _OTHER_METERS
