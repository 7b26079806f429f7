"""Control groups of lab nodes: a CPU quota, the CPU time used, and the processes inside; versions 1 and 2.

Version 1 keeps quota (``cpu``) and accounting (``cpuacct``) in controllers that may be mounted apart;
version 2 has both in one folder. A node has one folder per mount, at its top, named ``gtlab-<lab>-<node>``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from greentrain._checks import require
from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain.files import writing

__all__ = [
    "CgroupMounts",
    "CpuCounter",
    "NodeCgroup",
    "check_quota",
    "create",
    "find_mounts",
    "join",
    "kill_processes",
    "leftovers",
    "processes",
    "remove",
]

# A short period makes a small quota feel like a slow core rather than like a core with long pauses. The
# kernel wants at least 1 ms of quota per period, hence the smallest quota.
_PERIOD_US = 20_000
_MIN_QUOTA_US = 1_000

_TERM_GRACE_S = 2.0
_KILL_GRACE_S = 5.0


class NodeCgroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders of one node's control group.

    Attributes:
        version: 1 or 2.
        cpu: Folder that holds the quota.
        cpuacct: Folder that counts CPU time; the same folder unless version 1 mounts them apart.
    """

    version: Literal[1, 2]
    cpu: str
    cpuacct: str

    @property
    def folders(self) -> tuple[Path, ...]:
        """Each folder once."""
        return tuple(dict.fromkeys((Path(self.cpu), Path(self.cpuacct))))


