"""Seconds and joules of every layer at every operating point, as a table for tools that plan clock frequencies.

``profiles/<id>.<model>.stages.csv``: one row per operating point, batch size and layer. A stage of a pipeline is a
range of layers: the sums of their rows are its time and its energy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from greentrain.device import Device, OperatingPoint
from greentrain.files import write_csv
from greentrain.profile import LayerTimes, ModelProfile

__all__ = ["COLUMNS", "stage_rows", "write_stage_table"]

COLUMNS = (
    "layer", "layer_name", "kind", "point", "cpu_hz", "gpu_hz", "cap_w", "batch", "forward_s", "backward_s",
    "update_s", "forward_j", "backward_j", "idle_w", "busy_w", "source",
)  # fmt: skip


def stage_rows(device: Device, model: ModelProfile) -> Iterator[tuple[object, ...]]:
    """Rows of :data:`COLUMNS`, for each point of the device at which the model was timed.

    The joules are the point's busy watts times the seconds. No meter sees a single layer, so that they say
    ``modelled`` even where the watts and the seconds were measured; the profiles beside the table tell that.
    """
    times_of = {times.point: times for times in model.times if times.kind == device.kind}
    for point in device.points:
        if point.name in times_of:
            yield from _point_rows(device, model, point, times_of[point.name])


def write_stage_table(folder: Path, device: Device, model: ModelProfile) -> Path:
    """Write ``<id>.<model>.stages.csv`` and return its path.

    Raises:
        UnavailableError: The folder may not be written to.
        RunError: The disk is full.
    """
    path = folder / f"{device.id}.{model.model}.stages.csv"
    write_csv(path, COLUMNS, stage_rows(device, model))
    return path


def _point_rows(
    device: Device, model: ModelProfile, point: OperatingPoint, times: LayerTimes
) -> Iterator[tuple[object, ...]]:
    curve = device.curve(point.name)
    for index, batch in enumerate(times.batch_B):
        for layer, profile in enumerate(model.layers):
            forward_s, backward_s = times.forward_s_LB[layer][index], times.backward_s_LB[layer][index]
            yield (
                layer, profile.name, device.kind, point.name, point.cpu_hz, point.gpu_hz, point.cap_w, batch,
                forward_s, backward_s, times.update_s_L[layer], curve.busy_w * forward_s, curve.busy_w * backward_s,
                curve.idle_w, curve.busy_w, "modelled",
            )  # fmt: skip
