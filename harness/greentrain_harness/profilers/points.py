"""What was measured at each operating point, kept behind the curves: ``profiles/<id>.points.json``.

A device profile holds curves. The windows that they were fitted to, and what a sample of each model took, lie here:
for pictures, for checks, and as the prior of the next sweep on such a board.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from greentrain.device import CURRENT_POINT
from greentrain.files import read_json, write_json
from greentrain.point_model import PointObservation
from greentrain.power import Source
from greentrain.profile import LayerTimes
from greentrain_harness.profilers.device import PointFigures

__all__ = [
    "POINTS_SCHEMA",
    "MeasuredPoints",
    "earlier_sweeps",
    "observations",
    "points_path",
    "read_points",
    "seconds_per_sample",
    "write_points",
]

POINTS_SCHEMA = "greentrain.points/1"


class MeasuredPoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All measured points of one device.

    Attributes:
        device_id: Id of the device.
        kind: Its kind.
        control: What set the points; empty for the present one alone.
        meter: Name of the meter.
        source: ``measured``, or ``modelled`` for an emulated sensor.
        figures: What was measured at each point.
    """

    device_id: str
    kind: str
    control: str
    meter: str
    source: Source
    figures: tuple[PointFigures, ...]


def points_path(folder: Path, device_id: str) -> Path:
    """Where the measured points of a device lie."""
    return folder / f"{device_id}.points.json"


def write_points(folder: Path, points: MeasuredPoints) -> Path:
    """Write ``<id>.points.json`` and return its path."""
    path = points_path(folder, points.device_id)
    write_json(path, points, schema=POINTS_SCHEMA)
    return path


def read_points(path: Path) -> MeasuredPoints:
    """Read a file of measured points.

    Raises:
        UsageError: The file is missing or damaged.
    """
    return read_json(path, MeasuredPoints, schema=POINTS_SCHEMA)


def seconds_per_sample(times: LayerTimes) -> float:
    """Seconds of one sample through the whole model and back at the largest batch, its share of the update included."""
    batch_s = sum(row[-1] for row in (*times.forward_s_LB, *times.backward_s_LB)) + sum(times.update_s_L)
    return batch_s / times.batch_B[-1]


def observations(figures: Iterable[PointFigures], models: Sequence[str] = ()) -> list[PointObservation]:
    """Busy watts and seconds of the unit of work at each point whose setting is known.

    Args:
        figures: Measured points; the present one is left out, since its clocks are not known.
        models: One sample of each is the unit of work; a matrix product when empty. Points at which one of them was
            not timed are left out.
    """
    found: list[PointObservation] = []
    for seen in figures:
        if seen.point.name == CURRENT_POINT or not all(model in seen.sample_s for model in models):
            continue
        time_s = sum(seen.sample_s[model] for model in models) if models else 1.0 / seen.peak_per_s
        if time_s > 0 and seen.curve.busy_w > 0:
            found.append(PointObservation(seen.point, time_s, seen.curve.busy_w))
    return found


def earlier_sweeps(folder: Path, device_id: str, kind: str) -> list[list[PointObservation]]:
    """Sweeps that this board, or another one of its kind, has left: one per unit of work.

    Raises:
        UsageError: A file of measured points is damaged.
    """
    found: list[list[PointObservation]] = []
    for path in sorted(folder.glob("*.points.json")):
        points = read_points(path)
        if points.device_id == device_id or points.kind == kind:
            models = sorted({model for figures in points.figures for model in figures.sample_s})
            found += [observations(points.figures, work) for work in ((), *((model,) for model in models))]
    return [sweep for sweep in found if len(sweep) >= 2]
