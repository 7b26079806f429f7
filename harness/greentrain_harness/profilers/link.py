"""Bandwidth and latency between two machines over plain TCP, in both directions, and what they cost this machine.

Processor seconds are measured on the real link: over loopback a byte costs a tenth of what it costs at 100 Mbit/s,
where every few packets wake the receiver.

Run :func:`serve_link` on one machine and :func:`measure_link` on the other.

Each request is one byte (``P`` ping, ``U`` upload, ``D`` download, ``B`` both at once, ``I`` identity) and a length
of eight bytes; the server answers a ping with its byte, swallows an upload and answers with one byte, sends a
download, swallows and sends as much at once and answers with one byte, or sends its device's id in as many bytes as
were asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import statistics
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from greentrain.errors import RunError, UnavailableError
from greentrain.reading import EnergyRecorder, Span
from greentrain_harness.environment import usable_cores

__all__ = ["LinkFigures", "joules_per_byte", "measure_link", "serve_link"]

_REQUEST = struct.Struct("!cQ")
_CHUNK = bytes(1 << 16)
_PINGS = 20
_FIRST_BYTES = 1 << 17
_MOST_BYTES = 1 << 30
_TRIALS = 3
_ID_BYTES = 64


class LinkFigures(NamedTuple):
    """A measured link.

    Attributes:
        upload_bytes_per_s: Payload bandwidth to the other machine.
        download_bytes_per_s: Payload bandwidth from it.
        latency_s: Half of the median round trip of an empty message.
        peer: The other machine's device id.
        tx_j_per_byte: Joules above idle per byte sent; None where no meter could tell them from idle.
        rx_j_per_byte: Joules above idle per byte received; None likewise.
        tx_busy_s_per_byte: Processor seconds per byte sent, over the cores that this process may use.
        rx_busy_s_per_byte: The same per byte received.
        duplex_j_per_byte: Joules above idle per byte sent or received while as many go the other way.
        duplex_busy_s_per_byte: The same in processor seconds.
    """

    upload_bytes_per_s: float
    download_bytes_per_s: float
    latency_s: float
    peer: str
    tx_j_per_byte: float | None = None
    rx_j_per_byte: float | None = None
    tx_busy_s_per_byte: float | None = None
    rx_busy_s_per_byte: float | None = None
    duplex_j_per_byte: float | None = None
    duplex_busy_s_per_byte: float | None = None

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Payload bandwidth of the slower direction."""
        return min(self.upload_bytes_per_s, self.download_bytes_per_s)


def serve_link(
    port: int,
    *,
    host: str = "",
    identity: str = "",
    timeout_s: float = 30.0,
    stop: threading.Event | None = None,
    ready: threading.Event | None = None,
) -> None:
    """Answer measurements until ``stop`` is set (or for ever).

    Args:
        port: TCP port to listen on.
        host: Address to listen on; all when empty.
        identity: This device's id, for those who ask.
        timeout_s: A silent client is dropped after this long.
        stop: Ends the loop within half a second.
        ready: Set as soon as clients can connect.

    Raises:
        UnavailableError: The port is in use or not allowed.
    """
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise UnavailableError(
            f"port {port} cannot be opened ({os.strerror(error.errno or errno.EIO)}).", hint="Choose another port."
        ) from error
    with listener:
        listener.settimeout(0.5)
        if ready is not None:
            ready.set()
        while stop is None or not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            with client, contextlib.suppress(OSError):
                client.settimeout(timeout_s)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _answer(client, identity)


