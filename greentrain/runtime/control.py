"""The control plane beside gloo: a small connection to every peer, heartbeats, and who is gone.

It knows nothing of training. Frames are a kind, a length and bytes; what the bytes mean is the caller's
business. A closed connection or a long silence is looked at a second time through a connection of its own:
a process that answers there lives, one whose machine accepts but that does not answer is frozen, and a
machine that refuses has lost the process.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from greentrain.errors import RunError
from greentrain.reading import Clock

__all__ = ["BEAT_S", "LOOK_S", "PRIORITY", "SILENT_S", "Address", "Control", "Fate", "Loss", "ask"]

BEAT_S = 0.2
# A peer that is silent for so long is looked at a second time; with that, a loss is known within 3 s.
SILENT_S = 1.8
LOOK_S = 0.8
# Ahead of the tensors in this machine's queues; and a mark of what belongs to the control plane.
PRIORITY = 6
_SEND_S = 1.0
_DIAL_S = 2.0
_HEAD = struct.Struct("!cI")
# Far more than any plan; a length beyond it is no frame of ours.
_MOST_BYTES = 1 << 28

Address = tuple[str, int]
Fate = Literal["dead", "left", "frozen", "unreachable"]


class Loss(NamedTuple):
    """A peer that is gone.

    Attributes:
        device: Which.
        fate: ``dead``: its machine says that the process is gone. ``left``: it said goodbye. ``frozen``: its machine
            answers, it does not. ``unreachable``: neither does; it may live on behind a broken link.
        silent_s: Seconds since it was last heard.
    """

    device: str
    fate: Fate
    silent_s: float


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    device: str | None = None
    heard_s: float = 0.0
    buffer: bytearray = field(default_factory=bytearray)
    sending: threading.Lock = field(default_factory=threading.Lock)
    # It said goodbye: closing is no loss.
    left: bool = False
    looked_at: bool = False

    def send(self, kind: bytes, payload: bytes = b"") -> bool:
        """Send a frame; whether the connection took it."""
        try:
            with self.sending:
                self.socket.sendall(_HEAD.pack(kind, len(payload)) + payload)
        except (OSError, ValueError):
            return False
        return True


class Control:
    """This process's end of the control plane. Close it when the run ends.

    Callbacks run on the control thread: they must not wait.

    Args:
        device: This device.
        token: What all of a run know; a stranger's connection is dropped.
        port: Port to listen on at all addresses; 0 for any.
        on_message: Told sender and bytes.
        on_lost: Told who is gone, once per peer and connection.
        on_request: Answers one-shot questions of anybody.
        clock: Monotonic seconds.
    """

    def __init__(
        self, device: str, *, token: str, port: int = 0, on_message: Callable[[str, bytes], None],
        on_lost: Callable[[Loss], None], on_request: Callable[[bytes], bytes], clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self.device = device
        self._token = token.encode()
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_request = on_request
        self._clock = clock
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[str, _Connection] = {}
        # Lost, but told apart: one that was frozen reads there that the others went on.
        self._gone: dict[str, _Connection] = {}
        self._wanted: dict[str, Address] = {}
        self._changed = threading.Condition()
        self._added: SimpleQueue[_Connection] = SimpleQueue()
        self._waker, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def connect(self, peers: Mapping[str, Address], *, timeout_s: float) -> tuple[str, ...]:
        """Have a connection to exactly these peers; the others are left with a goodbye. All must call it.

        Returns:
            Peers that could not be reached in time.
        """
        with self._changed:
            self._wanted = {device: address for device, address in peers.items() if device != self.device}
            for device in [device for device in self._peers if device not in self._wanted]:
                self._drop(self._peers.pop(device))
            for connection in self._gone.values():
                self._drop(connection)
            self._gone.clear()
        deadline_s = self._clock() + timeout_s
        for device in sorted(self._wanted):
            if device < self.device:
                self._dial(device, deadline_s)
        with self._changed:
            self._changed.wait_for(lambda: not self._absent(), timeout=max(deadline_s - self._clock(), 0.01))
            return self._absent()

    def send(self, device: str, payload: bytes) -> None:
        """Send a message; where the peer is gone, nothing happens: its loss is told otherwise."""
        with self._changed:
            peer = self._peers.get(device) or self._gone.get(device)
        if peer is not None:
            peer.send(b"M", payload)

    def sockets(self) -> list[socket.socket]:
        """The open connections to peers."""
        with self._changed:
            return [connection.socket for connection in self._peers.values()]

    def close(self) -> None:
        """Say goodbye to all and end; a second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._changed:
            for peer in (*self._peers.values(), *self._gone.values()):
                self._drop(peer)
            self._peers.clear()
        self._wake()
        self._thread.join(timeout=2.0)
        for end in (self._listener, self._waker, self._wakes):
            end.close()

    def _absent(self) -> tuple[str, ...]:
        return tuple(device for device in self._wanted if device not in self._peers)

    def _dial(self, device: str, deadline_s: float) -> None:
        with self._changed:
            address = self._wanted.get(device)
            if address is None or device in self._peers:
                return
        while not self._closed.is_set():
            try:
                found = _dialled(address, _DIAL_S)
            except OSError:
                if self._clock() >= deadline_s:
                    return
                time.sleep(BEAT_S / 4)
                continue
            connection = self._adopt(found)
            connection.send(b"H", self._token + b"\0" + self.device.encode())
            self._register(device, connection)
            self._added.put(connection)
            self._wake()
            return

    def _adopt(self, found: socket.socket) -> _Connection:
        _mark(found)
        found.settimeout(_SEND_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Connection(found, heard_s=self._clock())

    def _register(self, device: str, connection: _Connection) -> None:
        connection.device = device
        with self._changed:
            old = self._peers.get(device)
            self._peers[device] = connection
            self._changed.notify_all()
        if old is not None:
            old.left = True
            self._drop(old)

    def _drop(self, connection: _Connection) -> None:
        """Close with a goodbye. The control thread forgets the socket when it sees it closed."""
        connection.left = True
        connection.send(b"G")
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakes, selectors.EVENT_READ)
            connections: set[_Connection] = set()
            beat_s = turn_s = self._clock()
            while not self._closed.is_set():
                for key, _ in selector.select(timeout=BEAT_S / 2):
                    if key.fileobj is self._listener:
                        self._accept(selector, connections)
                    elif key.fileobj is self._wakes:
                        self._wakes.recv(1024)
                        self._add(selector, connections)
                    elif not self._read(key.data):
                        selector.unregister(key.data.socket)
                        connections.discard(key.data)
                        key.data.socket.close()
                        self._ended(key.data)
                now_s = self._clock()
                self._look_for_silence(now_s, stalled=now_s - turn_s > SILENT_S / 2)
                turn_s = now_s
                if now_s - beat_s >= BEAT_S:
                    beat_s = now_s
                    self._beat()
            self._add(selector, connections)
            for connection in connections:
                connection.socket.close()

    def _beat(self) -> None:
        with self._changed:
            peers = list(self._peers.values())
        for peer in peers:
            peer.send(b"B")

    def _accept(self, selector: selectors.BaseSelector, connections: set[_Connection]) -> None:
        with contextlib.suppress(OSError):
            found, _ = self._listener.accept()
            connection = self._adopt(found)
            selector.register(found, selectors.EVENT_READ, connection)
            connections.add(connection)

    def _add(self, selector: selectors.BaseSelector, connections: set[_Connection]) -> None:
        with contextlib.suppress(Empty):
            while True:
                connection = self._added.get_nowait()
                with contextlib.suppress(ValueError, KeyError):
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    connections.add(connection)

    def _read(self, connection: _Connection) -> bool:
        """Take what has arrived; whether the connection is still open."""
        try:
            data = connection.socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            return False
        connection.heard_s = self._clock()
        connection.buffer += data
        while len(connection.buffer) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(connection.buffer)
            if size > _MOST_BYTES:
                return False
            if len(connection.buffer) < _HEAD.size + size:
                break
            payload = bytes(connection.buffer[_HEAD.size : _HEAD.size + size])
            del connection.buffer[: _HEAD.size + size]
            if not self._take(connection, kind, payload):
                return False
        return True

    def _take(self, connection: _Connection, kind: bytes, payload: bytes) -> bool:
        """Handle a frame; whether the connection stays."""
        if kind == b"M" and connection.device is not None:
            self._on_message(connection.device, payload)
        elif kind == b"H" and connection.device is None:
            token, _, device = payload.rpartition(b"\0")
            if token != self._token:
                return False
            self._register(device.decode(), connection)
        elif kind == b"G":
            connection.left = True
            return False
        elif kind == b"P":
            connection.send(b"O")
            return False
        elif kind == b"Q":
            connection.send(b"A", self._on_request(payload))
            return False
        return True

    def _ended(self, connection: _Connection) -> None:
        device = connection.device
        with self._changed:
            if device is None or self._peers.get(device) is not connection:
                return
            if connection.left:
                del self._peers[device]
        if connection.left:
            self._on_lost(Loss(device, "left", self._clock() - connection.heard_s))
        else:
            self._suspect(connection)

    def _look_for_silence(self, now_s: float, *, stalled: bool) -> None:
        with self._changed:
            peers = list(self._peers.values())
        for peer in peers:
            if stalled:
                # This process itself stood still: what the others sent meanwhile is not read yet.
                peer.heard_s = now_s
            elif now_s - peer.heard_s > SILENT_S and not peer.left:
                self._suspect(peer)

    def _suspect(self, connection: _Connection) -> None:
        if connection.looked_at:
            return
        connection.looked_at = True
        threading.Thread(target=self._second_look, args=(connection,), name="second-look", daemon=True).start()

    def _second_look(self, connection: _Connection) -> None:
        device = connection.device
        assert device is not None
        with self._changed:
            address = self._wanted.get(device)
        fate = None if address is None else _look(address)
        if fate is None and address is not None:
            fate = self._mend(device, connection)
        with self._changed:
            if self._closed.is_set() or self._peers.get(device) is not connection or fate is None:
                return
            self._gone[device] = self._peers.pop(device)
        self._on_lost(Loss(device, fate, self._clock() - connection.heard_s))

    def _mend(self, device: str, connection: _Connection) -> Fate | None:
        """The peer lives: None where it is heard again, or a new connection has replaced the broken one."""
        if connection.socket.fileno() >= 0:
            connection.heard_s = self._clock()
            connection.looked_at = False
            return None
        deadline_s = self._clock() + LOOK_S
        if device < self.device:
            with self._changed:
                self._peers.pop(device, None)
            self._dial(device, deadline_s)
            with self._changed:
                if device not in self._peers:
                    self._peers[device] = connection
        with self._changed:
            mended = self._changed.wait_for(lambda: self._peers.get(device) is not connection, timeout=LOOK_S)
        return None if mended else "unreachable"


