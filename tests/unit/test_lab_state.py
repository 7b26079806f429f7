"""The lab's state file, its checks, and what is refused before anything is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain_datasets.catalogue import catalogue_device
from greentrain_harness.lab import exec_argv, lifecycle, network, state
from greentrain_harness.lab.cgroups import NodeCgroup
from greentrain_harness.lab.state import Lab, LabNode

DEVICE = catalogue_device("jetson-nano-4gb", "node0")


def make_lab(name: str = "x", *, sensors_pid: int = 42) -> Lab:
    node = LabNode(
        name="node0",
        address="10.77.0.10",
        kind="jetson-nano-4gb",
        point="MAXN",
        quota_percent=25,
        namespace="gtlab-x-node0",
        cgroup=NodeCgroup(version=2, cpu="/cg/gtlab-x-node0", cpuacct="/cg/gtlab-x-node0"),
        sysroot="/run/greentrain-lab/x/node0/sysroot",
    )
    return Lab(
        name=name,
        subnet="10.77.0.0/24",
        bandwidth_bytes_per_s=12.5e6,
        latency_s=0.0,
        switch_namespace="gtlab-x-switch",
        sensors_pid=sensors_pid,
        nodes=(node,),
    )


def test_state_round_trips_and_is_listed(tmp_path: Path) -> None:
    state.write_lab(make_lab(), run_root=tmp_path)
    assert state.read_lab("x", run_root=tmp_path) == make_lab()
    assert state.labs(run_root=tmp_path) == ("x",)


def test_unknown_half_finished_and_misnamed_labs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no lab 'x' stands; labs: none"):
        state.read_lab("x", run_root=tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="lab 'x' is not complete"):
        state.read_lab("x", run_root=tmp_path)
    for name in ("", "../x", "X", "a b", "-x", "x" * 25):
        with pytest.raises(UsageError, match="expected up to 24"):
            state.read_lab(name, run_root=tmp_path)


def test_unknown_node() -> None:
    with pytest.raises(UsageError, match="lab 'x' has no node 'node9'"):
        make_lab().node("node9")


def test_the_driver_is_known_by_its_command_line(tmp_path: Path) -> None:
    lab, run_root = make_lab(), tmp_path / "run"
    process = tmp_path / "proc" / "42"
    process.mkdir(parents=True)
    for words, runs in (
        (["python", "-m", state.DRIVER_MODULE, str(run_root / "x")], True),
        (["python", "-m", state.DRIVER_MODULE, str(run_root / "y")], False),
        (["sleep", "9"], False),
        ([], False),
    ):
        (process / "cmdline").write_bytes(b"\0".join(word.encode() for word in words))
        assert state.driver_runs(lab, run_root=run_root, proc=tmp_path / "proc") is runs
        assert state.driver_pids(run_root / "x", proc=tmp_path / "proc") == ((42,) if runs else ())
    assert not state.driver_runs(make_lab(sensors_pid=43), run_root=run_root, proc=tmp_path / "proc")


def test_exec_argv_gives_a_plain_argv_and_the_nodes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(lab: Lab) -> bool:
        return lab.name == "x"

    monkeypatch.setattr("greentrain_harness.lab.enter.driver_runs", runs)
    argv, variables = exec_argv(make_lab(), "node0", ["echo", "a b"])
    assert argv == [sys.executable, "-m", "greentrain_harness.lab.enter", "x", "node0", "--", "echo", "a b"]
    assert variables["GREENTRAIN_SYSROOT"] == "/run/greentrain-lab/x/node0/sysroot"
    assert variables["GREENTRAIN_DEVICE_ID"] == "node0"
    assert variables["GREENTRAIN_LAB"] == "x/node0"
    assert variables["GLOO_SOCKET_IFNAME"] == variables["TP_SOCKET_IFNAME"] == "eth0"
    with pytest.raises(UsageError, match="no command"):
        exec_argv(make_lab(), "node0", [])


def test_no_worker_starts_on_sensors_that_stand_still() -> None:
    # No such lab runs on this machine, so its driver is gone.
    with pytest.raises(RunError, match=r"sensor driver of lab 'x' \(process 42\) is gone"):
        exec_argv(make_lab(), "node0", ["true"])


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="needs root, this is user id 1000") as caught:
        lifecycle.up("x", devices=[DEVICE], quotas_percent=[25], bandwidth_bytes_per_s=1e6)
    assert caught.value.exit_code == 4


def test_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="needs ip and tc, not found on PATH") as caught:
        network.require_tools()
    assert "iproute2" in (caught.value.hint or "")


def test_kinds_and_quotas_must_match() -> None:
    with pytest.raises(UsageError, match="1 kinds but 2 quotas"):
        lifecycle.up("x", devices=[DEVICE], quotas_percent=[25, 25], bandwidth_bytes_per_s=1e6)


def test_entering_a_node_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, greentrain_harness.lab.enter;"
        "print([name for name in ('torch', 'pandas', 'numpy', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.strip() == "[]"