class CgroupMounts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the controllers are mounted on this machine.

    Attributes:
        version: 1 or 2.
        cpu: Mount of the quota controller.
        cpuacct: Mount of the accounting controller.
    """

    version: Literal[1, 2]
    cpu: Path
    cpuacct: Path

    def __post_init__(self) -> None:
        require(self.version == 1 or self.cpu == self.cpuacct, "version 2 has one folder")

    def node(self, resource: str) -> NodeCgroup:
        """The folders a node of this resource name has."""
        return NodeCgroup(version=self.version, cpu=str(self.cpu / resource), cpuacct=str(self.cpuacct / resource))


def find_mounts(mounts: Path = Path("/proc/self/mounts")) -> CgroupMounts:
    """Find the CPU controllers in the mount table. Version 1 is taken where it owns the controller.

    Args:
        mounts: The kernel's mount table.

    Raises:
        UnavailableError: No CPU controller is mounted.
    """
    version_1: dict[str, Path] = {}
    version_2: list[Path] = []
    for line in mounts.read_text().splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        # The table writes spaces in paths as \040.
        path = Path(folder.replace("\\040", " "))
        if kind == "cgroup":
            for controller in {"cpu", "cpuacct"}.intersection(options.split(",")):
                version_1.setdefault(controller, path)
        elif kind == "cgroup2":
            version_2.append(path)
    if {"cpu", "cpuacct"} <= version_1.keys():
        return CgroupMounts(version=1, cpu=version_1["cpu"], cpuacct=version_1["cpuacct"])
    for path in version_2:
        with contextlib.suppress(OSError):
            if "cpu" in (path / "cgroup.controllers").read_text().split():
                return CgroupMounts(version=2, cpu=path, cpuacct=path)
    raise UnavailableError(
        f"{mounts} shows no mounted cpu control group, version 1 or 2.",
        hint="Mount one, for example: mount -t cgroup2 none /sys/fs/cgroup (not possible in most containers).",
    )


def check_quota(quota_percent: float, *, cores: int) -> None:
    """Refuse a quota that this machine cannot enforce.

    Args:
        quota_percent: Quota in percent of one core.
        cores: Processors of this machine.

    Raises:
        UsageError: It is too small for the kernel, or more than the machine has.
    """
    least = 100 * _MIN_QUOTA_US / _PERIOD_US
    if not least <= quota_percent <= 100 * cores:
        raise UsageError(
            f"quota is {quota_percent:g} %, expected {least:g} to {100 * cores} % of one core.",
            hint="Give quotas such as --quotas 60,40,25,15.",
        )


def create(mounts: CgroupMounts, resource: str, quota_percent: float) -> NodeCgroup:
    """Make a node's control group with its quota.

    Args:
        mounts: Where the controllers are.
        resource: Name of the folder.
        quota_percent: Quota in percent of one core.

    Raises:
        UnavailableError: No permission, or version 2 does not hand its cpu controller down.
        RunError: The kernel refused for another reason, such as a folder left over from a crash.
    """
    node = mounts.node(resource)
    quota_us = round(quota_percent / 100 * _PERIOD_US)
    if mounts.version == 2:
        _hand_down_cpu(mounts.cpu)
    for folder in node.folders:
        with writing(folder):
            folder.mkdir()
    cpu = Path(node.cpu)
    with writing(cpu):
        if mounts.version == 1:
            (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (cpu / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
    return node


def _hand_down_cpu(mount: Path) -> None:
    control = mount / "cgroup.subtree_control"
    if "cpu" in control.read_text().split():
        return
    try:
        control.write_text("+cpu")
    except OSError as error:
        raise UnavailableError(
            f"{control}: the cpu controller cannot be enabled ({os.strerror(error.errno or 0)}).",
            hint="Run the lab on the host rather than in a container, or let the host hand down the cpu controller.",
        ) from error


class CpuCounter:
    """The CPU time that a node's processes used since its control group was made.

    The file stays open: it is read fifty times a second.

    Args:
        node: The control group.

    Raises:
        OSError: The control group is gone.
    """

    def __init__(self, node: NodeCgroup) -> None:
        self._version = node.version
        name = "cpuacct.usage" if node.version == 1 else "cpu.stat"
        self._fd = os.open(Path(node.cpuacct) / name, os.O_RDONLY | os.O_CLOEXEC)

    def read_s(self) -> float:
        """CPU time so far, seconds.

        Raises:
            OSError: The control group is gone.
        """
        content = os.pread(self._fd, 4096, 0)
        if self._version == 1:
            return int(content) / 1e9
        fields = dict(line.split() for line in content.splitlines())
        return int(fields[b"usage_usec"]) / 1e6

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def join(node: NodeCgroup, pid: int) -> None:
    """Move a process (and what it will start) into the node's control group.

    Raises:
        UnavailableError: No permission.
        RunError: The control group is gone.
    """
    for folder in node.folders:
        procs = folder / "cgroup.procs"
        with writing(procs), procs.open("r+") as stream:
            stream.write(str(pid))


def processes(folders: Iterable[Path]) -> tuple[int, ...]:
    """Process ids inside these control groups and the groups below them, sorted."""
    found: set[int] = set()
    for folder in folders:
        for procs in (folder / "cgroup.procs", *folder.rglob("*/cgroup.procs")):
            # A group may vanish while we look.
            with contextlib.suppress(OSError):
                found.update(int(line) for line in procs.read_text().split())
    return tuple(sorted(found))


def kill_processes(
    find: Callable[[], tuple[int, ...]],
    *,
    send: Callable[[int, int], None] = os.kill,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ask processes to end (TERM), then end them (KILL), also those they start meanwhile.

    Args:
        find: Gives the processes that are still there.
        send: Sends a signal.
        now_s: Monotonic clock, seconds.
        sleep: Waits.

    Returns:
        How many processes there were.

    Raises:
        RunError: A process survives KILL, as one stuck in the kernel does.
    """
    seen: set[int] = set()
    for number, grace_s in ((signal.SIGTERM, _TERM_GRACE_S), (signal.SIGKILL, _KILL_GRACE_S)):
        until_s = now_s() + grace_s
        told: set[int] = set()
        while left := find():
            for pid in left:
                # TERM once each, so that a tidy end is not disturbed; KILL as often as it takes.
                if pid not in told or number == signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError):
                        send(pid, number)
            told.update(left)
            seen.update(left)
            if now_s() >= until_s:
                break
            sleep(0.02)
        else:
            return len(seen)
    raise RunError(
        f"processes {list(find())} do not end.", hint="Look at them with ps, then run greentrain lab down again."
    )


def remove(folders: Iterable[Path]) -> None:
    """Remove control groups and the groups below them; they hold no processes any more.

    Raises:
        RunError: A group is still busy.
    """
    for folder in folders:
        below = sorted((path for path in folder.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for path in (*below, folder):
            with writing(path), contextlib.suppress(FileNotFoundError):
                path.rmdir()


def leftovers(mounts: CgroupMounts, pattern: re.Pattern[str]) -> tuple[Path, ...]:
    """Folders at the top of the mounts whose whole name matches."""
    tops = dict.fromkeys((mounts.cpu, mounts.cpuacct))
    return tuple(path for top in tops for path in sorted(top.iterdir()) if pattern.fullmatch(path.name))
