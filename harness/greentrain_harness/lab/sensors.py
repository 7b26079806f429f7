"""What the emulated sensors show: real CPU time of a node, through the power curve of its board.

    share   = CPU time used / (quota · wall time)
    power_w = curve.power_w(share)

so the joules of a lab are **modelled** from CPU time that was really used. The share is averaged over one
sampling interval and nothing else. CPU time above the quota within an interval (the kernel hands quota out
in slices, and counts a running thread only at its ticks) is carried into the next interval rather than cut
off, so that no used CPU time is lost.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from greentrain._checks import require, require_positive
from greentrain.errors import NotSupportedError
from greentrain.files import read_json, write_json
from greentrain.power import PowerCurve
from greentrain_harness.lab.cgroups import NodeCgroup
from greentrain_harness.meters.boards import BOARDS, Board, board_named
from greentrain_harness.meters.ina3221 import open_meter
from greentrain_harness.meters.trees import JetsonTree, write_jetson_tree

__all__ = [
    "SENSORS_SCHEMA",
    "NodeSensor",
    "SensorPlan",
    "ShareTracker",
    "board_of_kind",
    "read_sensor_plan",
    "shown_w",
    "write_sensor_plan",
    "write_tree",
]

SENSORS_SCHEMA = "greentrain.lab-sensors/1"

# Kinds whose name does not start with the name of the board file that describes them.
_BOARD_OF = {"jetson-orin-nano": "orin-nx"}


class NodeSensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The emulated sensor of one node.

    Attributes:
        lab: The lab.
        node: The node.
        kind: Device kind.
        quota_percent: CPU quota in percent of one core, which is the node's full throughput.
        cgroup: Where its CPU time is counted.
        sysroot: Where its tree lies.
        curve: Power over share.
    """

    lab: str
    node: str
    kind: str
    quota_percent: float
    cgroup: NodeCgroup
    sysroot: str
    curve: PowerCurve

    def __post_init__(self) -> None:
        require_positive(quota_percent=self.quota_percent)


class SensorPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one sensor driver does.

    Attributes:
        interval_s: Time between two updates, seconds.
        nodes: The sensors.
    """

    interval_s: float
    nodes: tuple[NodeSensor, ...]

    def __post_init__(self) -> None:
        require_positive(interval_s=self.interval_s)
        require(len(self.nodes) > 0, "at least one node is needed")


class _LabMark(msgspec.Struct, frozen=True, kw_only=True):
    """Marks a tree as emulated: ``<sysroot>/etc/greentrain-lab.json``."""

    lab: str
    node: str
    kind: str


def write_sensor_plan(path: Path, plan: SensorPlan) -> None:
    """Write what the driver is to do."""
    write_json(path, plan, schema=SENSORS_SCHEMA)


def read_sensor_plan(path: Path) -> SensorPlan:
    """Read what the driver is to do.

    Raises:
        UsageError: The file is missing or damaged.
    """
    return read_json(path, SensorPlan, schema=SENSORS_SCHEMA)


def board_of_kind(kind: str) -> Board:
    """The board whose sensors a catalogue kind has.

    Raises:
        NotSupportedError: The kind is no Jetson; nothing else is emulated.
    """
    names = {**{f"jetson-{board.name}": board.name for board in BOARDS}, **_BOARD_OF}
    fitting = [prefix for prefix in names if kind == prefix or kind.startswith(f"{prefix}-")]
    if fitting:
        # The longest, so that a TX2 NX is no TX2.
        return board_named(names[max(fitting, key=len)])
    raise NotSupportedError(
        f"device kind {kind!r} has no INA3221 board that the lab could emulate.",
        hint="Choose Jetson kinds, such as --kinds jetson-orin-nano-8gb,jetson-nano-4gb.",
    )


def write_tree(sensor: NodeSensor) -> JetsonTree:
    """Write a node's sensor files, showing idle power, and the mark that they are emulated."""
    root = Path(sensor.sysroot)
    tree = write_jetson_tree(root, board_of_kind(sensor.kind), total_w=sensor.curve.idle_w)
    mark = root / "etc" / "greentrain-lab.json"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_bytes(msgspec.json.encode(_LabMark(lab=sensor.lab, node=sensor.node, kind=sensor.kind)) + b"\n")
    return tree


def shown_w(sysroot: Path) -> float | None:
    """What a node's sensor shows now for the whole board, watts; None when a rail does not answer.

    Raises:
        UnavailableError: The tree is gone.
    """
    with contextlib.closing(open_meter(sysroot=sysroot)) as meter:
        values = meter.sample().values
        roots = [value for channel, value in zip(meter.channels, values, strict=True) if channel.parent is None]
    known = [value for value in roots if value is not None]
    return sum(known) if len(known) == len(roots) else None


@dataclass
class ShareTracker:
    """Turns a counter of CPU time into shares of a quota.

    Attributes:
        quota_percent: CPU quota in percent of one core.
        t_s: Instant of the last look, seconds.
        cpu_s: CPU time at the last look, seconds.
        carried_s: CPU time above the quota that the next interval answers for, seconds.
    """

    quota_percent: float
    t_s: float
    cpu_s: float
    carried_s: float = 0.0

    def share(self, t_s: float, cpu_s: float) -> float | None:
        """Share of the quota used since the last look, in [0, 1]; None when no time has passed.

        Args:
            t_s: Monotonic instant of this look, seconds.
            cpu_s: CPU time by now, seconds.
        """
        allowed_s = self.quota_percent / 100 * (t_s - self.t_s)
        if allowed_s <= 0:
            return None
        used_s = self.carried_s + max(cpu_s - self.cpu_s, 0.0)
        counted_s = min(used_s, allowed_s)
        self.t_s, self.cpu_s, self.carried_s = t_s, cpu_s, used_s - counted_s
        return counted_s / allowed_s
