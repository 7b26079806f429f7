"""The profiles folder as ``greentrain models`` sees it: devices, what was measured at their points, models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from greentrain.device import CURRENT_POINT, DeviceProfile
from greentrain.errors import UsageError
from greentrain.point_model import PointPosterior, fit_points
from greentrain.profile import ModelProfile
from greentrain.profile_files import device_profiles, model_names, read_device_profile, read_model_profile

if TYPE_CHECKING:
    from greentrain_harness.profilers.points import MeasuredPoints
    from greentrain_reports.curve_tables import Window
    from greentrain_reports.device_curves import DeviceCurves, Setting

__all__ = ["KnownDevice", "ModelsFolder", "drawn", "fitted", "read_models_folder"]


class KnownDevice(NamedTuple):
    """A device profile with the points that were measured behind it.

    Attributes:
        profile: The profile.
        points: What was measured; None where it was not kept.
    """

    profile: DeviceProfile
    points: MeasuredPoints | None

    @property
    def windows(self) -> dict[str, tuple[Window, ...]]:
        """Measured windows by operating point."""
        return {} if self.points is None else {seen.point.name: seen.windows for seen in self.points.figures}


class ModelsFolder(NamedTuple):
    """Everything in a profiles folder that was fitted.

    Attributes:
        devices: By id.
        models: By name.
    """

    devices: tuple[KnownDevice, ...]
    models: tuple[ModelProfile, ...]


def read_models_folder(folder: Path, device: str | None = None) -> ModelsFolder:
    """Read the profiles.

    Args:
        folder: The profiles folder.
        device: Only this device, and the times of its kind.

    Raises:
        UsageError: There is no such folder, no device profile in it, no such device, or a file is damaged.
    """
    paths = device_profiles(folder)
    if not paths:
        seen = "holds no device profile" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {seen}.", hint="Run: greentrain measure, or give the folder with --profiles.")
    known = [_known(folder, path) for path in paths]
    models = [read_model_profile(folder, name) for name in model_names(folder)]
    if device is not None:
        ids = ", ".join(it.profile.device.id for it in known)
        known = [it for it in known if it.profile.device.id == device]
        if not known:
            raise UsageError(f"{folder}: no profile of device {device!r}.", hint=f"It has: {ids}.")
        kind = known[0].profile.device.kind
        models = [model.with_times(times for times in model.times if times.kind == kind) for model in models]
    return ModelsFolder(tuple(known), tuple(models))


def _known(folder: Path, path: Path) -> KnownDevice:
    from greentrain_harness.profilers.points import points_path, read_points

    profile = read_device_profile(path)
    kept = points_path(folder, profile.device.id)
    return KnownDevice(profile, read_points(kept) if kept.exists() else None)


def fitted(device: KnownDevice) -> PointPosterior | None:
    """Time and power of all points of a device; None where no point of a control was measured.

    Raises:
        UsageError: A measured figure is impossible, such as milliwatts among watts.
    """
    from greentrain_harness.profilers.points import observations

    if device.points is None:
        return None
    seen = observations(device.points.figures, _timed_models(device.points))
    points = [point for point in device.profile.device.points if point.name != CURRENT_POINT]
    return fit_points(points, seen) if seen and points else None


def _timed_models(points: MeasuredPoints) -> tuple[str, ...]:
    """Models that were timed at every point: one sample of each is the unit of work."""
    names = [set(seen.sample_s) for seen in points.figures]
    return tuple(sorted(set[str].intersection(*names))) if names else ()


def drawn(folder: ModelsFolder) -> Iterator[DeviceCurves]:
    """What the page draws of each device."""
    from greentrain_reports.device_curves import DeviceCurves, DrawnCurve

    for it in folder.devices:
        device = it.profile.device
        models = _timed_models(it.points) if it.points is not None else ()
        yield DeviceCurves(
            device=device.id,
            curves=tuple(
                DrawnCurve(
                    point=point.name,
                    source=device.source_at(point.name),
                    curve=device.curve(point.name),
                    windows=it.windows.get(point.name, ()),
                )
                for point in device.points
            ),
            settings=_settings(it),
            unit=f"sample of {' and '.join(models)}" if models else "matrix product",
        )


def _settings(device: KnownDevice) -> tuple[Setting, ...]:
    from greentrain_reports.device_curves import Setting

    posterior = fitted(device)
    if posterior is None or len(posterior.points) < 2:
        return ()
    measured = {seen.point.name for seen in device.points.figures} if device.points is not None else set[str]()
    bands = zip(
        posterior.points, posterior.power_low_w_P, posterior.power_w_P, posterior.power_high_w_P,
        posterior.energy_low_j_P, posterior.energy_j_P, posterior.energy_high_j_P, strict=True,
    )  # fmt: skip
    settings = (
        Setting(
            point=point.name,
            measured=point.name in measured,
            power_w=(float(band[0]), float(band[1]), float(band[2])),
            energy_j=(float(band[3]), float(band[4]), float(band[5])),
        )
        for point, *band in bands
    )
    return tuple(sorted(settings, key=lambda at: -at.power_w[1]))
