"""``greentrain measure``: this device, and models on it, into profiles/."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from greentrain._checks import require_id
from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, say, sysroot_option
from greentrain.cli._measure import MeasureOptions, measure_device
from greentrain.cli._sweep import sweep_device
from greentrain.cluster_file import ASSUMED_BANDWIDTH, ASSUMED_LATENCY, cpu_numbers, read_cluster_file
from greentrain.device import CURRENT_POINT, DeviceProfile
from greentrain.errors import NotSupportedError, UsageError
from greentrain.files import write_text
from greentrain.probing import Decision
from greentrain.profile_files import read_model_profile
from greentrain.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from greentrain.reading import Meter
    from greentrain.workloads.workload import Workload
    from greentrain_harness.profilers.search import Outcome

__all__ = ["command"]

_DEFAULT_MODEL = "digits-cnn"
_LEAST_POINTS = 2


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints.

    Attributes:
        device: Device id.
        kind: Device kind.
        meter: Name of the meter.
        source: ``measured`` or ``modelled`` joules.
        note: What a reader must know of the meter.
        idle_w: Idle power, watts.
        busy_w: Power at full throughput, watts.
        band_w: ± of the power curve, watts; null when not known.
        spread_ratio: Largest spread of the trials; null when nothing was measured.
        files: Everything that was written.
        cluster_lines: Lines to add to cluster.toml; empty when it lists the device.
        search: How the search for the best point ended; null without one.
    """

    device: str
    kind: str
    meter: str
    source: str
    note: str
    idle_w: float
    busy_w: float
    band_w: float | None
    spread_ratio: float | None
    files: tuple[str, ...]
    cluster_lines: str
    search: Outcome | None


@click.command("measure")
@click.option(
    "--device", default="auto", show_default=True, help="auto, jetson, nvidia, cpu, wall, modelled, or a meter."
)
@click.option("--model", "models", multiple=True, help=f"Model to time (again for more), or none [{_DEFAULT_MODEL}].")
@click.option(
    "--points",
    help="current, all, or a number: so many points, each the one that tells most about the best [current].",
)
@click.option("--budget", metavar="5m", help="Time for such a search; it ends earlier when the best point is known.")
@click.option(
    "--objective",
    "minimise",
    type=click.Choice(["energy", "time", "edp"]),
    default="energy",
    show_default=True,
    help="What a search wants the best point of.",
)
@click.option(
    "--control", default="auto", show_default=True, help="What sets the points: nvpmodel, cpufreq, devfreq, nvml_limit."
)
@click.option("--dry-run", is_flag=True, help="Say how long it will take, and change nothing.")
@click.option(
    "--trials",
    "most_trials",
    type=click.IntRange(min=3),
    default=5,
    show_default=True,
    help="Most rounds at every point; fewer where the interval is tight.",
)
@click.option("--window", type=click.FloatRange(min=0.02), help="Seconds of every measured window [0.5].")
@click.option("--link-serve", type=click.IntRange(1, 65535), metavar="PORT", help="Answer --link of another device.")
@click.option("--link", "link_address", metavar="HOST:PORT", help="Measure the link to a device that answers there.")
@click.option("--id", "identity", help="Id of this device [GREENTRAIN_DEVICE_ID, or the host name].")
@click.option("--kind", help="Device kind [the id: a measured device is its own kind].")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--cpus", default="", help="Processors to use, such as 0 or 0-1,3.")
@click.option("--quota", type=click.FloatRange(min=1), help="CPU quota in percent of a core (root): a slower worker.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=PROFILES_DIR,
    show_default=True,
    help="Folder of the profiles.",
)
@json_option
@sysroot_option
def command(
    device: str,
    models: tuple[str, ...],
    points: str | None,
    budget: str | None,
    minimise: Literal["energy", "time", "edp"],
    control: str,
    dry_run: bool,
    most_trials: int,
    window: float | None,
    link_serve: int | None,
    link_address: str | None,
    identity: str | None,
    kind: str | None,
    threads: int | None,
    cpus: str,
    quota: float | None,
    folder: Path,
    as_json: bool,
    sysroot: Path,
) -> None:
    """Measure this device's power, and the layer times of models on it.

    Writes the profiles, and a cluster.toml that lists this device where there is none.
    """
    from greentrain_harness.environment import device_id
    from greentrain_harness.meters import open_named
    from greentrain_harness.restore import restore_pending

    for remark in restore_pending(sysroot):
        say(remark)
    if quota is not None:
        _measure_under_quota(quota)
    identity = identity or device_id()
    if link_serve is not None or link_address is not None:
        _links(
            link_serve, link_address, _name(identity, "--id"), folder, device=device, sysroot=sysroot, as_json=as_json
        )
        return
    options = MeasureOptions(
        device=device,
        models=_models(models),
        points=_points(points, budget),
        budget_s=None if budget is None else parse_quantity(budget, "time", where="--budget", minimum=1.0),
        decision=Decision(minimise=minimise),
        control=control,
        window_s=window,
        most_trials=most_trials,
        identity=_name(identity, "--id"),
        kind=_name(kind or identity, "--kind"),
        threads=threads,
        cpus=_cpus(cpus),
        folder=folder,
        sysroot=sysroot,
    )
    # Everything that can be wrong is found before minutes are spent on measuring.
    listed = CLUSTER_FILE.exists() and any(entry.id == identity for entry in read_cluster_file(CLUSTER_FILE).device)
    # Before the meter opens: a modelled one counts the cores that are left.
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    meter = open_named(device, sysroot=sysroot)
    workloads = _workloads(options, meter, explicit=bool(models), quiet=as_json)
    _set_threads(options)
    outcome = None
    if options.points != CURRENT_POINT:
        swept = sweep_device(options, meter, workloads, dry_run=dry_run, as_json=as_json)
        if swept is None:
            return
        result, files = swept
        profile, outcome = result.profile, result.outcome
    else:
        if dry_run:
            meter.close()
            raise UsageError(
                "--dry-run goes with --points all, a number of points, or --budget.",
                hint="The present point alone takes about 15 s.",
            )
        profile, files = measure_device(options, meter, workloads, quiet=as_json)
    files += [_stage_table(folder, profile, workload.name) for workload in workloads.values()]
    lines = "" if listed else _cluster_lines(options, files[0])
    if lines and not CLUSTER_FILE.exists():
        files.append(_write_cluster(lines))
        lines = ""
    _report(_result(profile, files, lines, outcome), as_json=as_json)


