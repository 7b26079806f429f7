"""What a test session must not leave on the machine: processes, control groups, network namespaces.

Other sessions, labs and runs on the same machine are none of its business: processes are known by a mark in
their environment, and resources by not having been there before and not holding anybody else's process.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from greentrain.errors import UnavailableError
from greentrain_harness.lab import cgroups, network
from greentrain_harness.lab.state import driver_pids, namespace_pattern, run_dir

__all__ = ["MARK", "resources", "session_processes", "strangers"]

# Variable in the environment of every process that the session starts.
MARK = "GREENTRAIN_TEST_SESSION"

_RESOURCE = re.compile(rf"{namespace_pattern().pattern}|gtquota-\d+")
_PROC = Path("/proc")


def session_processes(mark: str) -> dict[int, str]:
    """Living processes of the session with their command lines, without this one."""
    found: dict[int, str] = {}
    for process in _PROC.glob("[0-9]*"):
        if int(process.name) != os.getpid() and _has_mark(int(process.name), mark):
            found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def resources() -> set[str]:
    """Control groups and network namespaces of labs and quotas; none without root."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return set()
    found: set[str] = set()
    with contextlib.suppress(UnavailableError):
        found |= {str(path) for path in cgroups.leftovers(cgroups.find_mounts(), _RESOURCE)}
    if shutil.which("ip") is not None:
        found |= set(network.leftover_namespaces(_RESOURCE))
    return found


def strangers(names: Iterable[str], mark: str) -> set[str]:
    """Those resources that a process of somebody else uses."""
    return {name for name in names if any(not _has_mark(pid, mark) for pid in _users(name))}


def _users(name: str) -> tuple[int, ...]:
    match = namespace_pattern().fullmatch(Path(name).name)
    drivers = driver_pids(run_dir(match["lab"])) if match else ()
    inside = cgroups.processes((Path(name),)) if name.startswith("/") else network.namespace_processes(name)
    return (*drivers, *inside)


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
