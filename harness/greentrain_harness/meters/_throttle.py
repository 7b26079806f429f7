"""Why a device held its clocks back: reasons of a driver, and over-current events of a Jetson."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from greentrain.reading import Meter
from greentrain_harness.meters._files import SensorFile

__all__ = ["OverCurrent", "ThrottleMeter", "throttled_now", "united"]


@runtime_checkable
class ThrottleMeter(Protocol):
    """A meter that can also tell why clocks are held back."""

    def throttled(self) -> tuple[str, ...] | None:
        """Reasons at this instant, or since the last call where the device counts events.

        Returns:
            Sorted names; empty when nothing holds the clocks back, None when the device does not tell.
        """
        ...


def throttled_now(meter: Meter) -> tuple[str, ...] | None:
    """What a meter says of its clocks now; None when it cannot tell."""
    return meter.throttled() if isinstance(meter, ThrottleMeter) else None


def united(looks: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """All reasons of several looks; None when none of them could tell."""
    told = [look for look in looks if look is not None]
    return tuple(sorted({reason for look in told for reason in look})) if told else None


class OverCurrent:
    """Over-current events of a Jetson: counters of the SoC, and alarms of the power monitors' rails.

    Args:
        sysroot: Prefix of /sys.
        alarms: Name to the alarm file of a rail, which holds 1 after its critical current was exceeded.
    """

    def __init__(self, sysroot: Path, alarms: Mapping[str, Path]) -> None:
        counters = {
            path.name.removesuffix("_event_cnt"): path
            for path in sorted((sysroot / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
        }
        self._counters = {name: SensorFile(path) for name, path in counters.items()}
        self._alarms = {name: SensorFile(path) for name, path in alarms.items() if path.exists()}
        self._counts = {name: file.read() for name, file in self._counters.items()}

    def throttled(self) -> tuple[str, ...] | None:
        """Events since the last call; None when the board has no such files, or none of them answers."""
        reasons: set[str] = set()
        answered = False
        for name, file in self._counters.items():
            before, now = self._counts[name], file.read()
            answered = answered or now is not None
            if before is not None and now is not None and now > before:
                reasons.add(f"over-current {name}")
            self._counts[name] = before if now is None else now
        for name, file in self._alarms.items():
            alarm = file.read()
            answered = answered or alarm is not None
            if alarm:
                reasons.add(f"over-current {name}")
        return tuple(sorted(reasons)) if answered else None

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for file in (*self._counters.values(), *self._alarms.values()):
            file.close()
