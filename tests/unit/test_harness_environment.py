from __future__ import annotations

import os
from pathlib import Path

import pytest

from greentrain.version import VERSION
from greentrain_harness import environment


def group_tree(root: Path, *, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    (root / "proc/meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\n")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def test_quota_of_version_2_is_the_tightest_of_all_levels(tmp_path: Path) -> None:
    group_tree(
        tmp_path, cgroup="0::/user/job\n", mountinfo=V2,
        files={
            "sys/fs/cgroup/user/cpu.max": "40000 100000\n",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
        },
    )  # fmt: skip
    assert environment.cpu_quota_cores(tmp_path) == 0.4
    assert environment.usable_cores(tmp_path) == 0.4


def test_quota_and_memory_of_version_1(tmp_path: Path) -> None:
    group_tree(
        tmp_path, cgroup="3:memory:/lab\n2:cpu,cpuacct:/lab/n1\n0::/\n", mountinfo=V1,
        files={
            "sys/fs/cgroup/cpu,cpuacct/lab/n1/cpu.cfs_quota_us": "25000\n",
            "sys/fs/cgroup/cpu,cpuacct/lab/n1/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/lab/memory.limit_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/lab/memory.usage_in_bytes": "400000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )  # fmt: skip
    assert environment.cpu_quota_cores(tmp_path) == 0.25
    assert environment.available_memory_bytes(tmp_path) == 600_000


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    group_tree(tmp_path, cgroup="0::/\n", mountinfo=V2, files={"sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert environment.cpu_quota_cores(tmp_path) is None
    assert environment.usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert environment.available_memory_bytes(tmp_path) == 8_000_000 * 1024


def test_an_odd_quota_file_is_no_quota(tmp_path: Path) -> None:
    group_tree(tmp_path, cgroup="0::/\n", mountinfo=V2, files={"sys/fs/cgroup/cpu.max": "nonsense 0\n"})
    assert environment.cpu_quota_cores(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "expected"), [("orin", "orin"), ("my board@home!", "my-board-home"), ("@@", "this-device")]
)
def test_device_id_is_free_of_odd_characters(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENTRAIN_DEVICE_ID", name)
    assert environment.device_id() == expected


def test_versions_and_host() -> None:
    versions = environment.package_versions()
    assert versions["greentrain"] == VERSION
    assert "numpy" in versions
    assert "cores" in environment.host_description()
