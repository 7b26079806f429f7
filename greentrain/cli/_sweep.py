"""``greentrain measure`` over several operating points: all of them, or those that tell most about the best one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import emit_json, say
from greentrain.cli._measure import LAYER_SECONDS, MeasureOptions, measure_model, say_device, trial_plan
from greentrain.device import OperatingPoint
from greentrain.errors import GreentrainError
from greentrain.point_model import PointObservation, fit_points
from greentrain.profile_files import read_model_profile, write_device_profile, write_layer_times
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from greentrain.reading import Meter
    from greentrain.workloads.workload import Workload
    from greentrain_harness.profilers.search import Outcome, Search
    from greentrain_harness.sweep import SweepEstimate, SweepResult

__all__ = ["sweep_device"]


def sweep_device(
    options: MeasureOptions, meter: Meter, workloads: dict[str, Workload], *, dry_run: bool, as_json: bool
) -> tuple[SweepResult, list[Path]] | None:
    """Operating points of a control; None after a dry run, which only says how long it would take."""
    from greentrain_harness.controls import open_control
    from greentrain_harness.profilers.points import seconds_per_sample, write_points
    from greentrain_harness.sweep import Sweep, estimate

    files: list[Path] = []

    def time_models(point: OperatingPoint) -> dict[str, float]:
        sample_s: dict[str, float] = {}
        for name, workload in workloads.items():
            times, written = measure_model(options, name, workload, point=point.name, quiet=as_json)
            sample_s[times.model] = seconds_per_sample(times)
            # The model's own file is the same at every point.
            files.extend(path for path in written if path not in files)
        return sample_s

    try:
        sweep = Sweep(
            device_id=options.identity,
            kind=options.kind,
            folder=options.folder,
            sysroot=options.sysroot,
            plan=trial_plan(options),
            command=options.command,
            settings=(*options.models, f"threads {options.threads}", f"cpus {options.cpus}"),
            at_point=time_models,
            at_point_s=LAYER_SECONDS * len(workloads),
            search=_search(options, workloads) if options.searches else None,
            say=lambda text: say(f"  {text}", quiet=as_json),
        )
        control = open_control(options.control, sysroot=options.sysroot, meter=meter.name)
        if dry_run:
            _print_estimate(estimate(sweep, meter, control), sweep.search, as_json=as_json)
            meter.close()
            return None
    except GreentrainError:
        meter.close()
        raise
    say_device(options, meter, quiet=as_json)
    result = sweep.run(meter, control)
    path = write_device_profile(options.folder, result.profile)
    files.append(write_points(options.folder, result.points))
    if result.outcome is not None and sweep.search is not None:
        for workload in workloads.values():
            files += _predict_times(options, workload.name, result, result.outcome, sweep.search)
    sweep.clear()
    return result, [path, *files]


def _search(options: MeasureOptions, workloads: dict[str, Workload]) -> Search:
    from greentrain_harness.profilers.points import earlier_sweeps
    from greentrain_harness.profilers.search import Search

    return Search(
        decision=options.decision,
        most_points=int(options.points) if options.points.isdigit() else None,
        budget_s=options.budget_s,
        models=tuple(workload.name for workload in workloads.values()),
        prior=[*earlier_sweeps(options.folder, options.identity, options.kind), *_catalogue_sweep(options.kind)],
    )


def _catalogue_sweep(kind: str) -> list[list[PointObservation]]:
    """The catalogue's board of this kind as a sweep, where it has one with several points."""
    from greentrain_datasets.catalogue import catalogue_entry, catalogue_kinds

    if kind not in catalogue_kinds():
        return []
    points = catalogue_entry(kind).points
    sweep = [PointObservation(point.point, 1.0 / point.train_flop_per_s, point.busy_w) for point in points]
    return [sweep] if len(sweep) > 1 else []


def _predict_times(
    options: MeasureOptions, model: str, result: SweepResult, ended: Outcome, search: Search
) -> list[Path]:
    """Layer times of the points that were not measured, into files of their own; measured files stay."""
    from greentrain_harness.profilers.points import observations
    from greentrain_harness.profilers.predicted import predicted_times

    if result.posterior is None:
        return []
    known = [times for times in read_model_profile(options.folder, model).times if times.kind == options.kind]
    measured = {times.point for times in known if times.provenance.source == "measured"}
    names = [name for name in ended.predicted if name not in measured]
    seen = observations(result.points.figures, (model,))
    # The same points, fitted to this model's times alone.
    posterior = fit_points(result.posterior.points, seen, prior=search.prior)
    fresh = [times for times in known if times.point in {at.point.name for at in seen}]
    return [
        write_layer_times(options.folder, times)
        for times in predicted_times(fresh, posterior, names, command=options.command)
    ]


def _print_estimate(planned: SweepEstimate, search: Search | None, *, as_json: bool) -> None:
    if as_json:
        emit_json(planned)
        return
    least, most = (format_quantity(seconds, "time") for seconds in (planned.least_s, planned.most_s))
    chosen = f"at most {planned.most_points} of " if search is not None else ""
    click.echo(f"{chosen}{len(planned.points)} points with {planned.control}: {', '.join(planned.points)}")
    if planned.finished:
        click.echo(f"already measured: {', '.join(planned.finished)}")
    click.echo(f"{least} to {most}; every clock and cap is put back")
