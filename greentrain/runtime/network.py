"""Which address and which interface of this machine lead to a peer.

gloo binds what ``gethostname()`` resolves to, which on many boards is a loopback address; naming the
interface that routes to the coordinator is the cure.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from greentrain.errors import RunError

__all__ = ["address_towards", "free_port", "interface_of"]

_SIOCGIFADDR = 0x8915


def address_towards(host: str) -> str:
    """This machine's IPv4 address on the route to a host. No packet is sent.

    Raises:
        RunError: There is no route, or the name is unknown.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RunError(
            f"no route to the coordinator {host!r} ({error.strerror or error}).",
            hint="Check the address in cluster.toml and the network cable.",
        ) from error


def interface_of(address: str) -> str | None:
    """Name of the interface that carries an IPv4 address; None when no interface does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # An interface without an IPv4 address.
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that is free right now on a local address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
