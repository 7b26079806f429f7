"""``greentrain cluster``: cluster.toml from measured profiles, lab nodes and catalogue devices."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from greentrain.cli._cluster import load_cluster
from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, say, table_lines
from greentrain.cluster import Cluster
from greentrain.cluster_file import ASSUMED_BANDWIDTH, ASSUMED_LATENCY, ClusterFile, DeviceEntry, LinkEntry
from greentrain.errors import UsageError
from greentrain.files import write_text
from greentrain.link_profile import link_profiles
from greentrain.profile_files import device_profiles, read_device_profile
from greentrain.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from greentrain_harness.lab import Lab

__all__ = ["command"]

_HEADER = """\
# The devices that may train together. Written by: greentrain cluster init
#
# profile = made by greentrain measure on the device    kind = figures of the catalogue (modelled)
# launch  = how greentrain train starts the device: "local", "ssh:USER@HOST", "lab:NAME/NODE" or
#           "manual"; without it the device is planned with, but never run
# More fields of a device: address, board, meter, threads, cpus, quota_percent, memory;
# of an ssh host: folder, python. One link of its own: [[links]] with src, dst, bandwidth, latency.
"""
# Not known: the field is left out of the file.
_UNKNOWN_ENERGY: str = LinkEntry(bandwidth="1bit").tx_energy
_LOCAL = re.compile(r"(?P<id>[^:=,\s]+):(?P<settings>.+)")
_SETTING = re.compile(r"(cpus|threads|quota)=([0-9,-]+?)(?:,(?=[a-z])|$)")


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device of ``cluster show --json``."""

    id: str
    kind: str
    source: str
    idle_w: float
    busy_w: float
    memory_bytes: int
    points: tuple[str, ...]
    launch: str | None


class LinkRow(msgspec.Struct, frozen=True, kw_only=True):
    """One link of ``cluster show --json``; ``*`` stands for any device."""

    src: str
    dst: str
    bandwidth_bytes_per_s: float
    latency_s: float
    tx_j_per_byte: float | None
    rx_j_per_byte: float | None
    duplex_j_per_byte: float | None
    medium: str | None


class ClusterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """``cluster show --json``."""

    name: str
    path: str
    devices: tuple[DeviceRow, ...]
    links: tuple[LinkRow, ...]


@click.group(name="cluster")
def command() -> None:
    """Write or print cluster.toml: the devices that may train together, and their links."""


@command.command(name="init")
@click.option("--lab", "lab_name", help="Devices named after nodes of this lab run there.")
@click.option(
    "--profiles", type=click.Path(path_type=Path, file_okay=False), default=PROFILES_DIR, show_default=True,
    help="Folder of device profiles.",
)  # fmt: skip
@click.option("--add", "added", multiple=True, metavar="KIND[=COUNT]", help="Catalogue devices to plan with.")
@click.option(
    "--local",
    "settings",
    multiple=True,
    metavar="ID:cpus=0,threads=1,quota=40",
    help="Processors, threads and CPU quota (percent of a core; root) of a local device.",
)
@click.option("--bandwidth", help=f"Between any two devices; default {ASSUMED_BANDWIDTH}, or the lab's.")
@click.option("--latency", help=f"Time of an empty message; default {ASSUMED_LATENCY}, plus the lab's delay.")
@click.option("--name", help="Name of the cluster; default: the lab's, or 'cluster'.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=CLUSTER_FILE, show_default=True,
    help="File to write.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the file.")