def _links(
    port: int | None, address: str | None, identity: str, folder: Path, *, device: str, sysroot: Path, as_json: bool
) -> None:
    from greentrain.cli._link import measure_links, serve

    if port is not None and address is not None:
        raise UsageError("--link-serve and --link were both given.", hint="Serve on one device, measure on the other.")
    if port is not None:
        serve(port, identity, quiet=as_json)
    if address is not None:
        measure_links(address, identity, folder, device=device, sysroot=sysroot, as_json=as_json)


def _measure_under_quota(quota_percent: float) -> None:
    """Become the same command under a CPU quota; does not return."""
    from greentrain_harness.lab.quota import quota_argv, require_quota

    require_quota(quota_percent)
    words = sys.argv[1:]
    position = next(index for index, word in enumerate(words) if word.startswith("--quota"))
    del words[position : position + (1 if "=" in words[position] else 2)]
    argv = quota_argv(quota_percent, [sys.executable, "-m", "greentrain.cli", *words])
    os.execv(argv[0], argv)


def _models(models: tuple[str, ...]) -> tuple[str, ...]:
    if "none" in models:
        if len(models) > 1:
            raise UsageError("--model none stands beside other models.", hint="Give either none or the models.")
        return ()
    return models or (_DEFAULT_MODEL,)


def _points(points: str | None, budget: str | None) -> str:
    """``current``, ``all`` or a number of points."""
    chosen = points or (CURRENT_POINT if budget is None else "all")
    if chosen == CURRENT_POINT and budget is not None:
        raise UsageError(
            "--budget and --points current were both given.", hint="The budget is for a search; leave --points away."
        )
    if chosen in (CURRENT_POINT, "all") or (chosen.isascii() and chosen.isdigit() and int(chosen) >= _LEAST_POINTS):
        return chosen
    raise UsageError(
        f"--points is {chosen!r}, expected current, all, or a number of at least {_LEAST_POINTS}.",
        hint="The present point is one of them.",
    )


def _name(value: str, option: str) -> str:
    try:
        require_id(value, what=option)
    except ValueError as error:
        raise UsageError(f"{error}.", hint=f"Give another {option}.") from error
    return value


