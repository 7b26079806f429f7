"""cluster.toml as people write it: quantities with units, one table per device.

name = "living-room"

[link]                       # holds between any two devices
bandwidth = "100Mbit"
latency = "1ms"

[[device]]
id = "orin"
profile = "profiles/orin.device.json"     # measured by greentrain measure
launch = "local"                          # how train starts it; without it: planned, never run

[[device]]
id = "nano-1"
kind = "jetson-nano-4gb"                  # from the catalogue (modelled)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.cluster import Cluster, Link, Medium
from greentrain.device import Device
from greentrain.errors import UsageError
from greentrain.files import read_toml
from greentrain.units import parse_quantity

__all__ = [
    "ASSUMED_BANDWIDTH",
    "ASSUMED_LATENCY",
    "SSH_LAUNCH",
    "ClusterFile",
    "DeviceEntry",
    "LinkEntry",
    "MediumEntry",
    "build_cluster",
    "cpu_numbers",
    "read_cluster_file",
]

# A common switched home network, until greentrain measure --link has measured it.
ASSUMED_BANDWIDTH = "100Mbit"
ASSUMED_LATENCY = "0.3ms"

# user@host or host, and a port; nothing that ssh could take for an option.
SSH_LAUNCH = re.compile(
    r"ssh:(?P<target>(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*)(?::(?P<port>\d+))?"
)
_LAUNCH = re.compile(r"local|manual|lab:[a-z0-9-]+/[a-z0-9-]+")
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


class LinkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[link]`` or ``[[links]]``. A link without src and dst is the default; ``both_ways`` adds the way back.

    ``duplex_energy`` is that of either end per byte while bytes go both ways at once; None: as one way.
    """

    bandwidth: str
    latency: str = "0ms"
    tx_energy: str = "0nJ/B"
    rx_energy: str = "0nJ/B"
    duplex_energy: str | None = None
    src: str | None = None
    dst: str | None = None
    both_ways: bool = True
    medium: str | None = None


class MediumEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[medium]]``: shared airtime that links refer to by name."""

    name: str
    bandwidth: str


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[device]]``. Exactly one of ``profile`` (measured) and ``kind`` (catalogue) is given.

    Attributes:
        id: Unique in the cluster.
        profile: Path of a device profile, relative to the cluster file.
        kind: A kind of the catalogue.
        launch: ``local``, ``ssh:USER@HOST`` (or ``ssh:HOST:PORT``), ``lab:NAME/NODE``, or ``manual`` (you start the
            worker there); None: planned, never run.
        address: Network address of the device, when its worker runs elsewhere; the host's own with ``ssh:``.
        folder: Folder on an ``ssh:`` host for the run's files, from the home folder there.
        python: Interpreter on an ``ssh:`` host that has greentrain installed.
        board: Devices with the same board share one meter; the machine's own identity when not given.
        meter: Meter of the worker.
        threads: Threads of the worker's mathematics.
        cpus: Processors the worker may use, such as ``0`` or ``0-1,3``.
        quota_percent: CPU quota of a local worker in percent of one core (needs root): a slower worker.
        memory: Memory that training may use, in place of the profile's.
        network_s_per_byte: Seconds in which its processor is busy with every byte that it sends or receives.
        duplex_s_per_byte: The same while bytes go both ways at once; None: as one way.
    """

    id: str
    profile: str | None = None
    kind: str | None = None
    launch: str | None = None
    address: str | None = None
    folder: str = "greentrain-runs"
    python: str = "python3"
    board: str | None = None
    meter: str = "auto"
    threads: int | None = None
    cpus: str | None = None
    quota_percent: float | None = None
    memory: str | None = None
    network_s_per_byte: float | None = None
    duplex_s_per_byte: float | None = None

    def __post_init__(self) -> None:
        require_id(self.id, what="id")
        require(
            (self.profile is None) != (self.kind is None), f"device {self.id!r} needs exactly one of profile and kind"
        )
        require_positive(quota_percent=self.quota_percent)
        require_non_negative(
            network_s_per_byte=self.network_s_per_byte, duplex_s_per_byte=self.duplex_s_per_byte
        )  # fmt: skip
        require(self.quota_percent is None or self.launch == "local", "quota_percent needs launch = 'local'")
        require(self.threads is None or self.threads >= 1, "threads must be at least 1")
        require(
            self.launch is None or any(form.fullmatch(self.launch) for form in (_LAUNCH, SSH_LAUNCH)),
            f"launch is {self.launch!r}, expected 'local', 'ssh:USER@HOST', 'manual' or 'lab:NAME/NODE'",
        )
        require(bool(self.folder) and bool(self.python), "folder and python must not be empty")
        require(self.cpus is None or _CPUS.fullmatch(self.cpus) is not None, f"cpus is {self.cpus!r}, expected '0-1,3'")

    @property
    def can_run(self) -> bool:
        """Whether ``greentrain train`` has a way to run a worker on it."""
        return self.launch is not None


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole ``cluster.toml``."""

    name: str
    link: LinkEntry
    device: tuple[DeviceEntry, ...]
    links: tuple[LinkEntry, ...] = ()
    medium: tuple[MediumEntry, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.device) > 0, "at least one [[device]] is needed")
        ids = [entry.id for entry in self.device]
        twice = sorted({identity for identity in ids if ids.count(identity) > 1})
        require(not twice, f"device ids {twice} are used twice")


def cpu_numbers(cpus: str) -> frozenset[int]:
    """Processors of a list such as ``0-1,3``."""
    ends = [part.split("-") for part in cpus.split(",")]
    return frozenset(cpu for first, *rest in ends for cpu in range(int(first), int(rest[0] if rest else first) + 1))


def read_cluster_file(path: Path) -> ClusterFile:
    """Read ``cluster.toml``.

    Raises:
        UsageError: Missing, no TOML, or a field is unknown or wrong; file and field are named.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: no such file.", hint="Make one with: greentrain cluster init (or give one with --cluster)."
        )
    return read_toml(path, ClusterFile)