@json_option
def _init(
    lab_name: str | None,
    profiles: Path,
    added: tuple[str, ...],
    settings: tuple[str, ...],
    bandwidth: str | None,
    latency: str | None,
    name: str | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write cluster.toml from all measured profiles, and catalogue devices to plan with."""
    if output.exists() and not force:
        raise UsageError(f"{output}: exists already.", hint="Give --force to overwrite it, or -o another file.")
    if lab_name is not None and settings:
        raise UsageError("--local does not go with --lab: a node's processors are its quota.", hint="Leave one out.")
    lab = _read_lab(lab_name)
    if bandwidth is None:
        bandwidth = ASSUMED_BANDWIDTH if lab is None else f"{lab.bandwidth_bytes_per_s * 8 / 1e6:g}Mbit"
    if latency is None:
        assumed_s = parse_quantity(ASSUMED_LATENCY, "time", where="latency")
        latency = f"{(assumed_s + (0.0 if lab is None else lab.latency_s)) * 1e3:g}ms"
    parse_quantity(bandwidth, "bandwidth", where="--bandwidth", minimum=1.0)
    parse_quantity(latency, "time", where="--latency")
    measured = _measured(profiles, output.parent, lab, dict(_parse_local(text) for text in settings))
    measured = _with_network(measured, profiles)
    entries = (*measured, *_planned(added, taken={entry.id for entry in measured}))
    if not entries:
        raise UsageError(
            f"{profiles}: no device profile (*.device.json), and no --add.",
            hint="Run: greentrain measure, or add catalogue devices, such as --add jetson-nano-4gb=4.",
        )
    try:
        file = ClusterFile(
            name=name or lab_name or "cluster",
            link=LinkEntry(bandwidth=bandwidth, latency=latency),
            device=entries,
            links=_measured_links(profiles, {entry.id for entry in entries}),
        )
    except ValueError as error:
        raise UsageError(f"{profiles}: {error}.", hint="Every device profile needs an id of its own.") from error
    write_text(output, _render(file))
    _show_summary(output, as_json=as_json)
    say(f"Wrote {output}.", quiet=as_json)


@command.command(name="show")
@click.option(
    "--cluster", "path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True, help="Cluster file."
)
@json_option
def _show(path: Path, as_json: bool) -> None:
    """Check cluster.toml and print its devices and links."""
    _show_summary(path, as_json=as_json)


def _measured_links(profiles: Path, known: set[str]) -> tuple[LinkEntry, ...]:
    """Links that ``greentrain measure --link`` has written, one entry per direction; the later file wins.

    Joules per byte are those of the device that measured: what a link costs at its other end, that end tells.
    """
    found = [link for link in link_profiles(profiles) if {link.src, link.dst} <= known]
    tx_j = {(link.src, link.dst): link.tx_j_per_byte for link in found}
    rx_j = {(link.dst, link.src): link.rx_j_per_byte for link in found}
    duplex_j = {(link.src, link.dst): link.duplex_j_per_byte for link in found}
    entries: dict[tuple[str, str], LinkEntry] = {}
    for link in found:
        energies_j = (link.tx_j_per_byte, link.rx_j_per_byte, link.duplex_j_per_byte)
        if link.provenance.source == "modelled" and any(energy_j is not None for energy_j in energies_j):
            say(f"Remark: the joules per byte between {link.src} and {link.dst} come from a model ({link.src}).")
        for src, dst, rate in (
            (link.src, link.dst, link.upload_bytes_per_s),
            (link.dst, link.src, link.download_bytes_per_s),
        ):
            entries[src, dst] = LinkEntry(
                src=src, dst=dst, bandwidth=f"{_rounded(rate * 8 / 1e6)}Mbit",
                latency=f"{_rounded(link.latency_s * 1e3)}ms",
                tx_energy=_per_byte(tx_j.get((src, dst))) or _UNKNOWN_ENERGY,
                rx_energy=_per_byte(rx_j.get((src, dst))) or _UNKNOWN_ENERGY,
                duplex_energy=_per_byte(duplex_j.get((src, dst))),
                both_ways=False,
            )  # fmt: skip
    return tuple(entries.values())


def _with_network(entries: tuple[DeviceEntry, ...], profiles: Path) -> tuple[DeviceEntry, ...]:
    """The entries with what a byte costs their processors, as ``greentrain measure --link`` found it; dearest link."""
    one_way: dict[str, float] = {}
    duplex: dict[str, float] = {}
    for link in link_profiles(profiles):
        for found, seconds in ((one_way, link.busy_s_per_byte), (duplex, link.duplex_busy_s_per_byte)):
            if seconds is not None:
                found[link.src] = max(float(f"{seconds:.4g}"), found.get(link.src, 0.0))
    lacking = [entry.id for entry in entries if entry.id not in one_way]
    if one_way and lacking:
        say(
            f"Remark: what the network costs the processor of {', '.join(lacking)} is not known and priced as nothing. "
            f"Run greentrain measure --link there."
        )
    return tuple(
        msgspec.structs.replace(entry, network_s_per_byte=one_way.get(entry.id), duplex_s_per_byte=duplex.get(entry.id))
        for entry in entries
    )


def _per_byte(energy_j: float | None) -> str | None:
    """Joules per byte as a cluster file has them; None where nobody knows."""
    return None if energy_j is None else f"{_rounded(energy_j * 1e9)}nJ/B"


def _rounded(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{float(f'{value:.4g}'):.10f}".rstrip("0").rstrip(".")


def _read_lab(name: str | None) -> Lab | None:
    if name is None:
        return None
    from greentrain_harness.lab import read_lab

    return read_lab(name)


def _measured(profiles: Path, folder: Path, lab: Lab | None, settings: dict[str, _Local]) -> tuple[DeviceEntry, ...]:
    """Entries of all device profiles; devices without a way to run get no ``launch``."""
    from greentrain_harness.environment import machine_id

    nodes = {} if lab is None else {node.name: node for node in lab.nodes}
    found = [(path, read_device_profile(path)) for path in device_profiles(profiles)]
    ids = [profile.device.id for _, profile in found]
    for wanted in settings:
        if wanted not in ids:
            known = ", ".join(ids) or "none"
            raise UsageError(f"--local names {wanted!r}, which has no profile in {profiles}; profiles: {known}.")
    lacking = [node for node in nodes if node not in ids]
    if lab is not None and lacking:
        say(
            f"Remark: no profile of {', '.join(lacking)} in {profiles}. "
            f"Run: greentrain lab exec --name {lab.name} --all --in-turn -- greentrain measure"
        )
    here = machine_id()
    entries: list[DeviceEntry] = []
    for path, profile in found:
        identity = profile.device.id
        relative = Path(os.path.relpath(path, folder)).as_posix()
        if lab is None:
            own = settings.get(identity, _Local())
            # A profile that was carried here from a board must not be trained in the board's name.
            local = identity in settings or profile.provenance.machine == here
            if not local:
                say(f"Remark: {identity} was measured on another machine; start its worker there (launch = manual).")
            entries.append(
                DeviceEntry(
                    id=identity, profile=relative, launch="local" if local else "manual",
                    cpus=own.cpus, threads=own.threads, quota_percent=own.quota_percent,
                )
            )  # fmt: skip
        elif identity in nodes:
            launch = f"lab:{lab.name}/{identity}"
            entries.append(
                DeviceEntry(id=identity, profile=relative, launch=launch, address=nodes[identity].address, threads=1)
            )
        else:
            say(f"Remark: {identity} is no node of lab {lab.name!r}; it is planned with, but not run.")
            entries.append(DeviceEntry(id=identity, profile=relative))
    return tuple(entries)


def _planned(added: Iterable[str], *, taken: set[str]) -> tuple[DeviceEntry, ...]:
    """Entries of ``--add KIND[=COUNT]``; ids are the kind with a running number."""
    from greentrain_datasets.catalogue import catalogue_device

    entries: list[DeviceEntry] = []
    used = set(taken)
    for text in added:
        kind, separator, count = text.partition("=")
        if separator and not (count.isdigit() and int(count) >= 1):
            raise UsageError(f"--add is {text!r}, expected KIND or KIND=COUNT.", hint="Write: --add jetson-nano-4gb=4")
        catalogue_device(kind, kind)
        number = 1
        for _ in range(int(count or 1)):
            while f"{kind}-{number}" in used:
                number += 1
            used.add(f"{kind}-{number}")
            entries.append(DeviceEntry(id=f"{kind}-{number}", kind=kind))
    return tuple(entries)


class _Local(NamedTuple):
    """What ``--local`` says of a device on this machine."""

    cpus: str | None = None
    threads: int | None = None
    quota_percent: float | None = None


def _parse_local(text: str) -> tuple[str, _Local]:
    """``ID:cpus=0-1,threads=2,quota=40`` as (id, settings)."""
    match = _LOCAL.fullmatch(text)
    found = [] if match is None else _SETTING.findall(match["settings"])
    settings: dict[str, str] = dict(found)
    written = ",".join(f"{key}={value}" for key, value in found)
    numbers = [settings.get(key, "1") for key in ("threads", "quota")]
    if match is None or written != match["settings"] or not all(number.isdigit() for number in numbers):
        raise UsageError(
            f"--local is {text!r}, expected ID:cpus=LIST,threads=N,quota=PERCENT.",
            hint="Write: --local pc:cpus=0,threads=1,quota=40",
        )
    return match["id"], _Local(
        cpus=settings.get("cpus"),
        threads=int(settings["threads"]) if "threads" in settings else None,
        quota_percent=float(settings["quota"]) if "quota" in settings else None,
    )


def _render(file: ClusterFile) -> str:
    """The file as a person would write it: only what was set, in the order of reading."""
    lines = [
        _HEADER,
        f"name = {_quoted(file.name)}",
        "",
        "[link]  # between any two devices; greentrain measure --link measures it",
        f"bandwidth = {_quoted(file.link.bandwidth)}",
        f"latency = {_quoted(file.link.latency)}",
    ]
    for entry in file.device:
        lines += ["", "[[device]]"]
        for field in msgspec.structs.fields(entry):
            value: str | float | None = getattr(entry, field.name)
            if value is not None and value != field.default:
                lines.append(f"{field.name} = {_quoted(value) if isinstance(value, str) else value}")
    for link in file.links:
        lines += ["", "[[links]]  # measured"]
        for field in ("src", "dst", "bandwidth", "latency", "tx_energy", "rx_energy", "duplex_energy"):
            if (text := getattr(link, field)) not in (None, _UNKNOWN_ENERGY):
                lines.append(f"{field} = {_quoted(text)}")
        if not link.both_ways:
            lines.append("both_ways = false")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)


def _show_summary(path: Path, *, as_json: bool) -> None:
    file, cluster = load_cluster(path)
    summary = _summary(path, file, cluster)
    if as_json:
        emit_json(summary)
        return
    click.echo(f"cluster {summary.name}: {len(summary.devices)} devices ({path})")
    rows = [("device", "kind", "figures", "idle", "busy", "memory", "runs as")]
    rows += [
        (
            device.id,
            device.kind,
            device.source,
            format_quantity(device.idle_w, "power"),
            format_quantity(device.busy_w, "power"),
            format_quantity(device.memory_bytes, "bytes"),
            device.launch or "planned only",
        )
        for device in summary.devices
    ]
    _echo_table(rows)
    rows = [("link", "bandwidth", "latency", "sending", "receiving", "both at once", "medium")]
    rows += [
        (
            "any two" if link.src == "*" else f"{link.src} > {link.dst}",
            format_quantity(link.bandwidth_bytes_per_s, "bandwidth"),
            format_quantity(link.latency_s, "time"),
            format_quantity(link.tx_j_per_byte, "energy_per_byte"),
            format_quantity(link.rx_j_per_byte, "energy_per_byte"),
            format_quantity(link.duplex_j_per_byte, "energy_per_byte"),
            link.medium or "switched",
        )
        for link in summary.links
    ]
    _echo_table(rows)


def _summary(path: Path, file: ClusterFile, cluster: Cluster) -> ClusterSummary:
    return ClusterSummary(
        name=cluster.name,
        path=str(path),
        devices=tuple(
            DeviceRow(
                id=device.id,
                kind=device.kind,
                source=device.power.source,
                idle_w=device.power.idle_w,
                busy_w=device.curve(device.points[0].name).busy_w,
                memory_bytes=device.memory_bytes,
                points=tuple(point.name for point in device.points),
                launch=entry.launch,
            )
            for entry, device in zip(file.device, cluster.devices, strict=True)
        ),
        links=tuple(
            LinkRow(
                src=link.src,
                dst=link.dst,
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
                latency_s=link.latency_s,
                # A file without these fields says nothing of them; it does not say that bytes are free.
                tx_j_per_byte=link.tx_j_per_byte or None,
                rx_j_per_byte=link.rx_j_per_byte or None,
                duplex_j_per_byte=link.duplex_j_per_byte,
                medium=link.medium,
            )
            for link in (cluster.default_link, *cluster.links)
        ),
    )


def _echo_table(rows: Sequence[Sequence[str]]) -> None:
    click.echo("\n".join(table_lines(rows, indent="  ")))
