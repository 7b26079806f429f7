"""Control groups of lab nodes on fake folders: versions, quotas, accounting, clearing up."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain_harness.lab import cgroups
from greentrain_harness.lab.cgroups import CgroupMounts, CpuCounter
from greentrain_harness.lab.state import namespace_pattern


def mount_table(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"none {line} 0 0\n" for line in ("/proc proc rw", *lines)))
    return path


def version_2_mount(folder: Path, *, handed_down: str = "") -> CgroupMounts:
    folder.mkdir()
    (folder / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (folder / "cgroup.subtree_control").write_text(handed_down)
    return CgroupMounts(version=2, cpu=folder, cpuacct=folder)


def test_version_1_with_controllers_mounted_apart(tmp_path: Path) -> None:
    table = mount_table(tmp_path / "mounts", "/cg/cpu cgroup rw,cpu", "/cg/cpuacct cgroup rw,cpuacct")
    found = cgroups.find_mounts(table)
    assert found == CgroupMounts(version=1, cpu=Path("/cg/cpu"), cpuacct=Path("/cg/cpuacct"))
    assert found.node("x").folders == (Path("/cg/cpu/x"), Path("/cg/cpuacct/x"))


def test_version_1_with_controllers_mounted_together(tmp_path: Path) -> None:
    table = mount_table(tmp_path / "mounts", "/cg/cpu\\040acct cgroup rw,cpu,cpuacct", "/cg/cpuset cgroup rw,cpuset")
    found = cgroups.find_mounts(table)
    assert found.version == 1
    assert found.node("x").folders == (Path("/cg/cpu acct/x"),)


def test_version_2(tmp_path: Path) -> None:
    version_2_mount(tmp_path / "cg")
    found = cgroups.find_mounts(mount_table(tmp_path / "mounts", f"{tmp_path}/cg cgroup2 rw"))
    assert found == CgroupMounts(version=2, cpu=tmp_path / "cg", cpuacct=tmp_path / "cg")


def test_hybrid_machine_uses_the_version_that_owns_the_controller(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("hugetlb\n")
    lines = (f"{tmp_path}/unified cgroup2 rw", "/cg/cpu cgroup rw,cpu", "/cg/cpuacct cgroup rw,cpuacct")
    assert cgroups.find_mounts(mount_table(tmp_path / "mounts", *lines)).version == 1
    with pytest.raises(UnavailableError, match="no mounted cpu control group"):
        cgroups.find_mounts(mount_table(tmp_path / "mounts", lines[0]))


def test_quota_of_version_1(tmp_path: Path) -> None:
    for name in ("cpu", "cpuacct"):
        (tmp_path / name).mkdir()
    mounts = CgroupMounts(version=1, cpu=tmp_path / "cpu", cpuacct=tmp_path / "cpuacct")
    node = cgroups.create(mounts, "gtlab-x-node0", 60)
    assert (tmp_path / "cpu/gtlab-x-node0/cpu.cfs_period_us").read_text() == "20000"
    assert (tmp_path / "cpu/gtlab-x-node0/cpu.cfs_quota_us").read_text() == "12000"
    (tmp_path / "cpuacct/gtlab-x-node0/cpuacct.usage").write_text("1234500000\n")
    counter = CpuCounter(node)
    assert counter.read_s() == 1.2345
    counter.close()


@pytest.mark.parametrize("handed_down", ["", "memory", "cpu memory"])
def test_quota_of_version_2(tmp_path: Path, handed_down: str) -> None:
    mounts = version_2_mount(tmp_path / "cg", handed_down=handed_down)
    node = cgroups.create(mounts, "gtlab-x-node0", 12.5)
    assert (tmp_path / "cg/gtlab-x-node0/cpu.max").read_text() == "2500 20000"
    expected = handed_down if "cpu" in handed_down.split() else "+cpu"
    assert (tmp_path / "cg/cgroup.subtree_control").read_text() == expected
    (tmp_path / "cg/gtlab-x-node0/cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\n")
    counter = CpuCounter(node)
    assert counter.read_s() == 2.5
    counter.close()


def test_a_folder_left_over_is_an_error_and_not_reused(tmp_path: Path) -> None:
    mounts = version_2_mount(tmp_path / "cg")
    (tmp_path / "cg/gtlab-x-node0").mkdir()
    with pytest.raises(RunError, match="gtlab-x-node0: cannot be written"):
        cgroups.create(mounts, "gtlab-x-node0", 50)


@pytest.mark.parametrize("quota_percent", [0.0, 4.9, 200.1, float("nan")])
def test_quotas_that_cannot_be_enforced(quota_percent: float) -> None:
    with pytest.raises(UsageError, match="expected 5 to 200 % of one core"):
        cgroups.check_quota(quota_percent, cores=2)


def test_quotas_at_the_limits() -> None:
    cgroups.check_quota(5, cores=2)
    cgroups.check_quota(200, cores=2)


def test_processes_and_removal_reach_groups_below(tmp_path: Path) -> None:
    inner = tmp_path / "node" / "made-by-a-container"
    inner.mkdir(parents=True)
    (tmp_path / "node" / "cgroup.procs").write_text("7\n3\n")
    (inner / "cgroup.procs").write_text("9\n")
    assert cgroups.processes([tmp_path / "node", tmp_path / "gone"]) == (3, 7, 9)
    for procs in (tmp_path / "node" / "cgroup.procs", inner / "cgroup.procs"):
        procs.unlink()
    cgroups.remove([tmp_path / "node", tmp_path / "gone"])
    assert not (tmp_path / "node").exists()


class FakeProcesses:
    """Processes that end on TERM, on KILL, or never; time passes only while waiting."""

    def __init__(self, **end_on: int | None) -> None:
        self.alive = {int(pid.removeprefix("p")): number for pid, number in end_on.items()}
        self.sent: list[tuple[int, int]] = []
        self.t_s = 0.0

    def find(self) -> tuple[int, ...]:
        return tuple(sorted(self.alive))

    def send(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))
        if self.alive.get(pid) == number:
            del self.alive[pid]

    def sleep(self, duration_s: float) -> None:
        self.t_s += duration_s

    def kill(self) -> int:
        return cgroups.kill_processes(self.find, send=self.send, now_s=lambda: self.t_s, sleep=self.sleep)


def test_a_tidy_process_is_told_once() -> None:
    fake = FakeProcesses(p5=signal.SIGTERM)
    assert fake.kill() == 1
    assert fake.sent == [(5, signal.SIGTERM)]


def test_a_stubborn_process_is_killed_after_a_grace() -> None:
    fake = FakeProcesses(p5=signal.SIGTERM, p6=signal.SIGKILL)
    assert fake.kill() == 2
    assert fake.sent == [(5, signal.SIGTERM), (6, signal.SIGTERM), (6, signal.SIGKILL)]
    assert fake.t_s >= 2.0


def test_a_process_that_never_ends_is_reported() -> None:
    with pytest.raises(RunError, match=r"processes \[8\] do not end"):
        FakeProcesses(p8=None).kill()


@pytest.mark.parametrize(
    ("resource", "belongs"),
    [
        ("gtlab-a-node0", True),
        ("gtlab-a-node12", True),
        ("gtlab-a-switch", True),
        ("gtlab-a-b-node0", False),
        ("gtlab-a-node0-switch", False),
        ("gtlab-aa-node0", False),
        ("gtlab-a-node", False),
        ("gt0", False),
        ("my-gtlab-a-node0", False),
    ],
)
def test_a_lab_owns_only_its_own_resources(tmp_path: Path, resource: str, belongs: bool) -> None:
    (tmp_path / resource).mkdir()
    mounts = CgroupMounts(version=2, cpu=tmp_path, cpuacct=tmp_path)
    assert cgroups.leftovers(mounts, namespace_pattern("a")) == ((tmp_path / resource,) if belongs else ())
