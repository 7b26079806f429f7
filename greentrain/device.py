"""Device and OperatingPoint: what a machine is and in which power modes it can run."""

from __future__ import annotations

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.errors import UsageError
from greentrain.power import PowerCurve, PowerModel, Source

__all__ = ["CURRENT_POINT", "Device", "DeviceProfile", "OperatingPoint", "Provenance"]


# The name of a device's operating point as it stands, without any control.
CURRENT_POINT = "current"


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of clocks and caps. ``None`` means: not set, left to the device.

    Attributes:
        name: Unique on its device, such as ``15W`` or ``current``.
        cpu_hz: CPU clock limit.
        gpu_hz: GPU clock limit.
        mem_hz: Memory clock limit.
        cap_w: Power cap, watts.
    """

    name: str
    cpu_hz: float | None = None
    gpu_hz: float | None = None
    mem_hz: float | None = None
    cap_w: float | None = None

    def __post_init__(self) -> None:
        require_id(self.name, what="operating point")
        require_positive(cpu_hz=self.cpu_hz, gpu_hz=self.gpu_hz, mem_hz=self.mem_hz, cap_w=self.cap_w)


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine (or an emulated one) that can hold a part of a model.

    Attributes:
        id: Unique in a cluster.
        kind: Devices of one kind have the same speed and power; layer times are kept per kind.
        memory_bytes: Memory that training may use.
        points: Operating points; the first one is the default.
        power: Power over throughput share, one curve per point.
        wake_s: Time from sleep to ready, seconds (None = not known).
        wake_j: Energy of waking, joules (None = not known).
        network_s_per_byte: Seconds in which its processor is busy with the network instead of computing, per payload
            byte that it sends or receives (None = not measured: priced as 0). Its joules are in the links' joules
            per byte.
        duplex_s_per_byte: The same while bytes go both ways at once, as in sums and rings of a group, where
            acknowledgements and messages get in each other's way (None = as one way).
    """

    id: str
    kind: str
    memory_bytes: int
    points: tuple[OperatingPoint, ...]
    power: PowerModel
    wake_s: float | None = None
    wake_j: float | None = None
    network_s_per_byte: float | None = None
    duplex_s_per_byte: float | None = None

    def __post_init__(self) -> None:
        require_id(self.id, what="device id")
        require_id(self.kind, what="device kind")
        require_positive(memory_bytes=self.memory_bytes)
        require_non_negative(
            wake_s=self.wake_s, wake_j=self.wake_j, network_s_per_byte=self.network_s_per_byte,
            duplex_s_per_byte=self.duplex_s_per_byte,
        )  # fmt: skip
        names = [point.name for point in self.points]
        require(len(names) > 0, f"device {self.id!r} needs at least one operating point")
        require(len(set(names)) == len(names), f"device {self.id!r}: operating points {names} must differ")
        curves = {curve.point for curve in self.power.curves}
        lacking = [name for name in names if name not in curves]
        require(not lacking, f"device {self.id!r}: no power curve for operating points {lacking}")

    @property
    def group_s_per_byte(self) -> float:
        """Processor seconds per byte of sums and rings, where every device sends and receives at once."""
        known = self.network_s_per_byte if self.duplex_s_per_byte is None else self.duplex_s_per_byte
        return known or 0.0

    def curve(self, point: str) -> PowerCurve:
        """Power curve at an operating point of this device.

        Raises:
            UsageError: The device has no such point.
        """
        if all(known.name != point for known in self.points):
            names = ", ".join(known.name for known in self.points)
            raise UsageError(f"device {self.id!r} has no operating point {point!r}.", hint=f"It has: {names}.")
        return self.power.curve(point)

    def source_at(self, point: str) -> Source:
        """Where the power at a point comes from: ``modelled`` where nothing was measured there.

        Raises:
            UsageError: The device has no such point.
        """
        return self.power.source if self.curve(point).points_n > 0 else "modelled"


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The birth certificate of measured or modelled figures.

    Attributes:
        meter: The meter that gave the joules, or ``none``.
        source: ``measured`` or ``modelled`` joules.
        command: The command that made the figures.
        host: Machine, operating system and processor, in words.
        versions: Package name to version.
        trials_n: Number of trials.
        spread_ratio: Standard deviation of the trials over their mean (None = a single trial).
        note: Anything that a reader must know, such as an emulated sensor.
        machine: Identity of the machine that was measured; empty when not known.
    """

    meter: str
    source: str
    command: str
    host: str
    versions: dict[str, str]
    trials_n: int
    spread_ratio: float | None = None
    note: str = ""
    machine: str = ""


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured (or modelled) device with its provenance: ``profiles/<id>.device.json``."""

    device: Device
    provenance: Provenance
