"""LinkProfile: a measured link between two devices, ``profiles/<src>.<dst>.links.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.device import Provenance
from greentrain.files import read_json, write_json

__all__ = ["LINKS_SCHEMA", "LinkProfile", "link_profiles", "write_link_profile"]

LINKS_SCHEMA = "greentrain.links/1"


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device measured of the link to another.

    Attributes:
        src: Device that measured.
        dst: Device at the other end.
        upload_bytes_per_s: Payload bandwidth from src to dst.
        download_bytes_per_s: Payload bandwidth from dst to src.
        latency_s: Half of the median round trip of an empty message.
        provenance: Where the figures come from; its meter and source are those of the joules.
        tx_j_per_byte: Joules of src above idle per byte sent; None where no meter could tell them from idle.
        rx_j_per_byte: Joules of src above idle per byte received; None likewise.
        tx_busy_s_per_byte: Processor seconds of src per byte sent, over the cores that it may use; None where nobody
            measured them.
        rx_busy_s_per_byte: The same per byte received; on slow links every packet wakes the receiver.
        duplex_j_per_byte: Joules of src above idle per byte sent or received while bytes go both ways at once.
        duplex_busy_s_per_byte: The same in processor seconds; up to three times what they cost one way after the
            other.
    """

    src: str
    dst: str
    upload_bytes_per_s: float
    download_bytes_per_s: float
    latency_s: float
    provenance: Provenance
    tx_j_per_byte: float | None = None
    rx_j_per_byte: float | None = None
    tx_busy_s_per_byte: float | None = None
    rx_busy_s_per_byte: float | None = None
    duplex_j_per_byte: float | None = None
    duplex_busy_s_per_byte: float | None = None

    def __post_init__(self) -> None:
        require_id(self.src, what="device id")
        require_id(self.dst, what="device id")
        require(self.src != self.dst, f"a link from {self.src!r} to itself")
        require_positive(
            upload_bytes_per_s=self.upload_bytes_per_s, download_bytes_per_s=self.download_bytes_per_s
        )  # fmt: skip
        require_non_negative(
            latency_s=self.latency_s, tx_j_per_byte=self.tx_j_per_byte, rx_j_per_byte=self.rx_j_per_byte,
            tx_busy_s_per_byte=self.tx_busy_s_per_byte, rx_busy_s_per_byte=self.rx_busy_s_per_byte,
            duplex_j_per_byte=self.duplex_j_per_byte, duplex_busy_s_per_byte=self.duplex_busy_s_per_byte,
        )  # fmt: skip

    @property
    def busy_s_per_byte(self) -> float | None:
        """Seconds in which src is busy per byte that it moves, one way as often as the other; None: not measured."""
        if self.tx_busy_s_per_byte is None or self.rx_busy_s_per_byte is None:
            return None
        return (self.tx_busy_s_per_byte + self.rx_busy_s_per_byte) / 2


def write_link_profile(folder: Path, profile: LinkProfile) -> Path:
    """Write ``<src>.<dst>.links.json`` and return its path."""
    path = folder / f"{profile.src}.{profile.dst}.links.json"
    write_json(path, profile, schema=LINKS_SCHEMA)
    return path


def link_profiles(folder: Path) -> tuple[LinkProfile, ...]:
    """All measured links of a folder.

    Raises:
        UsageError: A file is damaged.
    """
    return tuple(read_json(path, LinkProfile, schema=LINKS_SCHEMA) for path in sorted(folder.glob("*.links.json")))
