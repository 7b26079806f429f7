"""What machine this is: processors, memory, packages and its name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from greentrain.version import VERSION

__all__ = [
    "available_memory_bytes",
    "cpu_model",
    "cpu_quota_cores",
    "device_id",
    "host_description",
    "machine_id",
    "package_versions",
    "usable_cores",
]

_ROOT = Path("/")
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "msgspec", "nvidia-ml-py", "codecarbon", "transformers")
# cgroup v1 writes "no limit" as the largest multiple of a page.
_NO_LIMIT_BYTES = 1 << 60


def host_description(sysroot: Path = _ROOT) -> str:
    """Machine, operating system and processor in words.

    Args:
        sysroot: Where the board's name is read; the processor and the memory are always the real ones.
    """
    model = _read(sysroot / "proc/device-tree/model")
    board = f"{model.strip().strip(chr(0))}, " if model else ""
    memory_gib = available_memory_bytes() / 2**30
    return (
        f"{board}{platform.system()} {platform.release()} {platform.machine()}, {cpu_model()}, "
        f"{usable_cores():g} of {os.cpu_count() or 1} cores, {memory_gib:.1f} GiB free"
    )


def package_versions() -> dict[str, str]:
    """Versions of Python, greentrain and the packages that shape a figure; absent packages are left out.

    Nothing is imported for it.
    """
    versions = {"python": platform.python_version(), "greentrain": VERSION}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_model(sysroot: Path = _ROOT) -> str:
    """The processor's name, or its architecture where the kernel gives none."""
    for line in (_read(sysroot / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores(sysroot: Path = _ROOT) -> float:
    """Cores that this process may use: its affinity, cut by the CPU quota of its control groups."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota_cores(sysroot)
    return float(affinity) if quota is None else min(float(affinity), quota)


def cpu_quota_cores(sysroot: Path = _ROOT) -> float | None:
    """The tightest CPU quota of this process's control groups, in cores; None without a quota."""
    quotas: list[float] = []
    for folder in _group_folders(sysroot, "cpu"):
        unified = (_read(folder / "cpu.max") or "").split()
        if len(unified) == 2 and unified[0] != "max":
            quotas.append(_ratio(unified[0], unified[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and not quota.strip().startswith("-"):
            quotas.append(_ratio(quota, period))
    return min((quota for quota in quotas if math.isfinite(quota) and quota > 0), default=None)


def available_memory_bytes(sysroot: Path = _ROOT) -> int:
    """Memory that a process started now can have: what is free, cut by the control groups' limits."""
    free = _meminfo_bytes(sysroot)
    for folder in _group_folders(sysroot, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _integer(folder / limit_name), _integer(folder / used_name)
            if limit is not None and limit < _NO_LIMIT_BYTES:
                free = min(free, max(limit - (used or 0), 0))
    return free


def device_id() -> str:
    """This device's id: ``GREENTRAIN_DEVICE_ID``, else the host name in lower case without odd characters."""
    name = os.environ.get("GREENTRAIN_DEVICE_ID") or platform.node().split(".")[0].lower()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "this-device"


def machine_id(sysroot: Path = _ROOT) -> str:
    """Tells machines apart, also boards flashed from one image: the lab's node, else host name and network cards.

    Two ranks with the same id are on one board and share its meter.
    """
    lab = os.environ.get("GREENTRAIN_LAB")
    if lab:
        return f"lab-{lab}"
    # Only real cards: the addresses of virtual interfaces change from boot to boot.
    cards = sorted(
        _read(path / "address") or "" for path in (sysroot / "sys/class/net").glob("*") if (path / "device").exists()
    )
    return hashlib.sha256("|".join((platform.node(), *(card.strip() for card in cards))).encode()).hexdigest()[:16]


def _meminfo_bytes(sysroot: Path) -> int:
    for line in (_read(sysroot / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_folders(sysroot: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that may hold limits of a controller, innermost first.

    Control group paths are relative to the root of each mounted hierarchy; a limit of an outer group
    holds for the inner ones too.
    """
    paths: dict[str, str] = {}
    for line in (_read(sysroot / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else [""]:
            paths[name] = path
    for line in (_read(sysroot / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        version_2 = kind == "cgroup2"
        if not version_2 and not (kind == "cgroup" and controller in options.split()[-1].split(",")):
            continue
        path = paths.get("" if version_2 else controller)
        if path is None:
            continue
        mounted_root, mount_point = left.split()[3:5]
        top = sysroot / mount_point.lstrip("/")
        inner = top / path.removeprefix(mounted_root.rstrip("/")).lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def _ratio(numerator: str, denominator: str) -> float:
    try:
        return float(numerator) / float(denominator)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _integer(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
