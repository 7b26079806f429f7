"""INA3221 power monitors of Jetson boards through sysfs: no root, no daemon.

JetPack 4:     /sys/bus/i2c/drivers/ina3221x/<bus>-004x/iio:device*/{rail_name_N,in_powerN_input}   (mW)
JetPack 5…7:   /sys/bus/i2c/drivers/ina3221/<bus>-004x/hwmon/hwmon*/{inN_label,inN_input,currN_input} (mV, mA)
               (or /sys/class/hwmon/hwmon*/ with name = ina3221)
AGX Thor also: /sys/bus/i2c/drivers/ina238/<bus>-00xx/hwmon/hwmon*/power1_input (µW), the input of the whole board
Bus and hwmon numbers vary between boots, so rails are found by label.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._files import SensorFile, read_text
from greentrain_harness.meters._throttle import OverCurrent
from greentrain_harness.meters.boards import GAIN_ERROR_RATIO, Board, identify_board, unknown_board

__all__ = [
    "LAB_FILE",
    "RATE_HZ",
    "ROOT_RATE_HZ",
    "UPDATE_S",
    "Ina3221Meter",
    "LabNode",
    "detect",
    "lab_node",
    "open_meter",
]

# A register costs about 0.55 ms over I²C. All rails are read as often as their bus bears; the board's total nearly
# as often as the chip refreshes, since an edge of the load hides for as long as a look and a refresh.
RATE_HZ = 50.0
ROOT_RATE_HZ = 150.0
UPDATE_S = 0.0066
# A chip set to average refreshes less often; no board does so less than once a second.
_MOST_UPDATE_MS = 1000
_IIO = "sys/bus/i2c/drivers/ina3221x"
_HWMON = "sys/bus/i2c/drivers/ina3221"
_INA238 = "sys/bus/i2c/drivers/ina238"
_HWMON_CLASS = "sys/class/hwmon"
# The mainline driver of the INA238 gives no label; on a Jetson it is the board's input.
_INA238_LABEL = "VIN"
_NOT_CONNECTED = frozenset({"", "NC"})

# Written by the lab: the tree under this sysroot is emulated.
LAB_FILE = Path("etc/greentrain-lab.json")


class LabNode(msgspec.Struct, frozen=True, kw_only=True):
    """Which emulated board a sensor tree belongs to."""

    lab: str = "unknown"
    node: str = "unknown"
    kind: str = "unknown"


def lab_node(sysroot: Path) -> LabNode | None:
    """The lab node whose emulated tree lies under ``sysroot``; None for real hardware."""
    path = sysroot / LAB_FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabNode)
    except (OSError, msgspec.DecodeError):
        # A damaged file must not turn an emulated joule into a measured one.
        return LabNode()


@dataclass(frozen=True)
class _Found:
    """A rail on disk: the product of its files is its power, in units of ``scale_w``."""

    label: str
    paths: tuple[Path, ...]
    scale_w: float
    update_s: float = UPDATE_S
    alarm: Path | None = None


class _RailReader:
    """Power of one rail now."""

    def __init__(self, found: _Found) -> None:
        *slow, self._quick = (SensorFile(path) for path in found.paths)
        self._slow = tuple(slow)
        self._scale_w = found.scale_w
        self._held: float | None = None

    def power_w(self) -> float | None:
        """Watts from all files."""
        held = self._scale_w
        for file in self._slow:
            value = file.read()
            if value is None:
                self._held = None
                return None
            held *= value
        self._held = held
        return self.quick_w()

    def quick_w(self) -> float | None:
        """Watts with the voltage of the last full look: it moves by a percent where the current moves manifold."""
        value = None if self._held is None else self._quick.read()
        # A shunt's offset can make an unloaded rail read slightly below nothing.
        return None if value is None or self._held is None else max(self._held * value, 0.0)

    def close(self) -> None:
        for file in (*self._slow, self._quick):
            file.close()


class Ina3221Meter:
    """Every rail of a Jetson module, in watts."""

    def __init__(
        self, readers: tuple[_RailReader, ...], channels: tuple[Channel, ...], *, source: Source, note: str,
        over_current: OverCurrent, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._readers = readers
        self._over_current = over_current
        self._clock = clock
        self.name = "ina3221"
        self.source: Source = source
        self.scope: Scope = "board"
        self.channels = channels
        self.rate_hz = RATE_HZ
        self.root_rate_hz = ROOT_RATE_HZ
        self.note = note
        self._root_readers = tuple(
            reader if channel.parent is None else None for reader, channel in zip(readers, channels, strict=True)
        )

    def sample(self) -> Sample:
        """Read every rail; a rail that does not answer gives None."""
        before_s = self._clock()
        values = tuple([reader.power_w() for reader in self._readers])
        return Sample(t_s=(before_s + self._clock()) / 2, values=values)

    def sample_roots(self) -> Sample:
        """Read the current of the rails that form the total; all others are None."""
        before_s = self._clock()
        values = tuple([None if reader is None else reader.quick_w() for reader in self._root_readers])
        return Sample(t_s=(before_s + self._clock()) / 2, values=values)

    def throttled(self) -> tuple[str, ...] | None:
        """Over-current events since the last call; None where the board tells of none."""
        return self._over_current.throttled()

    def close(self) -> None:
        """Close the sensor files."""
        for reader in self._readers:
            reader.close()
        self._over_current.close()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when the board's total can be read, else one sentence why not."""
    found = _find_rails(sysroot)
    if not found:
        return (
            f"no INA3221 power monitor was found under {sysroot / _IIO}, {sysroot / _HWMON} or {sysroot / _HWMON_CLASS}"
        )
    board = _board(sysroot, found)
    missing = [rail.label for rail in board.roots if rail.label not in found]
    if missing:
        return (
            f"the INA3221 of this {board.model} lacks the rail {' and '.join(missing)} under {sysroot}, "
            "so that the board's total would be partial"
        )
    readers = [_RailReader(found[rail.label]) for rail in board.roots]
    answered = any(reader.power_w() is not None for reader in readers)
    for reader in readers:
        reader.close()
    if not answered:
        return f"the INA3221 under {sysroot} does not answer (its files are empty or give an error)"
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> Ina3221Meter:
    """Open the rails of this board.

    Args:
        sysroot: Prefix of /sys, /proc and /etc.
        device: Not needed; the rails are found by their labels.

    Raises:
        UnavailableError: There is no INA3221 here, or the board's total cannot be formed.
    """
    del device
    why_not = detect(sysroot)
    if why_not is not None:
        raise UnavailableError(f"No Jetson sensor: {why_not}.", hint="Use --device auto, or --device modelled.")
    found = _find_rails(sysroot)
    board = _board(sysroot, found)
    rails = [rail for rail in board.rails if rail.label in found]
    channels = tuple(
        Channel(
            name=rail.label,
            quantity="power_w",
            parent=rail.parent,
            gain_error_ratio=GAIN_ERROR_RATIO,
            offset_error_w=rail.offset_error_w,
            update_s=found[rail.label].update_s,
        )
        for rail in rails
    )
    node = lab_node(sysroot)
    return Ina3221Meter(
        tuple(_RailReader(found[rail.label]) for rail in rails),
        channels,
        source="measured" if node is None else "modelled",
        note=_note(board, node, sorted(set(found) - board.labels)),
        over_current=OverCurrent(
            sysroot, {rail.label: alarm for rail in rails if (alarm := found[rail.label].alarm) is not None}
        ),
    )


