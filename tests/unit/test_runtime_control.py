"""The control plane on the loopback: messages, orderly leaves, kills, freezes, questions."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

import pytest

from greentrain.runtime import control
from greentrain.runtime.control import Control, Loss, ask

PEER = """
import sys, time
from greentrain.runtime.control import Control
plane = Control("b", token="t", on_message=lambda d, p: plane.send(d, p[::-1]), on_lost=lambda loss: None,
                on_request=lambda payload: b"")
print(plane.port, flush=True)
plane.connect({"a": ("127.0.0.1", int(sys.argv[1]))}, timeout_s=10)
time.sleep(60)
"""


class Node:
    """A control plane that writes down what it is told."""

    def __init__(self, device: str, token: str = "t") -> None:
        self.messages: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self.losses: SimpleQueue[Loss] = SimpleQueue()
        self.plane = Control(
            device, token=token, on_message=lambda sender, payload: self.messages.put((sender, payload)),
            on_lost=self.losses.put, on_request=lambda payload: b"answer to " + payload,
        )  # fmt: skip
        self.address = ("127.0.0.1", self.plane.port)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    found: list[Node] = []
    yield found
    for node in found:
        node.plane.close()


def joined(nodes: list[Node], *devices: str) -> list[Node]:
    nodes += [Node(device) for device in devices]
    addresses = {node.plane.device: node.address for node in nodes}
    threads = [
        threading.Thread(target=node.plane.connect, args=(addresses,), kwargs={"timeout_s": 5}) for node in nodes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return nodes


def test_messages_go_both_ways(nodes: list[Node]) -> None:
    a, b, c = joined(nodes, "a", "b", "c")
    a.plane.send("b", b"x" * 100_000)
    c.plane.send("a", b"hello")
    assert b.messages.get(timeout=5) == ("a", b"x" * 100_000)
    assert a.messages.get(timeout=5) == ("c", b"hello")


def test_an_orderly_leave_is_told_from_a_death(nodes: list[Node]) -> None:
    a, b, c = joined(nodes, "a", "b", "c")
    b.plane.close()
    assert a.losses.get(timeout=2).fate == "left"
    c.plane.connect({}, timeout_s=1)
    assert a.losses.get(timeout=2)[:2] == ("c", "left")


def test_questions_of_anybody_are_answered(nodes: list[Node]) -> None:
    (a,) = joined(nodes, "a")
    assert ask(a.address, b"this", timeout_s=2) == b"answer to this"
    a.plane.close()
    assert ask(a.address, b"this", timeout_s=2) is None


def test_a_stranger_is_turned_away(nodes: list[Node]) -> None:
    nodes += [Node("a"), Node("b", token="other")]
    a, b = nodes
    assert b.plane.connect({"a": a.address}, timeout_s=0.2) in ((), ("a",))
    assert a.plane.connect({"b": b.address}, timeout_s=0.3) == ("b",)
    with socket.create_connection(a.address, timeout=2) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
        noise.settimeout(2)
        assert noise.recv(10) == b""
    assert ask(a.address, b"still", timeout_s=2) == b"answer to still"


@pytest.mark.parametrize(
    ("number", "fate", "within_s"), [(signal.SIGKILL, "dead", 1.0), (signal.SIGSTOP, "frozen", 3.0)]
)
def test_a_lost_process_is_told_with_its_fate(
    number: signal.Signals, fate: str, within_s: float, nodes: list[Node]
) -> None:
    a = Node("a")
    nodes.append(a)
    with subprocess.Popen([sys.executable, "-c", PEER, str(a.address[1])], stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            port = int(peer.stdout.readline())
            assert a.plane.connect({"b": ("127.0.0.1", port)}, timeout_s=10) == ()
            a.plane.send("b", b"abc")
            assert a.messages.get(timeout=5) == ("b", b"cba")
            since_s = time.monotonic()
            peer.send_signal(number)
            loss = a.losses.get(timeout=5)
            assert (loss.device, loss.fate) == ("b", fate)
            assert time.monotonic() - since_s < within_s
        finally:
            peer.kill()


def mute(plane: Control) -> None:
    del plane


def test_a_peer_that_answers_the_second_look_is_no_loss(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SILENT_S", 0.3)
    monkeypatch.setattr(Control, "_beat", mute)
    a, b = joined(nodes, "a", "b")
    with pytest.raises(Empty):
        a.losses.get(timeout=1.2)
    a.plane.send("b", b"still there")
    assert b.messages.get(timeout=5) == ("a", b"still there")


def test_connections_of_the_control_plane_are_marked_at_both_ends(nodes: list[Node]) -> None:
    """So that ending what gloo has open never ends them."""
    for node in joined(nodes, "a", "b"):
        for connection in node.plane.sockets():
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == control.PRIORITY
