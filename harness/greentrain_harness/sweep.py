"""Sweep of operating points: the points that a control can set are measured, and everything is put back.

All points are measured, or with a :class:`Search` those that tell most about the best one; the others are then
predicted, and marked. Each finished point is a file of its own in ``<folder>/<id>.sweep/``, so that an interrupted
sweep goes on where it stopped. Between points the device cools down to the temperature that it started with, where one
can be read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from greentrain.device import CURRENT_POINT, Device, DeviceProfile, OperatingPoint
from greentrain.errors import NotSupportedError, UnavailableError
from greentrain.files import read_json, write_json
from greentrain.point_model import PointPosterior
from greentrain.power import PowerCurve, PowerModel
from greentrain.reading import Meter
from greentrain_harness.controls import PointControl
from greentrain_harness.environment import available_memory_bytes
from greentrain_harness.profilers.device import (
    Load,
    Pace,
    PointFigures,
    TrialPlan,
    matmul_load,
    measure_point,
    provenance,
)
from greentrain_harness.profilers.points import MeasuredPoints
from greentrain_harness.profilers.predicted import predicted_curves
from greentrain_harness.profilers.search import Outcome, Search, outcome, search_order
from greentrain_harness.sampler import Sampler

__all__ = ["POINT_SCHEMA", "Sweep", "SweepEstimate", "SweepResult", "estimate", "hottest_c"]

POINT_SCHEMA = "greentrain.point/1"

_THERMAL = "sys/class/thermal"
_COOL_BAND_C = 3.0
_COOL_MOST_S = 120.0
_COOL_STEP_S = 2.0
# A search measures the present point and one of the control at least.
_LEAST_SEARCHED = 2


class _FinishedPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point on disk.

    Attributes:
        key: What was asked for; a point of another key is measured again.
        figures: What was measured.
    """

    key: tuple[str, ...]
    figures: PointFigures


class SweepEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """How long a sweep will take.

    Attributes:
        control: Name of the control.
        points: Points that will be measured; with a search, those that may be.
        finished: Points that an interrupted sweep has left.
        least_s: When every interval is tight after the least trials and nothing has to cool down.
        most_s: When all trials are needed and every cool-down takes its limit.
        most_points: How many of the points will be measured at most.
    """

    control: str
    points: tuple[str, ...]
    finished: tuple[str, ...]
    least_s: float
    most_s: float
    most_points: int