def _note(board: Board, node: LabNode | None, left_out: list[str]) -> str:
    remarks: list[str] = []
    if node is not None:
        remarks.append(f"emulated INA3221 driven by real CPU time of lab node {node.node}")
    else:
        remarks.append(f"{board.model}; total = {' + '.join(rail.label for rail in board.roots)}")
    if left_out:
        remarks.append(f"rails not in the total: {', '.join(left_out)}")
    return "; ".join(remarks)


def _board(sysroot: Path, found: dict[str, _Found]) -> Board:
    text = read_text(sysroot / "proc/device-tree/compatible") or ""
    parts = [entry for entry in text.split("\0") if entry]
    board = identify_board(compatible=parts, labels=found) or unknown_board(found)
    # Several modules have the same rails: the name is the kernel's, where it gives one.
    model = read_text(sysroot / "proc/device-tree/model") or f"board with the rails of {board.model}"
    return msgspec.structs.replace(board, model=model)


def _find_rails(sysroot: Path) -> dict[str, _Found]:
    """Rails by label, in the order of chips and channels."""
    rails = _iio_rails(sysroot) or _hwmon_rails(sysroot)
    return {rail.label: rail for rail in reversed(rails) if rail.label not in _NOT_CONNECTED}


def _iio_rails(sysroot: Path) -> list[_Found]:
    rails: list[_Found] = []
    for chip in sorted(sysroot.glob(f"{_IIO}/*-*/iio:device*")):
        for number in range(3):
            label = read_text(chip / f"rail_name_{number}")
            if label is not None:
                rails.append(_Found(label, (chip / f"in_power{number}_input",), 1e-3))
    return rails


def _hwmon_rails(sysroot: Path) -> list[_Found]:
    rails: list[_Found] = []
    for chip in _hwmon_chips(sysroot, _HWMON, "ina3221"):
        update_s = _chip_update_s(chip)
        # in4…in7 and curr4 are shunt voltages and the sum channel: not rails.
        for number in (1, 2, 3):
            label = read_text(chip / f"in{number}_label")
            if label is not None:
                paths = (chip / f"in{number}_input", chip / f"curr{number}_input")
                rails.append(_Found(label, paths, 1e-6, update_s, chip / f"curr{number}_crit_alarm"))
    for chip in _hwmon_chips(sysroot, _INA238, "ina238"):
        label = next((text for name in ("power1", "in1") if (text := read_text(chip / f"{name}_label"))), _INA238_LABEL)
        rails.append(_Found(label, (chip / "power1_input",), 1e-6))
    return rails


def _chip_update_s(chip: Path) -> float:
    """How often the chip refreshes, where its driver tells (whole milliseconds)."""
    text = read_text(chip / "update_interval") or ""
    told_ms = int(text) if text.isdecimal() and len(text) <= 4 else 0
    return max(told_ms / 1e3, UPDATE_S) if told_ms <= _MOST_UPDATE_MS else UPDATE_S


def _hwmon_chips(sysroot: Path, driver: str, name: str) -> list[Path]:
    """Folders of a chip through its driver, else through the class (containers often show only that)."""
    chips = sorted(sysroot.glob(f"{driver}/*-*/hwmon/hwmon*"))
    return chips or [
        chip for chip in sorted(sysroot.glob(f"{_HWMON_CLASS}/hwmon*")) if read_text(chip / "name") == name
    ]
