"""``greentrain measure --link`` and ``--link-serve``: the link between two devices into profiles/."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from greentrain._checks import require_id
from greentrain.cli._common import emit_json, say
from greentrain.device import Provenance
from greentrain.errors import UsageError
from greentrain.link_profile import LinkProfile, write_link_profile
from greentrain.units import format_quantity

__all__ = ["measure_links", "serve"]


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints."""

    src: str
    dst: str
    upload_bytes_per_s: float
    download_bytes_per_s: float
    latency_s: float
    tx_j_per_byte: float | None
    rx_j_per_byte: float | None
    duplex_j_per_byte: float | None
    busy_s_per_byte: float | None
    duplex_busy_s_per_byte: float | None
    source: str
    file: str


def serve(port: int, identity: str, *, quiet: bool) -> None:
    """Answer other devices until interrupted."""
    from greentrain_harness.profilers.link import serve_link

    say(
        f"{identity} answers on port {port}; on the other device: greentrain measure --link THIS-HOST:{port}",
        quiet=quiet,
    )
    serve_link(port, identity=identity)


def measure_links(
    address: str, identity: str, folder: Path, *, device: str, sysroot: Path, as_json: bool
) -> None:  # fmt: skip
    """Measure the link to a device that serves, print it and write it down.

    Raises:
        UsageError: The address is no HOST:PORT, or both ends have the same id.
        UnavailableError: Nobody answers there.
    """
    from greentrain_harness.environment import host_description, package_versions
    from greentrain_harness.meters import open_named
    from greentrain_harness.profilers.link import measure_link
    from greentrain_harness.sampler import Sampler

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--link is {address!r}, expected HOST:PORT.", hint="Such as --link 192.168.1.20:5201.")
    with Sampler(open_named(device, sysroot=sysroot)) as energy:
        figures = measure_link(host.strip("[]"), int(port), energy=energy)
    try:
        require_id(figures.peer, what="the other device's id")
        profile = LinkProfile(
            src=identity,
            dst=figures.peer,
            upload_bytes_per_s=figures.upload_bytes_per_s,
            download_bytes_per_s=figures.download_bytes_per_s,
            latency_s=figures.latency_s,
            tx_j_per_byte=figures.tx_j_per_byte,
            rx_j_per_byte=figures.rx_j_per_byte,
            tx_busy_s_per_byte=figures.tx_busy_s_per_byte,
            rx_busy_s_per_byte=figures.rx_busy_s_per_byte,
            duplex_j_per_byte=figures.duplex_j_per_byte,
            duplex_busy_s_per_byte=figures.duplex_busy_s_per_byte,
            provenance=Provenance(
                meter=energy.name,
                source=energy.source,
                command=f"greentrain measure --link {address} --id {identity}",
                host=host_description(),
                versions=package_versions(),
                trials_n=3,
                note="times of one TCP connection; joules per byte above idle, null when within the meter's error; "
                "processor seconds of the measuring threads over the cores that it may use",
            ),
        )
    except ValueError as error:
        raise UsageError(f"{error}.", hint="Give the two devices different names with --id.") from error
    path = write_link_profile(folder, profile)
    if as_json:
        emit_json(
            _Result(
                src=identity, dst=figures.peer, upload_bytes_per_s=figures.upload_bytes_per_s,
                download_bytes_per_s=figures.download_bytes_per_s, latency_s=figures.latency_s,
                tx_j_per_byte=figures.tx_j_per_byte, rx_j_per_byte=figures.rx_j_per_byte,
                duplex_j_per_byte=figures.duplex_j_per_byte, busy_s_per_byte=profile.busy_s_per_byte,
                duplex_busy_s_per_byte=figures.duplex_busy_s_per_byte, source=energy.source,
                file=str(path),
            )
        )  # fmt: skip
        return
    up, down = (
        format_quantity(rate, "bandwidth") for rate in (figures.upload_bytes_per_s, figures.download_bytes_per_s)
    )
    click.echo(f"{identity} → {figures.peer}: {up}, back {down}, latency {format_quantity(figures.latency_s, 'time')}")
    click.echo(f"wrote {path}")
