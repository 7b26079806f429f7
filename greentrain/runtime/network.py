"""Which address and which interface of this machine lead to a peer, and whether it answers.

gloo binds what ``gethostname()`` resolves to, which on many boards is a loopback address; naming the
interface that routes to the coordinator is the cure.
"""

from __future__ import annotations

import errno
import fcntl
import random
import socket
import struct
import time
from collections.abc import Callable

from greentrain.errors import RunError, UsageError
from greentrain.reading import Clock

__all__ = ["address_towards", "check_own_port", "free_port", "interface_of", "wait_for_port"]

_SIOCGIFADDR = 0x8915
# Below the ports that the kernel gives to outgoing connections, so that none of those takes it meanwhile.
_PORTS = range(20_000, 30_000)
_CONNECT_S = 2.0
_RETRY_S = 0.5


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
            hint="Check the address (--coordinator, or address in cluster.toml) and the network cable.",
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


def free_port() -> int:
    """A TCP port that is free right now on all addresses of this machine.

    Raises:
        RunError: None was found.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RunError(f"no free TCP port between {_PORTS.start} and {_PORTS.stop}.", hint="Close other programs.")


def check_own_port(host: str, port: int, *, device: str) -> str:
    """Check that rank 0 can listen at the coordinator's address.

    Returns:
        The IPv4 address of the host.

    Raises:
        UsageError: The host is unknown or is another machine, or the port is taken.
    """
    try:
        address = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason, hint = f"port {port} is taken", "Choose another port, or end the worker that still runs there."
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"{host!r} is not an address of this machine"
            hint = f"Give the address of {device}, the plan's first device; the same plan must be on every device."
        else:
            reason, hint = f"{error.strerror or error}", "Give an address such as 192.168.1.20:29500."
        raise UsageError(f"{device} cannot listen at {host}:{port}: {reason}.", hint=hint) from error
    return address


def wait_for_port(
    host: str,
    port: int,
    *,
    device: str,
    timeout_s: float,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until rank 0 listens.

    Args:
        host: The coordinator's address.
        port: Its port.
        device: The plan's first device, for the message.
        timeout_s: Longest wait.
        clock: Monotonic seconds.
        sleep: Waits.

    Raises:
        RunError: Nobody listened in time, or the name is unknown.
    """
    deadline_s = clock() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or clock() >= deadline_s:
                raise RunError(
                    f"nobody answers at {host}:{port} ({error.strerror or error}).",
                    hint=f"Start the worker of {device} first, and give its address as --coordinator HOST:PORT.",
                ) from error
        sleep(_RETRY_S)
