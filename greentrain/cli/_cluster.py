"""The loader of cluster.toml that several commands share: profiles beside the file, kinds from the catalogue."""

from __future__ import annotations

from pathlib import Path

from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile, DeviceEntry, build_cluster, read_cluster_file
from greentrain.device import Device
from greentrain.errors import UsageError
from greentrain.profile_files import read_device_profile

__all__ = ["load_cluster"]


def load_cluster(path: Path) -> tuple[ClusterFile, Cluster]:
    """Read ``cluster.toml`` and find the device of every entry.

    Args:
        path: The cluster file; profile paths in it are relative to its folder.

    Returns:
        The file as written (how to launch each device) and the checked cluster (what to plan with).

    Raises:
        UsageError: The file, a profile it names, or a kind is missing or wrong; file and field are named.
    """
    file = read_cluster_file(path)
    position = {entry.id: index for index, entry in enumerate(file.device)}

    def resolve(entry: DeviceEntry) -> Device:
        field = "kind" if entry.profile is None else "profile"
        try:
            return _device(entry, path.parent)
        except UsageError as error:
            where = f"{path}: field device[{position[entry.id]}].{field}"
            raise UsageError(f"{where}: {error.message}", hint=error.hint) from error

    return file, build_cluster(file, path=path, resolve=resolve)


def _device(entry: DeviceEntry, folder: Path) -> Device:
    if entry.profile is not None:
        return read_device_profile(folder / entry.profile).device
    from greentrain_datasets.catalogue import catalogue_device

    # The entry has exactly one of profile and kind (checked when it was read).
    return catalogue_device(entry.kind or "", entry.id)
