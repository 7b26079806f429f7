"""Addresses, interfaces and ports of the runtime, on the loopback interface."""

from __future__ import annotations

import socket
import sys

import pytest

from greentrain.errors import RunError, UsageError
from greentrain.runtime.group import plain
from greentrain.runtime.network import address_towards, check_own_port, free_port, interface_of, wait_for_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for in Linux's way")


def test_the_way_to_this_machine() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_no_way_to_an_unknown_name() -> None:
    with pytest.raises(RunError, match=r"no route to the coordinator 'no\.such\.host\.invalid'"):
        address_towards("no.such.host.invalid")


def test_a_free_port_is_free_and_not_for_outgoing_connections() -> None:
    port = free_port()
    assert 20_000 <= port < 30_000
    assert check_own_port("127.0.0.1", port, device="a") == "127.0.0.1"
    assert check_own_port("localhost", port, device="a") == "127.0.0.1"


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            check_own_port("127.0.0.1", port, device="a")
    assert caught.value.message == f"a cannot listen at 127.0.0.1:{port}: port {port} is taken."


def test_the_address_of_another_machine() -> None:
    with pytest.raises(UsageError) as caught:
        check_own_port("192.0.2.1", 29500, device="a")
    assert "'192.0.2.1' is not an address of this machine" in caught.value.message
    assert "the plan's first device" in str(caught.value.hint)


def test_waiting_for_a_port_that_opens_late() -> None:
    slept: list[float] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))

        def sleep(duration_s: float) -> None:
            slept.append(duration_s)
            server.listen()

        wait_for_port(
            "127.0.0.1", server.getsockname()[1], device="a", timeout_s=9, clock=lambda: sum(slept), sleep=sleep
        )  # fmt: skip
    assert len(slept) == 1


def test_waiting_for_nobody_ends_in_time() -> None:
    slept: list[float] = []
    port = free_port()
    with pytest.raises(RunError) as caught:
        wait_for_port("127.0.0.1", port, device="a", timeout_s=9, clock=lambda: sum(slept), sleep=slept.append)
    assert caught.value.message == f"nobody answers at 127.0.0.1:{port} (Connection refused)."
    assert "Start the worker of a first" in str(caught.value.hint)
    assert 9 <= sum(slept) < 10


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:82] Timed out waiting 25000ms for recv "
            "operation to complete",
            "Timed out waiting 25000ms for recv operation to complete",
        ),
        (
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:13021. This is typically "
            "caused by a remote worker crashing.",
            "Connection closed by peer [127.0.0.1]:13021",
        ),
        (
            "failed to recv, got 0 bytes\nException raised from recvBytes at /pytorch/c10d/Utils.hpp:679 (most recent "
            "call first):\nframe #0: c10::Error::Error",
            "failed to recv, got 0 bytes",
        ),
        ("", "RuntimeError"),
        ("x" * 500, "x" * 160),
    ],
)
def test_errors_from_cpp_become_one_sentence(text: str, sentence: str) -> None:
    assert plain(RuntimeError(text)) == sentence
