"""Lab and LabNode: what a lab consists of, and the state file that other commands find it by.

/run/greentrain-lab/<lab>/state.json      Lab, written when everything stands
/run/greentrain-lab/<lab>/sensors.json    what the sensor driver emulates
/run/greentrain-lab/<lab>/<node>/sysroot  the node's emulated /sys, /proc and /etc
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from greentrain._checks import require, require_non_negative, require_positive
from greentrain.errors import UsageError
from greentrain.files import read_json, write_json
from greentrain_harness.lab.cgroups import NodeCgroup

__all__ = [
    "DRIVER_MODULE",
    "LAB_SCHEMA",
    "RUN_ROOT",
    "Lab",
    "LabNode",
    "check_name",
    "driver_pids",
    "driver_runs",
    "labs",
    "namespace_pattern",
    "node_resource",
    "read_lab",
    "run_dir",
    "switch_resource",
    "write_lab",
]

LAB_SCHEMA = "greentrain.lab/1"
RUN_ROOT = Path("/run/greentrain-lab")
DRIVER_MODULE = "greentrain_harness.lab.driver"

# Short enough that a node's control group and namespace stay readable in ip, ps and systemd-cgls.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


class LabNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One emulated device.

    Attributes:
        name: ``node0``, ``node1``, …
        address: IPv4 address on the lab's network.
        kind: Device kind whose power curve drives the sensors.
        point: Operating point of that curve.
        quota_percent: CPU quota in percent of one core.
        namespace: Network namespace.
        cgroup: Control group folders.
        sysroot: Folder that holds the node's emulated /sys, /proc and /etc.
    """

    name: str
    address: str
    kind: str
    point: str
    quota_percent: float
    namespace: str
    cgroup: NodeCgroup
    sysroot: str

    def __post_init__(self) -> None:
        require_positive(quota_percent=self.quota_percent)


class Lab(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lab that stands.

    Attributes:
        name: Its name.
        subnet: IPv4 network of the nodes; no route of the host leads there.
        bandwidth_bytes_per_s: Shaped rate of each node's link, in each direction.
        latency_s: Added one-way delay, seconds.
        switch_namespace: Namespace that holds the bridge.
        sensors_pid: Process of the sensor driver.
        nodes: The nodes in order.
    """

    name: str
    subnet: str
    bandwidth_bytes_per_s: float
    latency_s: float
    switch_namespace: str
    sensors_pid: int
    nodes: tuple[LabNode, ...]

    def __post_init__(self) -> None:
        require(len(self.nodes) > 0, "a lab needs at least one node")
        require_positive(bandwidth_bytes_per_s=self.bandwidth_bytes_per_s)
        require_non_negative(latency_s=self.latency_s)

    def node(self, name: str) -> LabNode:
        """The node of a name.

        Raises:
            UsageError: The lab has no such node.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise UsageError(f"lab {self.name!r} has no node {name!r}.", hint=f"It has: {known}.")


def check_name(name: str) -> None:
    """Refuse a lab name that could not be part of a namespace and a folder name.

    Raises:
        UsageError: The name is too long or has other characters.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"lab name is {name!r}, expected up to 24 lower-case letters, digits and inner hyphens.",
            hint="Choose a name such as 'lab' or 'kitchen-2'.",
        )


def node_resource(lab: str, node: str) -> str:
    """Name of a node's namespace and control group."""
    return f"gtlab-{lab}-{node}"


def switch_resource(lab: str) -> str:
    """Name of the namespace that holds a lab's bridge."""
    return f"gtlab-{lab}-switch"


def namespace_pattern(lab: str | None = None) -> re.Pattern[str]:
    """Matches exactly the namespaces and control groups of a lab, or of any lab; group 1 is the lab.

    A lab ``a`` never matches what belongs to a lab ``a-b``: the last part is always a node or the switch.
    """
    name = _NAME.pattern if lab is None else re.escape(lab)
    return re.compile(rf"gtlab-(?P<lab>{name})-(node\d+|switch)")


def run_dir(name: str, *, run_root: Path = RUN_ROOT) -> Path:
    """The lab's own folder."""
    return run_root / name


def write_lab(lab: Lab, *, run_root: Path = RUN_ROOT) -> None:
    """Write the state file, which makes the lab visible to other commands."""
    write_json(run_dir(lab.name, run_root=run_root) / "state.json", lab, schema=LAB_SCHEMA)


def read_lab(name: str, *, run_root: Path = RUN_ROOT) -> Lab:
    """The lab of a name.

    Raises:
        UsageError: No such lab stands, or its state file is damaged.
    """
    check_name(name)
    folder = run_dir(name, run_root=run_root)
    path = folder / "state.json"
    if path.exists():
        return read_json(path, Lab, schema=LAB_SCHEMA)
    if folder.exists():
        raise UsageError(
            f"lab {name!r} is not complete: {path} is missing.", hint=f"Run: greentrain lab down --name {name}"
        )
    known = ", ".join(labs(run_root=run_root)) or "none"
    raise UsageError(f"no lab {name!r} stands; labs: {known}.", hint=f"Run: greentrain lab up --name {name}")


def driver_pids(folder: Path, *, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """Sensor drivers of a lab's folder that run, found by their command line, which a lost state file cannot hide."""
    return tuple(sorted(int(path.name) for path in proc.glob("[0-9]*") if _is_driver(path, folder)))


def driver_runs(lab: Lab, *, run_root: Path = RUN_ROOT, proc: Path = Path("/proc")) -> bool:
    """Whether the lab's sensors are kept up to date."""
    return _is_driver(proc / str(lab.sensors_pid), run_dir(lab.name, run_root=run_root))


def _is_driver(process: Path, folder: Path) -> bool:
    # The command line tells the driver from a later process that got its number; a zombie has none.
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return DRIVER_MODULE.encode() in words and str(folder).encode() in words


def labs(*, run_root: Path = RUN_ROOT) -> tuple[str, ...]:
    """Names of the labs that stand, sorted."""
    return tuple(sorted(path.parent.name for path in run_root.glob("*/state.json")))