def ask(address: Address, payload: bytes, *, timeout_s: float) -> bytes | None:
    """Ask a control plane one question; None where there is none.

    Raises:
        TimeoutError: Something listens there that does not answer in time.
        OSError: Its host is out of reach.
    """
    try:
        connection = _dialled(address, timeout_s)
    except ConnectionRefusedError:
        return None
    except TimeoutError as error:
        raise OSError(errno.EHOSTUNREACH, "out of reach") from error
    with connection:
        try:
            return _exchange(connection, b"Q", payload)
        except ConnectionError:
            return None


def _look(address: Address) -> Fate | None:
    """How a peer is, seen from outside; None where it answers."""
    try:
        connection = _dialled(address, LOOK_S)
    except ConnectionRefusedError:
        return "dead"
    except OSError:
        return "unreachable"
    with connection:
        try:
            # Its machine closed the connection at once: the process is just ending.
            return "dead" if _exchange(connection, b"P", b"") is None else None
        except ConnectionError:
            return "dead"
        except OSError:
            return "frozen"


def _dialled(address: Address, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        _mark(connection)
        connection.settimeout(timeout_s)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _mark(connection: socket.socket) -> None:
    if sys.platform == "linux":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)


def _exchange(connection: socket.socket, kind: bytes, payload: bytes) -> bytes | None:
    connection.sendall(_HEAD.pack(kind, len(payload)) + payload)
    data = bytearray()
    while len(data) < _HEAD.size or len(data) < _HEAD.size + _HEAD.unpack_from(data)[1]:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return None
        data += chunk
    return bytes(data[_HEAD.size :])


def _listen(port: int) -> socket.socket:
    """A listener on the port, or on any where it is taken.

    Raises:
        RunError: No port is free.
    """
    for wanted in (port, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # A worker that comes back finds the port of its earlier life, though old connections still fade away.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", wanted))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if wanted == 0:
                raise RunError("no TCP port is free for the control plane.", hint="Close other programs.") from error
            continue
        return listener
    raise AssertionError("port 0 is always tried")