def _cpus(text: str) -> tuple[int, ...]:
    """Processors of a list such as ``0-1,3``; none given means: as the process was started."""
    try:
        chosen = cpu_numbers(text) if text else frozenset[int]()
    except ValueError as error:
        raise UsageError(
            f"--cpus is {text!r}, expected a list of processors.", hint="Write, for example, 0-1,3."
        ) from error
    absent = sorted(chosen - os.sched_getaffinity(0))
    if absent or (text and not chosen):
        raise UsageError(
            f"--cpus is {text!r}, but this process may use {sorted(os.sched_getaffinity(0))}.",
            hint="Choose among those.",
        )
    return tuple(sorted(chosen))


def _workloads(options: MeasureOptions, meter: Meter, *, explicit: bool, quiet: bool) -> dict[str, Workload]:
    """The models to time, by what was asked for; on a GPU none yet."""
    if meter.name == "nvml" and options.models:
        if explicit:
            meter.close()
            raise NotSupportedError(
                "layer times on a GPU cannot be measured yet; the joules of the GPU would not belong to them.",
                hint="Use --device cpu for the models, or --model none for the GPU's power alone.",
            )
        say("No model is timed: layer times on a GPU are not supported yet.", quiet=quiet)
        return {}
    if not options.models:
        return {}
    from greentrain.workloads import load_workload

    return {name: load_workload(name) for name in options.models}


def _set_threads(options: MeasureOptions) -> None:
    if options.threads is not None or options.cpus:
        import torch

        torch.set_num_threads(options.threads or len(options.cpus))


def _stage_table(folder: Path, profile: DeviceProfile, model: str) -> Path:
    from greentrain_harness.profilers.stage_table import write_stage_table

    return write_stage_table(folder, profile.device, read_model_profile(folder, model))


def _cluster_lines(options: MeasureOptions, profile: Path) -> str:
    """The ``[[device]]`` table of this device."""
    lab = os.environ.get("GREENTRAIN_LAB")
    fields: dict[str, str | int] = {
        "id": options.identity,
        "profile": os.path.relpath(profile, CLUSTER_FILE.resolve().parent),
        "launch": "local" if lab is None else f"lab:{lab}",
    }
    if options.device != "auto":
        fields["meter"] = options.device
    if options.threads is not None:
        fields["threads"] = options.threads
    if options.cpus:
        fields["cpus"] = ",".join(map(str, options.cpus))
    return "[[device]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def _write_cluster(lines: str) -> Path:
    head = (
        "# Devices that may train together; add more with [[device]].\n"
        'name = "cluster"\n\n'
        "[link]                  # assumed between any two devices; greentrain measure --link measures it\n"
        f'bandwidth = "{ASSUMED_BANDWIDTH}"\nlatency = "{ASSUMED_LATENCY}"\n\n'
    )
    write_text(CLUSTER_FILE, head + lines)
    return CLUSTER_FILE


def _result(profile: DeviceProfile, files: list[Path], lines: str, outcome: Outcome | None) -> _Result:
    curve = profile.device.curve(CURRENT_POINT)
    return _Result(
        device=profile.device.id,
        kind=profile.device.kind,
        meter=profile.provenance.meter,
        source=profile.provenance.source,
        note=profile.provenance.note,
        idle_w=profile.device.power.idle_w,
        busy_w=curve.busy_w,
        band_w=curve.band_w,
        spread_ratio=profile.provenance.spread_ratio,
        files=tuple(str(path) for path in files),
        cluster_lines=lines,
        search=outcome,
    )


def _report(result: _Result, *, as_json: bool) -> None:
    if as_json:
        emit_json(result)
        return
    band = f" ± {format_quantity(result.band_w, 'power')}" if result.band_w is not None else ""
    click.echo(
        f"{result.device}: {format_quantity(result.idle_w, 'power')} idle, "
        f"{format_quantity(result.busy_w, 'power')} busy{band}, source={result.source}, meter {result.meter}"
    )
    if result.search is not None:
        click.echo(result.search.text)
    for path in result.files:
        click.echo(f"wrote {path}")
    if result.cluster_lines:
        click.echo(f"{CLUSTER_FILE} does not list this device; add:\n\n{result.cluster_lines}", nl=False)