class SweepResult(NamedTuple):
    """What a sweep gives.

    Attributes:
        profile: The device, with predicted points behind the measured ones.
        points: What was measured.
        outcome: How a search ended; None when all points were measured.
        posterior: Of all points that can be set; None likewise, or when none of them was measured.
    """

    profile: DeviceProfile
    points: MeasuredPoints
    outcome: Outcome | None = None
    posterior: PointPosterior | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure, and where the finished points go.

    Attributes:
        device_id: Id of the device.
        kind: Its kind.
        folder: Folder of the profiles.
        sysroot: Prefix of /sys.
        plan: How often and how long at every point.
        command: Written into the provenance.
        settings: Anything else that makes a finished point another one, such as the number of threads.
        at_point: Called at every point after its power was measured, while it is still set; gives the seconds per
            sample of the models that it timed.
        at_point_s: How long that takes, seconds.
        search: Which points to measure; None for all of them.
        say: Told about progress.
    """

    device_id: str
    kind: str
    folder: Path
    sysroot: Path = Path("/")
    plan: TrialPlan = field(default_factory=TrialPlan)
    command: str = "greentrain measure --points all"
    settings: tuple[str, ...] = ()
    at_point: Callable[[OperatingPoint], Mapping[str, float] | None] | None = None
    at_point_s: float = 0.0
    search: Search | None = None
    say: Callable[[str], None] = print

    @property
    def points_folder(self) -> Path:
        """Where finished points wait for the others."""
        return self.folder / f"{self.device_id}.sweep"

    def run(self, meter: Meter, control: PointControl, *, load: Load | None = None) -> SweepResult:
        """Measure the present point and points of a control.

        Args:
            meter: An open meter; it is closed at the end.
            control: A control that is not entered yet; it puts back what it found.
            load: One unit of work; a matrix product where the meter looks when not given.

        Raises:
            NotSupportedError: The meter is a model, which cannot tell points apart.
            UnavailableError: No permission, or another process holds the clocks.
            RunError: The sensor stopped answering.
        """
        _require_sensor(meter)
        plan = self.plan.settled_for(meter)
        unit = load or matmul_load(meter)
        done: dict[str, PointFigures] = {}
        refused: list[str] = []
        with Sampler(meter, clock=plan.pace.clock, background=plan.pace.background) as sampler, control:
            cool_c = hottest_c(self.sysroot)
            if cool_c is None:
                self.say(f"no thermal zone under {self.sysroot / _THERMAL}: points follow each other without cooling")
            if self.search is not None:
                done |= self._kept(control, meter)
            for name in self._order(control, plan, done, refused):
                figures = self._point(name, sampler, control, meter, plan, unit, cool_c)
                if figures is None:
                    refused.append(name)
                else:
                    done[name] = figures
        return self._result(control, meter, done, refused)

    def _kept(self, control: PointControl, meter: Meter) -> dict[str, PointFigures]:
        """Everything that an interrupted sweep has left of this control, said."""
        names = _names(control)
        kept = {name: seen for name, seen in self.finished(control.name, meter.name).items() if name in names}
        for name in kept:
            self.say(f"point {name}: kept from the interrupted sweep")
        return kept

    def _order(
        self, control: PointControl, plan: TrialPlan, done: Mapping[str, PointFigures], refused: list[str]
    ) -> Iterator[str]:  # fmt: skip
        if self.search is None:
            yield from _names(control)
            return
        start_s = plan.pace.clock()
        yield from search_order(
            self.search, [control.operating_point(name) for name in control.points()], done, refused,
            spent_s=lambda: plan.pace.clock() - start_s, probe_s=plan.seconds(plan.trials) + self.at_point_s,
            say=self.say,
        )  # fmt: skip

    def finished(self, control: str, meter: str) -> dict[str, PointFigures]:
        """Points that an interrupted sweep of the same settings has left."""
        found: dict[str, PointFigures] = {}
        for path in sorted(self.points_folder.glob("*.json")):
            point = read_json(path, _FinishedPoint, schema=POINT_SCHEMA)
            if point.key == self._key(control, meter):
                found[point.figures.point.name] = point.figures
        return found

    def clear(self) -> None:
        """Forget the finished points, once the profile that holds them is written."""
        shutil.rmtree(self.points_folder, ignore_errors=True)

    def _key(self, control: str, meter: str) -> tuple[str, ...]:
        plan = self.plan
        windows = f"{plan.trials}-{plan.most_trials} × {plan.idle_s:g}/{plan.load_s:g} s"
        return (self.device_id, self.kind, control, meter, windows, *self.settings)

    def _point(
        self, name: str, sampler: Sampler, control: PointControl, meter: Meter, plan: TrialPlan, unit: Load,
        cool_c: float | None,
    ) -> PointFigures | None:  # fmt: skip
        kept = self.finished(control.name, meter.name).get(name)
        if kept is not None:
            self.say(f"point {name}: kept from the interrupted sweep")
            return kept
        point = OperatingPoint(name=CURRENT_POINT)
        if name != CURRENT_POINT:
            if cool_c is not None:
                _cool_down(cool_c, self.sysroot, plan.pace, self.say)
            try:
                control.set(name)
            except UnavailableError as error:
                self.say(f"point {name}: left out ({error.message})")
                return None
            point = control.operating_point(name)
        self.say(f"point {name}")
        figures = measure_point(sampler, unit, plan, point=point, say=self.say)
        if self.at_point is not None:
            figures = msgspec.structs.replace(figures, sample_s=dict(self.at_point(point) or {}))
        finished = _FinishedPoint(key=self._key(control.name, meter.name), figures=figures)
        write_json(self.points_folder / f"{name}.json", finished, schema=POINT_SCHEMA)
        return figures

    def _result(
        self, control: PointControl, meter: Meter, done: Mapping[str, PointFigures], refused: list[str]
    ) -> SweepResult:
        figures = sorted(done.values(), key=lambda seen: _names(control).index(seen.point.name))
        points = MeasuredPoints(
            device_id=self.device_id, kind=self.kind, control=control.name, meter=meter.name, source=meter.source,
            figures=tuple(figures),
        )  # fmt: skip
        if self.search is None:
            return SweepResult(self._profile(figures, {}, meter), points)
        settable = [control.operating_point(name) for name in control.points() if name not in refused]
        ended, posterior = outcome(self.search, settable, done)
        predicted = predicted_curves(posterior, ended.predicted, figures) if posterior is not None else {}
        return SweepResult(self._profile(figures, predicted, meter, ended.text), points, ended, posterior)

    def _profile(
        self, done: list[PointFigures], predicted: dict[OperatingPoint, PowerCurve], meter: Meter, ended: str = ""
    ) -> DeviceProfile:
        current = done[0]
        peaks = ", ".join(f"{figures.point.name} {figures.peak_per_s:.0f}/s" for figures in done)
        missing = [f"{figures.point.name}: {figures.more_trials}" for figures in done if figures.more_trials > 0]
        remarks = [f"more trials needed for ±5 %: {', '.join(missing)}"] if missing else []
        remarks += [ended] if ended else []
        certificate = provenance(
            meter, self.command, min(figures.trials_n for figures in done),
            max(figures.spread_ratio for figures in done), self.sysroot,
        )  # fmt: skip
        what = f"sweep of {len(done)} points with {meter.name}; peaks in matrix products: {peaks}"
        marked = f"; modelled, not measured: {', '.join(point.name for point in predicted)}" if predicted else ""
        return DeviceProfile(
            device=Device(
                id=self.device_id,
                kind=self.kind,
                memory_bytes=available_memory_bytes(),
                points=(*(figures.point for figures in done), *predicted),
                power=PowerModel(
                    idle_w=current.idle_w,
                    curves=(*(figures.curve for figures in done), *predicted.values()),
                    source=meter.source,
                    provenance=what + marked,
                ),
            ),
            provenance=msgspec.structs.replace(certificate, note="; ".join([*remarks, certificate.note])),
        )


def estimate(sweep: Sweep, meter: Meter, control: PointControl) -> SweepEstimate:
    """How long a sweep would take; nothing is set and nothing is loaded.

    Raises:
        NotSupportedError: The meter is a model, which cannot tell points apart.
    """
    _require_sensor(meter)
    plan = sweep.plan.settled_for(meter)
    finished = sweep.finished(control.name, meter.name)
    left = [name for name in _names(control) if name not in finished]
    most = least = len(left)
    if sweep.search is not None:
        if sweep.search.most_points is not None:
            most = min(most, max(sweep.search.most_points - len(finished), 0))
        least = min(most, _LEAST_SEARCHED)
    cooled = max(most - (CURRENT_POINT in left), 0) if hottest_c(sweep.sysroot) is not None else 0
    budget_s = math.inf if sweep.search is None or sweep.search.budget_s is None else sweep.search.budget_s
    least_s = least * (plan.seconds(plan.trials) + sweep.at_point_s)
    most_s = most * (plan.seconds(plan.most_trials) + sweep.at_point_s) + cooled * _COOL_MOST_S
    return SweepEstimate(
        control=control.name,
        points=tuple(left),
        finished=tuple(finished),
        least_s=min(least_s, budget_s),
        most_s=min(most_s, budget_s),
        most_points=most,
    )


def hottest_c(sysroot: Path = Path("/")) -> float | None:
    """The hottest thermal zone, °C; None when none can be read."""
    temperatures: list[float] = []
    for path in (sysroot / _THERMAL).glob("thermal_zone*/temp"):
        try:
            millidegrees = int(path.read_text())
        except (OSError, ValueError):
            # Zones of parts that are switched off answer with an error.
            continue
        # -256 °C and the like mean: not connected.
        if -50_000 < millidegrees < 200_000:
            temperatures.append(millidegrees / 1e3)
    return max(temperatures, default=None)


def _require_sensor(meter: Meter) -> None:
    if meter.name == "modelled":
        meter.close()
        raise NotSupportedError(
            "operating points cannot be told apart without a sensor: modelled joules would be the same guess.",
            hint="Measure with --points current, or give a sensor, such as --device wall.",
        )


def _names(control: PointControl) -> tuple[str, ...]:
    return (CURRENT_POINT, *control.points())


def _cool_down(cool_c: float, sysroot: Path, pace: Pace, say: Callable[[str], None]) -> None:
    start_s = pace.clock()
    said = False
    while (now_c := hottest_c(sysroot)) is not None and now_c > cool_c + _COOL_BAND_C:
        if pace.clock() - start_s >= _COOL_MOST_S:
            say(f"still {now_c:.0f} °C after {_COOL_MOST_S:.0f} s, the start was {cool_c:.0f} °C: goes on all the same")
            return
        if not said:
            say(f"cooling down from {now_c:.0f} °C to {cool_c + _COOL_BAND_C:.0f} °C")
            said = True
        pace.sleep(_COOL_STEP_S)
