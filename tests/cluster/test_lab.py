"""A real lab of two nodes: quota, bandwidth, sensors, exit status, and that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from greentrain.errors import NotSupportedError, RunError, UsageError
from greentrain_datasets.catalogue import catalogue_device
from greentrain_harness.lab import Lab, down, exec_argv, labs, names_in_use, read_lab, up
from greentrain_harness.lab.cgroups import find_mounts, leftovers, processes
from greentrain_harness.lab.network import leftover_namespaces
from greentrain_harness.lab.sensors import shown_w
from greentrain_harness.lab.state import driver_pids, driver_runs, namespace_pattern, run_dir

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a lab needs root on Linux"),
    pytest.mark.skipif(shutil.which("ip") is None or shutil.which("tc") is None, reason="a lab needs ip and tc"),
]

KINDS = ("jetson-orin-nano-8gb", "jetson-nano-4gb")
QUOTAS_PERCENT = (50.0, 20.0)
BANDWIDTH_BYTES_PER_S = 5e6
NAME = f"test-{os.getpid()}"

SPIN = """
import time
start_s, used_s = time.monotonic(), time.process_time()
while time.monotonic() - start_s < {duration_s}:
    pass
print((time.process_time() - used_s) / (time.monotonic() - start_s))
"""

RECEIVE = """
import socket, time
with socket.create_server(("0.0.0.0", 4000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    received, first_s = 0, None
    while chunk := connection.recv(65536):
        first_s = first_s or time.monotonic()
        received += len(chunk)
    print(received / (time.monotonic() - first_s))
"""

SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 4000)) as connection:
    connection.sendall(bytes(4_000_000))
"""


ANSWER = """
import socket
with socket.create_server(("0.0.0.0", 4000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    connection.sendall(connection.recv(1))
"""

ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 4000)) as connection:
    start_s = time.monotonic()
    connection.sendall(b"?")
    connection.recv(1)
    print(time.monotonic() - start_s)
