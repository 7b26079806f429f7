"""What ``greentrain measure`` was asked for, and the measuring of one operating point and of models."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._common import say
from greentrain.device import CURRENT_POINT, DeviceProfile
from greentrain.plugins import is_file_spec
from greentrain.probing import Decision
from greentrain.profile import LayerTimes
from greentrain.profile_files import write_device_profile, write_layer_times, write_model_profile

if TYPE_CHECKING:
    from greentrain.reading import Meter
    from greentrain.workloads.workload import Workload
    from greentrain_harness.profilers.device import PointFigures, TrialPlan

__all__ = ["LAYER_SECONDS", "MeasureOptions", "measure_device", "measure_model", "say_device", "trial_plan"]

LAYER_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What was asked for, checked.

    Attributes:
        points: ``current``, ``all`` or a number of points.
        budget_s: Seconds that a search for the best point may take.
        decision: What the best point is to be best at.
    """

    device: str
    models: tuple[str, ...]
    points: str
    budget_s: float | None
    decision: Decision
    control: str
    window_s: float | None
    most_trials: int
    identity: str
    kind: str
    threads: int | None
    cpus: tuple[int, ...]
    folder: Path
    sysroot: Path

    @property
    def searches(self) -> bool:
        """Whether points are chosen one after the other."""
        return self.budget_s is not None or self.points.isdigit()

    @property
    def command(self) -> str:
        """The command that a reader can repeat."""
        from greentrain_harness.meters import without_password

        device = without_password(self.device)
        words = ["greentrain", "measure", "--device", device, "--id", self.identity, "--kind", self.kind]
        for model in self.models or ("none",):
            words += ["--model", model]
        if self.points != CURRENT_POINT:
            words += ["--points", self.points, "--control", self.control]
        if self.budget_s is not None:
            words += ["--budget", f"{self.budget_s:g}s"]
        if self.searches:
            words += ["--objective", self.decision.minimise]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        if self.cpus:
            words += ["--cpus", ",".join(map(str, self.cpus))]
        return shlex.join(words)


def say_device(options: MeasureOptions, meter: Meter, *, quiet: bool) -> None:
    """Which meter looks on, and what its joules are."""
    say(f"Device {options.identity}: meter {meter.name}, source={meter.source} ({meter.note})", quiet=quiet)


def trial_plan(options: MeasureOptions) -> TrialPlan:
    """How often and how long at every point."""
    from greentrain_harness.profilers.device import TrialPlan

    if options.window_s is None:
        return TrialPlan(most_trials=options.most_trials)
    return TrialPlan(most_trials=options.most_trials, idle_s=options.window_s, load_s=options.window_s)


def measure_device(
    options: MeasureOptions, meter: Meter, workloads: dict[str, Workload], *, quiet: bool
) -> tuple[DeviceProfile, list[Path]]:
    """The present point and the models on it: the profile and the files that were written."""
    from greentrain_harness.profilers.device import profile_device
    from greentrain_harness.profilers.points import MeasuredPoints, seconds_per_sample, write_points

    say_device(options, meter, quiet=quiet)
    kept: list[PointFigures] = []
    profile = profile_device(
        device_id=options.identity,
        kind=options.kind,
        meter=meter,
        sysroot=options.sysroot,
        plan=trial_plan(options),
        command=options.command,
        say=lambda text: say(f"  {text}", quiet=quiet),
        keep=kept.append,
    )
    files = [write_device_profile(options.folder, profile)]
    sample_s: dict[str, float] = {}
    for name, workload in workloads.items():
        times, written = measure_model(options, name, workload, quiet=quiet)
        sample_s[times.model] = seconds_per_sample(times)
        files += written
    if kept:
        points = MeasuredPoints(
            device_id=options.identity, kind=options.kind, control="", meter=meter.name, source=meter.source,
            figures=tuple(msgspec.structs.replace(figures, sample_s=sample_s) for figures in kept),
        )  # fmt: skip
        files.append(write_points(options.folder, points))
    return profile, files


def measure_model(
    options: MeasureOptions, name: str, workload: Workload, *, point: str = CURRENT_POINT, quiet: bool
) -> tuple[LayerTimes, list[Path]]:
    """Time a model's layers at the point that is set: the times and the files that were written."""
    from greentrain_harness.profilers.layers import profile_model, time_layers

    say(f"Model {workload.name}: timing its layers, about {LAYER_SECONDS:g} s, on slow devices more …", quiet=quiet)
    model = profile_model(workload)
    if is_file_spec(name):
        # schedule and train load the user's own file again.
        model = msgspec.structs.replace(model, workload=name)
    times = time_layers(
        workload, kind=options.kind, point=point, provenance_command=options.command, seconds_budget=LAYER_SECONDS
    )
    return times, [write_model_profile(options.folder, model), write_layer_times(options.folder, times)]
