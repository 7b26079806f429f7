"""What a run over SSH needs on the other hosts, and what it leaves there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from greentrain.cli._common import say
from greentrain.cluster_file import DeviceEntry
from greentrain.errors import GreentrainError, UsageError
from greentrain.plugins import is_file_spec
from greentrain.runtime.remote import Host, fetch_run, host_of, send_files

if TYPE_CHECKING:
    from greentrain.cli._run import RunOptions

__all__ = ["REMOTE_CLUSTER", "REMOTE_PROFILES", "cluster_files", "fetch_runs", "hosts_of", "send_run_files"]

REMOTE_CLUSTER = "cluster.toml"
REMOTE_PROFILES = "profiles"


def send_run_files(entries: Sequence[DeviceEntry], folder: Path, options: RunOptions, workload: str | None) -> None:
    """Copy plan, cluster, profiles and a user's own workload to every host of the run.

    Raises:
        UsageError: A file lies where it would not be found there.
        RunError: A host does not answer or cannot keep them.
    """
    hosts = hosts_of(entries)
    if not hosts:
        return
    files = {f"{folder.as_posix()}/plan.json": folder / "plan.json"}
    files |= cluster_files(options.cluster_path, options.profiles)
    for path in _own_files(workload):
        files[_inside(path, "the workload")] = Path(path)
    for host in hosts:
        send_files(host, files)


def hosts_of(entries: Sequence[DeviceEntry]) -> tuple[Host, ...]:
    """Each host of the devices once."""
    return tuple(dict.fromkeys(host for entry in entries if (host := host_of(entry)) is not None))


def cluster_files(cluster_path: Path, profiles: Path) -> dict[str, Path]:
    """The cluster with its profiles: file here by its path in the folder on a host.

    Raises:
        UsageError: A profile lies where it would not be found there.
    """
    files = {REMOTE_CLUSTER: cluster_path}
    files |= {f"{REMOTE_PROFILES}/{path.name}": path for path in sorted(profiles.glob("*.json"))}
    for entry in _entries_of(cluster_path):
        if entry.profile is not None:
            files[_inside(entry.profile, f"profile of device {entry.id!r}")] = cluster_path.parent / entry.profile
    return files


def _own_files(workload: str | None) -> list[str]:
    """Files of a user's own model and data."""
    if workload is None or not is_file_spec(workload):
        return []
    from greentrain.workloads import load_workload

    dataset = load_workload(workload).dataset
    specs = (workload, dataset if isinstance(dataset, str) else "")
    return [spec.rpartition(":")[0] for spec in specs if is_file_spec(spec)]


def _entries_of(cluster_path: Path) -> tuple[DeviceEntry, ...]:
    from greentrain.cluster_file import read_cluster_file

    return read_cluster_file(cluster_path).device


def _inside(path: str, what: str) -> str:
    """A path that means the same in the folder on another host."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise UsageError(
            f"{what} is {path!r}, expected a path inside this folder: the run is copied to other hosts.",
            hint="Copy the file into this folder and name it from here.",
        )
    return str(pure)


def fetch_runs(
    entries: Sequence[DeviceEntry], folder: Path, *, failed: bool = False, without: Sequence[str] = ()
) -> None:
    """Bring what the hosts wrote of a run; files that are here already stay.

    Args:
        entries: The run's devices.
        folder: The run's folder here.
        failed: The run was cut short: a host that does not answer is said, and no error.
        without: Names in the run's folder that stay on the hosts.
    """
    for host in hosts_of(entries):
        try:
            fetch_run(host, folder.name, folder, without=without)
        except GreentrainError as error:
            if not failed:
                raise
            say(f"Also: {error.message}")