def build_cluster(file: ClusterFile, *, path: Path, resolve: Callable[[DeviceEntry], Device]) -> Cluster:
    """Turn the text into a checked cluster.

    Args:
        file: What was read.
        path: Named in errors.
        resolve: Finds the device of an entry (a profile file or the catalogue).

    Raises:
        UsageError: A quantity, a device or a link is wrong; file and field are named.
    """
    links: list[Link] = []
    for index, entry in enumerate(file.links):
        where = f"{path}: field links[{index}]"
        if entry.src is None or entry.dst is None:
            raise UsageError(
                f"{where}: src and dst are needed.", hint="Name both devices, or use [link] for the default."
            )
        links.append(_link(entry, where=where, src=entry.src, dst=entry.dst))
        if entry.both_ways:
            links.append(_link(entry, where=where, src=entry.dst, dst=entry.src))
    try:
        return Cluster(
            name=file.name,
            devices=tuple(_device(entry, index, path, resolve) for index, entry in enumerate(file.device)),
            default_link=_link(file.link, where=f"{path}: field link", src="*", dst="*"),
            links=tuple(links),
            media=tuple(
                Medium(
                    name=entry.name,
                    bandwidth_bytes_per_s=_bandwidth(entry.bandwidth, f"{path}: field medium[{index}].bandwidth"),
                )
                for index, entry in enumerate(file.medium)
            ),
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}.", hint="Correct the file.") from error


def _device(entry: DeviceEntry, index: int, path: Path, resolve: Callable[[DeviceEntry], Device]) -> Device:
    device = msgspec.structs.replace(resolve(entry), id=entry.id)
    for name in ("network_s_per_byte", "duplex_s_per_byte"):
        seconds = getattr(entry, name)
        if seconds is not None:
            device = msgspec.structs.replace(device, **{name: seconds})
    if entry.memory is None:
        return device
    where = f"{path}: field device[{index}].memory"
    return msgspec.structs.replace(
        device, memory_bytes=int(parse_quantity(entry.memory, "bytes", where=where, minimum=1))
    )


def _link(entry: LinkEntry, *, where: str, src: str, dst: str) -> Link:
    return Link(
        src=src,
        dst=dst,
        bandwidth_bytes_per_s=_bandwidth(entry.bandwidth, f"{where}.bandwidth"),
        latency_s=parse_quantity(entry.latency, "time", where=f"{where}.latency"),
        tx_j_per_byte=parse_quantity(entry.tx_energy, "energy_per_byte", where=f"{where}.tx_energy"),
        rx_j_per_byte=parse_quantity(entry.rx_energy, "energy_per_byte", where=f"{where}.rx_energy"),
        duplex_j_per_byte=None
        if entry.duplex_energy is None
        else parse_quantity(entry.duplex_energy, "energy_per_byte", where=f"{where}.duplex_energy"),
        medium=entry.medium,
    )


def _bandwidth(text: str, where: str) -> float:
    return parse_quantity(text, "bandwidth", where=where, minimum=1.0)