"""


def make(name: str, *, latency_s: float = 0.0) -> Lab:
    return up(
        name,
        devices=[catalogue_device(kind, f"node{index}") for index, kind in enumerate(KINDS)],
        quotas_percent=QUOTAS_PERCENT,
        bandwidth_bytes_per_s=BANDWIDTH_BYTES_PER_S,
        latency_s=latency_s,
    )


def left_behind(name: str) -> list[str]:
    """Everything on this machine that belongs to a lab."""
    pattern = namespace_pattern(name)
    folder = run_dir(name)
    found = [*leftover_namespaces(pattern), *map(str, leftovers(find_mounts(), pattern))]
    return [*found, *map(str, driver_pids(folder)), *([str(folder)] if folder.exists() else [])]


def start(lab: Lab, node: str, *argv: str) -> subprocess.Popen[str]:
    entering, variables = exec_argv(lab, node, argv)
    return subprocess.Popen(entering, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)


def output(lab: Lab, node: str, *argv: str) -> str:
    with start(lab, node, *argv) as process:
        text, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return text


def script(source: str, *arguments: str) -> Sequence[str]:
    return (sys.executable, "-c", textwrap.dedent(source), *arguments)


def eventually(holds: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if holds():
            return True
        time.sleep(0.02)
    return False


def has_netem() -> bool:
    """Whether the kernel can delay packets, tried on a namespace of our own."""
    namespace = f"gtlab-{NAME}-probe-switch"
    subprocess.run(["ip", "netns", "add", namespace], check=True, timeout=20)
    try:
        argv = ["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True, timeout=20)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = make(NAME)
    try:
        yield made
    finally:
        down(NAME)
    assert left_behind(NAME) == []


@pytest.fixture
def own_name() -> Iterator[str]:
    """The name of a lab that the test makes by itself; whatever is left of it is taken down."""
    name = f"{NAME}-own"
    try:
        yield name
    finally:
        down(name)
    assert left_behind(name) == []


def test_the_lab_is_found_by_its_name(lab: Lab) -> None:
    assert read_lab(NAME) == lab
    assert NAME in labs()
    assert [node.kind for node in lab.nodes] == list(KINDS)
    assert driver_runs(lab)


def test_nodes_see_only_their_own_network(lab: Lab) -> None:
    shown = output(lab, "node0", "ip", "-4", "-brief", "address", "show", "scope", "global")
    assert shown.split()[-1] == f"{lab.nodes[0].address}/24"
    assert len(shown.splitlines()) == 1


def test_the_link_keeps_its_rate(lab: Lab) -> None:
    with start(lab, "node1", *script(RECEIVE)) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        output(lab, "node0", *script(SEND, lab.nodes[1].address))
        bytes_per_s = float(receiver.stdout.readline())
    assert bytes_per_s == pytest.approx(BANDWIDTH_BYTES_PER_S, rel=0.15)


def test_the_quota_holds_and_the_sensor_follows(lab: Lab) -> None:
    node = lab.nodes[1]
    sysroot = Path(node.sysroot)
    idle_w = catalogue_device(node.kind, node.name).power.idle_w
    assert eventually(lambda: shown_w(sysroot) == pytest.approx(idle_w, abs=0.01))

    def is_hot() -> bool:
        power_w = shown_w(sysroot)
        return power_w is not None and power_w > 2 * idle_w

    with start(lab, node.name, *script(SPIN.format(duration_s=1.0))) as spinning:
        assert eventually(is_hot)
        text, _ = spinning.communicate(timeout=30)
    # A busy machine can only give less than the quota.
    assert 0.5 * node.quota_percent <= 100 * float(text) <= 1.15 * node.quota_percent
    assert eventually(lambda: shown_w(sysroot) == pytest.approx(idle_w, abs=0.01))


def test_the_command_gets_its_environment_and_gives_its_exit_status(lab: Lab) -> None:
    assert output(lab, "node1", "printenv", "GREENTRAIN_LAB", "GREENTRAIN_SYSROOT").splitlines() == [
        f"{NAME}/node1",
        lab.nodes[1].sysroot,
    ]
    for argv, status in ((("sh", "-c", "exit 7"), 7), (("/no/such/command",), 127), (("/etc/passwd",), 126)):
        with start(lab, "node0", *argv) as process:
            assert process.wait(timeout=30) == status


def test_signals_reach_the_command(lab: Lab) -> None:
    with start(lab, "node0", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.pid in processes(lab.nodes[0].cgroup.folders)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 9


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "greentrain.cli", "lab", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)


def test_exec_on_all_nodes_prefixes_lines_and_gives_the_worst_status(lab: Lab) -> None:
    shell = "echo out; echo err >&2; test $GREENTRAIN_DEVICE_ID = node0 || exit 5"
    result = cli("exec", "--name", lab.name, "--all", "--", "sh", "-c", shell)
    assert result.returncode == 5
    assert sorted(result.stdout.splitlines()) == ["node0: out", "node1: out"]
    assert sorted(result.stderr.splitlines()) == ["node0: err", "node1: err"]


def test_exec_in_turn_ends_with_the_first_node_that_fails(lab: Lab) -> None:
    shell = "echo out; test $GREENTRAIN_DEVICE_ID = node0 || exit 5"
    arguments = ("exec", "--name", lab.name, "--all", "--in-turn", "--", "sh", "-c")
    result = cli(*arguments, shell)
    assert (result.stdout, result.returncode) == ("node0: out\nnode1: out\n", 5)
    result = cli(*arguments, "echo out; exit 3")
    assert (result.stdout, result.returncode) == ("node0: out\n", 3)
    result = cli("exec", "--name", lab.name, "--in-turn", "node0", "--", "true")
    assert result.returncode == 2
    assert "--in-turn goes with --all" in result.stderr


def test_ending_exec_on_all_nodes_ends_the_commands(lab: Lab) -> None:
    argv = [sys.executable, "-m", "greentrain.cli", "lab", "exec", "--name", lab.name, "--all", "--"]
    shell = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*argv, "sh", "-c", shell], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in lab.nodes) == ["node0: ready\n", "node1: ready\n"]
        process.terminate()
        assert process.wait(timeout=30) == 9
    assert processes(folder for node in lab.nodes for folder in node.cgroup.folders) == ()


def test_exec_of_the_command_line_is_transparent(lab: Lab) -> None:
    result = cli("exec", "--name", lab.name, "node1", "--", "sh", "-c", "echo $GREENTRAIN_DEVICE_ID; exit 3")
    assert (result.stdout, result.stderr, result.returncode) == ("node1\n", "", 3)


def test_a_second_up_is_refused_and_leaves_the_first_alone(lab: Lab) -> None:
    with pytest.raises(UsageError, match=f"lab '{NAME}' stands already"):
        make(NAME)
    assert driver_runs(lab)
    assert output(lab, "node0", "true") == ""


def test_two_ups_at_once_give_one_lab(own_name: str) -> None:
    argv = [sys.executable, "-m", "greentrain.cli", "lab", "up", "--name", own_name, "--quotas", "20"]
    both = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=50)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert driver_runs(read_lab(own_name))


def test_down_ends_everything_and_can_be_repeated(own_name: str) -> None:
    made = make(own_name)
    with start(made, "node0", "setsid", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "ready\n"
        assert down(own_name) is True
    assert stubborn.returncode != 0
    assert left_behind(own_name) == []
    assert down(own_name) is False


def test_a_killed_driver_is_noticed_and_cleared_up(own_name: str) -> None:
    made = make(own_name)
    os.kill(made.sensors_pid, signal.SIGKILL)
    assert eventually(lambda: not driver_runs(made))
    with pytest.raises(RunError, match=r"sensor driver of lab .* is gone"):
        exec_argv(made, "node0", ["true"])
    status = cli("status", "--name", own_name)
    assert status.returncode == 0
    assert "the sensor driver is gone" in status.stderr
    assert "unknown" in status.stdout
    assert down(own_name) is True
    assert left_behind(own_name) == []


def test_what_a_crash_left_is_found_without_the_state_file(own_name: str) -> None:
    make(own_name)
    (run_dir(own_name) / "state.json").unlink()
    assert own_name in names_in_use()
    with pytest.raises(UsageError, match="was left half-finished"):
        make(own_name)
    shutil.rmtree(run_dir(own_name))
    assert own_name in names_in_use()
    assert down(own_name) is True
    assert left_behind(own_name) == []


def test_an_up_that_fails_midway_cleans_up(own_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> int:
        raise RunError(f"{folder}: no driver today.")

    monkeypatch.setattr("greentrain_harness.lab.driver.start", fail)
    with pytest.raises(RunError, match="no driver today"):
        make(own_name)
    assert left_behind(own_name) == []


def test_a_delay_that_the_kernel_cannot_give_is_refused(own_name: str) -> None:
    if has_netem():
        pytest.skip("this kernel can delay packets")
    with pytest.raises(NotSupportedError, match="--latency needs the netem"):
        make(own_name, latency_s=5e-3)
    assert left_behind(own_name) == []


def test_a_delay_holds_in_each_direction(own_name: str) -> None:
    if not has_netem():
        pytest.skip("this kernel cannot delay packets (no netem)")
    made = make(own_name, latency_s=5e-3)
    assert made.latency_s == 5e-3
    with start(made, "node1", *script(ANSWER)) as answering:
        assert answering.stdout is not None
        assert answering.stdout.readline() == "ready\n"
        assert float(output(made, "node0", *script(ASK, made.nodes[1].address))) >= 0.01
