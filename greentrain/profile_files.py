"""Where profiles lie: one folder, one file per device, model, and (kind, point, model).

profiles/<id>.device.json                    DeviceProfile
profiles/<model>.model.json                  ModelProfile without times
profiles/<kind>.<point>.<model>.layers.json  LayerTimes
"""

from __future__ import annotations

from pathlib import Path

from greentrain.device import DeviceProfile
from greentrain.errors import UsageError
from greentrain.files import read_json, write_json
from greentrain.profile import LayerTimes, ModelProfile

__all__ = [
    "DEVICE_SCHEMA",
    "LAYERS_SCHEMA",
    "MODEL_SCHEMA",
    "device_profiles",
    "model_names",
    "read_device_profile",
    "read_model_profile",
    "write_device_profile",
    "write_layer_times",
    "write_model_profile",
]

DEVICE_SCHEMA = "greentrain.device/1"
MODEL_SCHEMA = "greentrain.model/1"
LAYERS_SCHEMA = "greentrain.layers/1"


def write_device_profile(folder: Path, profile: DeviceProfile) -> Path:
    """Write ``<id>.device.json`` and return its path."""
    path = folder / f"{profile.device.id}.device.json"
    write_json(path, profile, schema=DEVICE_SCHEMA)
    return path


def read_device_profile(path: Path) -> DeviceProfile:
    """Read a device profile.

    Raises:
        UsageError: The file is missing or damaged.
    """
    return read_json(path, DeviceProfile, schema=DEVICE_SCHEMA)


def device_profiles(folder: Path) -> tuple[Path, ...]:
    """Paths of all device profiles of a folder, by name."""
    return tuple(sorted(folder.glob("*.device.json")))


def write_model_profile(folder: Path, profile: ModelProfile) -> Path:
    """Write ``<model>.model.json`` (layers without times) and return its path."""
    path = folder / f"{profile.model}.model.json"
    write_json(path, profile.with_times(()), schema=MODEL_SCHEMA)
    return path


def write_layer_times(folder: Path, times: LayerTimes) -> Path:
    """Write ``<kind>.<point>.<model>.layers.json`` and return its path."""
    path = folder / f"{times.kind}.{times.point}.{times.model}.layers.json"
    write_json(path, times, schema=LAYERS_SCHEMA)
    return path


def read_model_profile(folder: Path, model: str) -> ModelProfile:
    """Read a model with all layer times that the folder holds for it.

    Raises:
        UsageError: The model was never profiled here, or a file is damaged.
    """
    path = folder / f"{model}.model.json"
    if not path.exists():
        known = ", ".join(model_names(folder)) or "none"
        raise UsageError(
            f"{path}: no such file; models profiled in {folder}: {known}.",
            hint=f"Run: greentrain measure --model {model}",
        )
    profile = read_json(path, ModelProfile, schema=MODEL_SCHEMA)
    times = [read_json(found, LayerTimes, schema=LAYERS_SCHEMA) for found in sorted(folder.glob("*.layers.json"))]
    try:
        return profile.with_times(entry for entry in times if entry.model == model)
    except ValueError as error:
        raise UsageError(f"{folder}: {error}.", hint=f"Run: greentrain measure --model {model} again.") from error


def model_names(folder: Path) -> tuple[str, ...]:
    """Names of the models profiled in a folder."""
    return tuple(sorted(path.name.removesuffix(".model.json") for path in folder.glob("*.model.json")))
