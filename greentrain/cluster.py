"""Link, Medium, Cluster: who is connected to whom, and how fast."""

from __future__ import annotations

import msgspec

from greentrain._checks import require, require_non_negative, require_positive
from greentrain.device import Device
from greentrain.errors import UsageError

__all__ = ["Cluster", "Link", "Medium"]


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A one-way connection.

    Attributes:
        src: Sending device, or ``*`` for the cluster's default link.
        dst: Receiving device, or ``*``.
        bandwidth_bytes_per_s: Payload bandwidth.
        latency_s: Time of an empty message.
        tx_j_per_byte: Energy of the sender per byte.
        rx_j_per_byte: Energy of the receiver per byte.
        duplex_j_per_byte: Energy of either end per byte that it sends or receives while bytes go both ways at once,
            as in sums and rings of a group; None: as one way.
        medium: Name of the shared medium, or None for a switched link.
    """

    src: str
    dst: str
    bandwidth_bytes_per_s: float
    latency_s: float = 0.0
    tx_j_per_byte: float = 0.0
    rx_j_per_byte: float = 0.0
    duplex_j_per_byte: float | None = None
    medium: str | None = None

    def __post_init__(self) -> None:
        require_positive(bandwidth_bytes_per_s=self.bandwidth_bytes_per_s)
        require_non_negative(
            latency_s=self.latency_s, tx_j_per_byte=self.tx_j_per_byte, rx_j_per_byte=self.rx_j_per_byte,
            duplex_j_per_byte=self.duplex_j_per_byte,
        )  # fmt: skip

    def transfer_s(self, size_bytes: float) -> float:
        """Seconds to move a message over the idle link."""
        return self.latency_s + size_bytes / self.bandwidth_bytes_per_s


class Medium(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Airtime or a hub that several links share: one transfer at a time.

    Attributes:
        name: Referred to by :attr:`Link.medium`.
        bandwidth_bytes_per_s: Payload bandwidth of the whole medium.
    """

    name: str
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        require_positive(bandwidth_bytes_per_s=self.bandwidth_bytes_per_s)


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices that may take part, and their links.

    Attributes:
        name: Shown in plans and reports.
        devices: In the order of the file; ids differ.
        default_link: Holds between any two devices without a link of their own.
        links: Exceptions, one per direction.
        media: Shared media.
    """

    name: str
    devices: tuple[Device, ...]
    default_link: Link
    links: tuple[Link, ...] = ()
    media: tuple[Medium, ...] = ()

    def __post_init__(self) -> None:
        ids = [device.id for device in self.devices]
        require(len(ids) > 0, "a cluster needs at least one device")
        twice = sorted({identity for identity in ids if ids.count(identity) > 1})
        require(not twice, f"device ids {twice} are used twice")
        known = set(ids)
        for link in self.links:
            for end in (link.src, link.dst):
                require(end in known, f"link {link.src} > {link.dst}: unknown device {end!r}")
            require(link.src != link.dst, f"link {link.src} > {link.dst}: joins a device with itself")
        pairs = [(link.src, link.dst) for link in self.links]
        for src, dst in pairs:
            once = pairs.count((src, dst)) == 1
            require(once, f"link {src} > {dst} is given twice (both_ways = true also gives the way back)")
        names = {medium.name for medium in self.media}
        require(len(names) == len(self.media), "media must have different names")
        for link in (self.default_link, *self.links):
            require(link.medium is None or link.medium in names, f"unknown medium {link.medium!r}")

    def device(self, identity: str) -> Device:
        """The device of an id.

        Raises:
            UsageError: The cluster has no such device.
        """
        for device in self.devices:
            if device.id == identity:
                return device
        known = ", ".join(device.id for device in self.devices)
        raise UsageError(f"unknown device {identity!r}.", hint=f"The cluster {self.name!r} has: {known}.")

    def link(self, src: str, dst: str) -> Link:
        """The link from one device to another; the default link where none is listed."""
        for link in self.links:
            if link.src == src and link.dst == dst:
                return link
        return self.default_link

    def bandwidth_bytes_per_s(self, link: Link) -> float:
        """Payload bandwidth of a link on this cluster: never more than its medium gives."""
        if link.medium is None:
            return link.bandwidth_bytes_per_s
        return min(link.bandwidth_bytes_per_s, self.medium(link.medium).bandwidth_bytes_per_s)

    def medium(self, name: str) -> Medium:
        """The shared medium of a name (checked when the cluster was made)."""
        return next(medium for medium in self.media if medium.name == name)

    def restricted_to(self, identities: tuple[str, ...]) -> Cluster:
        """The same cluster with only these devices, in the cluster's order.

        Raises:
            UsageError: An id is unknown.
        """
        for identity in identities:
            self.device(identity)
        kept = tuple(device for device in self.devices if device.id in identities)
        links = tuple(link for link in self.links if link.src in identities and link.dst in identities)
        return msgspec.structs.replace(self, devices=kept, links=links)