def measure_link(
    host: str, port: int, *, seconds: float = 1.0, timeout_s: float = 10.0, energy: EnergyRecorder | None = None
) -> LinkFigures:
    """Measure the link to a machine that runs :func:`serve_link`.

    The message grows until it takes long enough to be timed; then the best of a few trials counts in
    each direction, since other traffic only ever slows one down.

    Args:
        host: Name or address of the other machine.
        port: Its port.
        seconds: Time for each direction, about.
        timeout_s: An answer that takes longer is an error.
        energy: This machine's running meter, for the joules per byte.

    Raises:
        UnavailableError: Nobody listens there.
        RunError: The connection broke or fell silent.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise UnavailableError(
            f"no link server answers at {host}:{port} ({error.strerror or error}).",
            hint="Start one there, and check the address and the firewall.",
        ) from error
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            round_trip_s = statistics.median(_ping_s(connection) for _ in range(_PINGS))
            idle = _idle(energy, seconds)
            (upload, tx_j, tx_s), (download, rx_j, rx_s), (_, duplex_j, duplex_s) = (
                _direction(connection, kind, seconds, round_trip_s, energy, idle) for kind in (b"U", b"D", b"B")
            )
            connection.sendall(_REQUEST.pack(b"I", _ID_BYTES))
            peer = (_receive(connection, _ID_BYTES) or b"").rstrip(b"\0").decode(errors="replace")
        except OSError as error:
            raise RunError(
                f"the link to {host}:{port} broke while it was measured ({error.strerror or error}).",
                hint="Measure again; raise the timeout on a very slow link.",
            ) from error
    cores = usable_cores()
    return LinkFigures(
        upload, download, round_trip_s / 2, peer, tx_j, rx_j, tx_s / cores, rx_s / cores, duplex_j, duplex_s / cores
    )


def joules_per_byte(busy: Span, idle: Span, bytes_n: int) -> float | None:
    """Energy of a transfer above idle over its bytes; None where it is not known, or no more than its ±.

    Args:
        busy: The transfer.
        idle: The same machine at rest.
        bytes_n: Payload bytes.
    """
    if busy.energy_j is None or busy.error_j is None or idle.mean_w is None or idle.error_j is None or busy.gap_s > 0:
        return None
    above_j = busy.energy_j - idle.mean_w * busy.duration_s
    error_j = busy.error_j + idle.error_j * busy.duration_s / idle.duration_s
    return above_j / bytes_n if above_j > error_j else None


def _idle(energy: EnergyRecorder | None, seconds: float) -> Span | None:
    if energy is None:
        return None
    start_s = time.monotonic()
    time.sleep(seconds)
    return energy.span(start_s, time.monotonic())


def _direction(
    connection: socket.socket, kind: bytes, seconds: float, round_trip_s: float, energy: EnergyRecorder | None,
    idle: Span | None,
) -> tuple[float, float | None, float]:  # fmt: skip
    """Bandwidth of a kind of request, joules per byte where a meter runs, and processor seconds per byte."""
    start_s = time.monotonic()
    moved = _bandwidth(connection, kind, seconds, round_trip_s)
    bytes_per_s, bytes_n = moved.bytes_per_s, moved.bytes_n
    cpu_s_per_byte = moved.cpu_s / bytes_n
    if energy is None or idle is None:
        return bytes_per_s, None, cpu_s_per_byte
    return bytes_per_s, joules_per_byte(energy.span(start_s, time.monotonic()), idle, bytes_n), cpu_s_per_byte


class _Moved(NamedTuple):
    """What a direction's trials moved: best bandwidth, all bytes, and processor seconds of the threads that did it."""

    bytes_per_s: float
    bytes_n: int
    cpu_s: float


def _bandwidth(connection: socket.socket, kind: bytes, seconds: float, round_trip_s: float) -> _Moved:
    """Best bandwidth of the trials, and the bytes and processor seconds of all of them together."""
    trial_s = seconds / (_TRIALS + 1)
    moved = size = _FIRST_BYTES
    duration_s, cpu_s = _transfer_s(connection, kind, size)
    while duration_s < trial_s / 2 and size < _MOST_BYTES:
        size = min(size * max(2, min(8, int(trial_s / max(duration_s, 1e-6)))), _MOST_BYTES)
        duration_s, more_s = _transfer_s(connection, kind, size)
        moved, cpu_s = moved + size, cpu_s + more_s
    trials = [_transfer_s(connection, kind, size) for _ in range(_TRIALS - 1)]
    best_s = min(duration_s, *(took_s for took_s, _ in trials))
    # The request and its answer cross the link once each.
    return _Moved(
        bytes_per_s=size / max(best_s - round_trip_s, best_s * 0.1),
        bytes_n=(moved + size * len(trials)) * (2 if kind == b"B" else 1),
        cpu_s=cpu_s + sum(more_s for _, more_s in trials),
    )


def _ping_s(connection: socket.socket) -> float:
    start_s = time.monotonic()
    connection.sendall(_REQUEST.pack(b"P", 0))
    _swallow(connection, 1)
    return time.monotonic() - start_s


def _transfer_s(connection: socket.socket, kind: bytes, size: int) -> tuple[float, float]:
    """Seconds and processor seconds of a request of a size."""
    start_s, start_cpu_s = time.monotonic(), time.thread_time()
    beside_s = 0.0
    connection.sendall(_REQUEST.pack(kind, size))
    if kind == b"B":
        beside_s = _both(connection, size)
        _swallow(connection, 1)
    elif kind == b"U":
        _send(connection, size)
        _swallow(connection, 1)
    else:
        _swallow(connection, size)
    return time.monotonic() - start_s, time.thread_time() - start_cpu_s + beside_s


def _both(connection: socket.socket, size: int) -> float:
    """Send and receive so many bytes at once; processor seconds of the thread that sends."""

    def send() -> float:
        _send(connection, size)
        return time.thread_time()

    with ThreadPoolExecutor(1, thread_name_prefix="link") as pool:
        sending = pool.submit(send)
        _swallow(connection, size)
        return sending.result()


def _answer(client: socket.socket, identity: str) -> None:
    while True:
        head = _receive(client, _REQUEST.size)
        if head is None:
            return
        kind, size = _REQUEST.unpack(head)
        if kind == b"U":
            _swallow(client, min(size, _MOST_BYTES))
        if kind == b"D":
            _send(client, min(size, _MOST_BYTES))
        elif kind == b"B":
            _both(client, min(size, _MOST_BYTES))
            client.sendall(kind)
        elif kind == b"I":
            client.sendall(identity.encode()[:_ID_BYTES].ljust(_ID_BYTES, b"\0"))
        else:
            client.sendall(kind)


def _send(connection: socket.socket, size: int) -> None:
    for sent in range(0, size, len(_CHUNK)):
        connection.sendall(_CHUNK[: size - sent])


def _swallow(connection: socket.socket, size: int) -> None:
    while size > 0:
        part = connection.recv(min(size, len(_CHUNK)))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")
        size -= len(part)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Exactly ``size`` bytes; None when the other side has finished."""
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return parts
