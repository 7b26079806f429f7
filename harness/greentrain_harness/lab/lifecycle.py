"""Setting a lab up and taking it down, also after a crash.

The run folder is the claim: ``mkdir`` decides between two ups, and a lock on it tells a lab being built
from one left behind by a crash. ``down`` needs no state file; it finds what belongs to the lab by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from greentrain.device import Device
from greentrain.errors import UnavailableError, UsageError
from greentrain.files import writing
from greentrain_harness.lab import cgroups, driver, network
from greentrain_harness.lab.sensors import NodeSensor, SensorPlan, board_of_kind, write_sensor_plan
from greentrain_harness.lab.state import (
    RUN_ROOT,
    Lab,
    LabNode,
    check_name,
    driver_pids,
    labs,
    namespace_pattern,
    node_resource,
    read_lab,
    run_dir,
    switch_resource,
    write_lab,
)

__all__ = ["down", "names_in_use", "require_root_on_linux", "up"]

# 50 Hz: one quota period, and as fine as an I²C sensor is read.
_INTERVAL_S = 0.02
# Node i has host number 10 + i of the lab's /24.
_FIRST_HOST = 10
_MAX_NODES = 200


def require_root_on_linux() -> None:
    """Check that a lab can be made here at all.

    Raises:
        UnavailableError: Not Linux, not root, or ``ip``/``tc`` is missing.
    """
    if sys.platform != "linux":
        raise UnavailableError(
            f"the lab needs Linux, this is {sys.platform}.", hint="Use a Linux machine or a virtual machine."
        )
    if os.geteuid() != 0:
        raise UnavailableError(
            f"the lab needs root, this is user id {os.geteuid()}.", hint="Run it with sudo; nothing else needs root."
        )
    network.require_tools()


def up(
    name: str,
    *,
    devices: Sequence[Device],
    quotas_percent: Sequence[float],
    bandwidth_bytes_per_s: float,
    latency_s: float = 0.0,
) -> Lab:
    """Set a lab up: one node per device, named ``node0``, ``node1``, …

    A set-up that fails on its way removes what it had made.

    Args:
        name: Name of the lab.
        devices: The board of each node; its first operating point drives the sensors.
        quotas_percent: CPU quota of each node in percent of one core.
        bandwidth_bytes_per_s: Rate of each node's link, in each direction.
        latency_s: Added one-way delay, seconds.

    Raises:
        UsageError: A name, quota or kind is wrong, or the lab stands already.
        UnavailableError: Not root, not Linux, or the kernel or a tool lacks something.
        RunError: The kernel refused.
    """
    check_name(name)
    _check_nodes(devices, quotas_percent)
    require_root_on_linux()
    mounts = cgroups.find_mounts()
    folder = run_dir(name)
    with _claimed(folder, make=True):
        try:
            return _build(name, mounts, devices, quotas_percent, bandwidth_bytes_per_s, latency_s)
        except BaseException:
            _tear_down(name, folder)
            raise


def down(name: str) -> bool:
    """Take a lab down, whatever is left of it: processes, driver, namespaces, control groups, run folder.

    Returns:
        Whether there was anything.

    Raises:
        UsageError: Another process is setting it up or taking it down.
        UnavailableError: Not root.
        RunError: A process does not end.
    """
    check_name(name)
    require_root_on_linux()
    folder = run_dir(name)
    if not folder.exists():
        return _tear_down(name, folder)
    with _claimed(folder, make=False):
        return _tear_down(name, folder)


def names_in_use() -> tuple[str, ...]:
    """Names of all labs of which anything is left, complete or not, sorted.

    Raises:
        UnavailableError: Not root, not Linux, or a tool is missing.
    """
    require_root_on_linux()
    pattern = namespace_pattern()
    found = {path.name for path in RUN_ROOT.glob("*/")}
    for resource in (
        *network.leftover_namespaces(pattern),
        *(path.name for path in cgroups.leftovers(cgroups.find_mounts(), pattern)),
    ):
        match = pattern.fullmatch(resource)
        if match is not None:
            found.add(match["lab"])
    return tuple(sorted(found))


def _check_nodes(devices: Sequence[Device], quotas_percent: Sequence[float]) -> None:
    if len(devices) != len(quotas_percent):
        raise UsageError(
            f"{len(devices)} kinds but {len(quotas_percent)} quotas, expected as many.",
            hint="Give one kind per quota: --quotas 60,40 --kinds jetson-orin-nano-8gb,jetson-nano-4gb.",
        )
    if not 1 <= len(devices) <= _MAX_NODES:
        raise UsageError(f"{len(devices)} nodes, expected 1 to {_MAX_NODES}.")
    for device, quota_percent in zip(devices, quotas_percent, strict=True):
        board_of_kind(device.kind)
        cgroups.check_quota(quota_percent, cores=os.cpu_count() or 1)


@contextlib.contextmanager
def _claimed(folder: Path, *, make: bool) -> Generator[None, None, None]:
    if make:
        with writing(folder):
            try:
                folder.mkdir(parents=True)
            except FileExistsError as error:
                raise _already_there(folder) from error
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _busy(folder) from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(folder) from error
    # Another process may have removed the folder before we got its lock.
    if not folder.exists() or not os.path.samestat(os.fstat(handle), folder.stat()):
        raise _busy(folder)


def _busy(folder: Path) -> UsageError:
    return UsageError(
        f"lab {folder.name!r} is being set up or taken down by another process.",
        hint="Wait a moment, then look at: greentrain lab status",
    )


def _already_there(folder: Path) -> UsageError:
    name = folder.name
    if name in labs():
        return UsageError(
            f"lab {name!r} stands already.",
            hint=f"Use it, choose another --name, or: greentrain lab down --name {name}",
        )
    return UsageError(
        f"lab {name!r} is being set up, or was left half-finished: {folder} exists.",
        hint=f"If no other lab up is running: greentrain lab down --name {name}",
    )


def _build(
    name: str,
    mounts: cgroups.CgroupMounts,
    devices: Sequence[Device],
    quotas_percent: Sequence[float],
    bandwidth_bytes_per_s: float,
    latency_s: float,
) -> Lab:
    folder = run_dir(name)
    switch = switch_resource(name)
    subnet = network.free_subnet(_subnets_in_use())
    network.add_switch(switch)
    if latency_s > 0:
        network.check_delay(switch)
    nodes: list[LabNode] = []
    sensors: list[NodeSensor] = []
    for index, (device, quota_percent) in enumerate(zip(devices, quotas_percent, strict=True)):
        node = LabNode(
            name=f"node{index}",
            address=str(subnet[_FIRST_HOST + index]),
            kind=device.kind,
            point=device.points[0].name,
            quota_percent=quota_percent,
            namespace=node_resource(name, f"node{index}"),
            cgroup=cgroups.create(mounts, node_resource(name, f"node{index}"), quota_percent),
            sysroot=str(folder / f"node{index}" / "sysroot"),
        )
        network.add_node(
            namespace=node.namespace,
            switch=switch,
            port=f"port{index}",
            address=f"{node.address}/{subnet.prefixlen}",
            bandwidth_bytes_per_s=bandwidth_bytes_per_s,
            latency_s=latency_s,
        )
        nodes.append(node)
        sensors.append(
            NodeSensor(
                lab=name,
                node=node.name,
                kind=node.kind,
                quota_percent=quota_percent,
                cgroup=node.cgroup,
                sysroot=node.sysroot,
                curve=device.curve(node.point),
            )
        )
    write_sensor_plan(folder / "sensors.json", SensorPlan(interval_s=_INTERVAL_S, nodes=tuple(sensors)))
    lab = Lab(
        name=name,
        subnet=str(subnet),
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        latency_s=latency_s,
        switch_namespace=switch,
        sensors_pid=driver.start(folder),
        nodes=tuple(nodes),
    )
    write_lab(lab)
    return lab


def _subnets_in_use() -> tuple[str, ...]:
    found: list[str] = []
    for name in labs():
        # Another lab may be taken down while we look.
        with contextlib.suppress(UsageError):
            found.append(read_lab(name).subnet)
    return tuple(found)


def _tear_down(name: str, folder: Path) -> bool:
    """Remove everything of a lab, in the order in which nothing new can appear."""
    pattern = namespace_pattern(name)
    groups = cgroups.leftovers(cgroups.find_mounts(), pattern)
    namespaces = network.leftover_namespaces(pattern)
    had_any = bool(groups or namespaces or folder.exists())

    def inside() -> tuple[int, ...]:
        found = set(cgroups.processes(groups))
        for namespace in namespaces:
            found.update(network.namespace_processes(namespace))
        return tuple(sorted(found - {os.getpid()}))

    killed_n = cgroups.kill_processes(inside)
    killed_n += cgroups.kill_processes(lambda: driver_pids(folder))
    for namespace in namespaces:
        network.remove_namespace(namespace)
    cgroups.remove(groups)
    if folder.exists():
        with writing(folder):
            shutil.rmtree(folder)
    # Stays while another lab is in it.
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()
    return had_any or killed_n > 0
