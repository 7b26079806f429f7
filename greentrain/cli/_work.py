"""Being one device's worker of a run, started by the launcher or by a person on the board."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._common import say
from greentrain.cli._problem import problem_of_plan
from greentrain.cli._run import RunOptions, check_run_name, runnable_entry, stopped_by_signals
from greentrain.cli._run_files import save_cut_run, write_plan_files, write_run
from greentrain.cluster_file import DeviceEntry, cpu_numbers
from greentrain.device import CURRENT_POINT, Device
from greentrain.errors import UnavailableError, UsageError
from greentrain.files import canonical_sha256, read_json, utc_now
from greentrain.objective import Problem
from greentrain.plan import Estimate, Plan
from greentrain.reading import Control
from greentrain.simulator import simulate, to_estimate
from greentrain.summary import SUMMARY_SCHEMA, Summary

if TYPE_CHECKING:
    from greentrain.runtime.messages import Progress
    from greentrain.runtime.worker import Job

__all__ = ["work"]

# Importing torch on a slow, throttled board takes minutes; the launcher sees dead workers at once anyway,
# and a person is told who is missing.
_JOIN_TIMEOUT_S = 600.0
# A person who starts the workers by hand may have mistyped the address.
_REACH_TIMEOUT_S = 15.0
# A peer that is silent for this long, or for many rounds, is lost; with all that follows it makes 30 s.
_MESSAGE_TIMEOUT_S = 20.0
_MESSAGE_TIMEOUT_ROUNDS = 20


def work(plan: Plan, options: RunOptions, *, device: str, coordinator: str, quiet: bool) -> tuple[Path, Summary] | None:
    """Be one device's worker; rank 0 writes the run's files.

    Returns:
        The run's folder and summary on rank 0 of a run that was started by hand, else None.

    Raises:
        UsageError: The device is not in the plan, or plan, model, data or seed differ between the ranks.
        RunError: A peer was lost.
    """
    from greentrain.runtime.lifeline import end_with_launcher

    launched = end_with_launcher()
    # Its warnings are source places and stacks; what matters comes as an error.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if device not in plan.devices:
        raise UsageError(f"device {device!r} is not in the plan.", hint=f"It has: {', '.join(plan.devices)}.")
    host, port = _address(coordinator)
    run = options.run or f"{plan.model}-manual"
    check_run_name(run)
    folder = Path("runs") / run
    _check_unused(folder, plan.devices.index(device))
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    entry = runnable_entry(file, device)
    price = to_estimate(simulate(plan, problem), plan, problem)
    _restrain(entry)
    job = _job(plan, problem, options, entry, folder, run, price, host, port, launched=launched)
    with stopped_by_signals():
        if launched:
            _work_for_launcher(job, problem, options, entry, price)
            return None
        return _work_by_hand(job, problem, options, entry, price, quiet=quiet)


def _work_for_launcher(
    job: Job, problem: Problem, options: RunOptions, entry: DeviceEntry, price: Estimate
) -> None:  # fmt: skip
    """The launcher shows progress and keeps what a cut run has reached, unless it was killed itself."""
    from greentrain.runtime.lifeline import launcher_is_gone

    started_utc = utc_now()
    try:
        _train(job, problem, options, entry, price, _print_progress)
    finally:
        if launcher_is_gone() and job.device == job.plan.devices[0]:
            save_cut_run(job.run_dir, job.run, job.plan, problem.cluster, price, None, "interrupted", started_utc)


def _work_by_hand(
    job: Job, problem: Problem, options: RunOptions, entry: DeviceEntry, price: Estimate, *, quiet: bool
) -> tuple[Path, Summary] | None:
    """Nobody else watches this worker: it shows its own progress, and keeps what a cut run has reached."""
    from greentrain.cli._progress import Watcher

    watcher = Watcher(job.plan, price, f"joining the others at {job.host}:{job.port} …", quiet=quiet)
    started_utc = utc_now()
    leads = job.device == job.plan.devices[0]
    status = "failed"
    try:
        with watcher:
            _train(job, problem, options, entry, price, watcher.report)
        return (job.run_dir, read_json(job.run_dir / "summary.json", Summary, schema=SUMMARY_SCHEMA)) if leads else None
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if leads and job.run_dir.exists():
            save_cut_run(
                job.run_dir, job.run, job.plan, problem.cluster, price, watcher.last, status, started_utc
            )  # fmt: skip


def _train(
    job: Job, problem: Problem, options: RunOptions, entry: DeviceEntry, price: Estimate,
    report: Callable[[Progress], None],
) -> None:  # fmt: skip
    """Train under this device's meter; rank 0 writes the run's files."""
    from greentrain.runtime.worker import train
    from greentrain_harness.environment import package_versions
    from greentrain_harness.meters import open_named
    from greentrain_harness.sampler import Sampler

    started_utc = utc_now()
    plan, folder = job.plan, job.run_dir
    meter = open_named(entry.meter, sysroot=options.sysroot, device=_at_point(job, problem))
    with _operating_point(job, options.sysroot, meter.name), Sampler(meter) as sampler:
        trained = train(job, sampler, report, say)
    if trained is not None:
        if not (folder / "plan.json").exists():
            write_plan_files(folder, plan, problem, simulate(plan, problem), options.plan_path)
        write_run(folder, job, trained, problem.cluster, price, package_versions(), started_utc)


def _point(job: Job) -> str:
    """The operating point that the plan gives this device."""
    stage = next(stage for stage in job.plan.stages if job.device in stage.devices)
    return stage.points[stage.devices.index(job.device)]


def _at_point(job: Job, problem: Problem) -> Device:
    """This device with only the power curve of its operating point, for a meter that models."""
    device = problem.cluster.device(job.device)
    point = _point(job)
    return msgspec.structs.replace(device, points=tuple(known for known in device.points if known.name == point))


def _operating_point(job: Job, sysroot: Path, meter: str) -> contextlib.AbstractContextManager[object]:
    """Hold the plan's operating point while training; the present one needs no control.

    Raises:
        UnavailableError: This machine has no control for it.
    """
    point = _point(job)
    if point == CURRENT_POINT:
        return contextlib.nullcontext()
    from greentrain_harness.controls import control_with

    control = control_with(point, sysroot=sysroot, meter=meter)
    if point not in control.points():
        raise UnavailableError(
            f"{job.device}: the plan wants operating point {point!r}, {control.name} offers "
            f"{', '.join(control.points())}.",
            hint="Measure this device again (--points current or all) and schedule again.",
        )
    return _holding(control, point)


@contextlib.contextmanager
def _holding(control: Control, point: str) -> Generator[None, None, None]:
    with control:
        control.set(point)
        yield


def _job(
    plan: Plan, problem: Problem, options: RunOptions, entry: DeviceEntry, folder: Path, run: str, price: Estimate,
    host: str, port: int, *, launched: bool,
) -> Job:  # fmt: skip
    from greentrain.runtime.worker import Job
    from greentrain.workloads import load_workload
    from greentrain_datasets.loaders import load_dataset
    from greentrain_harness.environment import machine_id

    workload = load_workload(problem.model.workload or plan.model)
    return Job(
        run=run,
        plan=plan,
        plan_sha256=canonical_sha256(plan),
        device=entry.id,
        # Workers of one machine share its meter, unless the lab makes a machine of each.
        board=entry.board or machine_id(),
        workload=workload,
        data=load_dataset(workload.dataset),
        epochs=options.epochs or workload.epochs,
        max_rounds=options.rounds,
        seed=options.seed,
        run_dir=folder,
        host=host,
        port=port,
        reach_timeout_s=_JOIN_TIMEOUT_S if launched else _REACH_TIMEOUT_S,
        join_timeout_s=_JOIN_TIMEOUT_S,
        message_timeout_s=max(_MESSAGE_TIMEOUT_S, _MESSAGE_TIMEOUT_ROUNDS * price.step_s),
    )


def _print_progress(progress: Progress) -> None:
    """One JSON line per round; whoever launched this worker shows it."""
    # Nobody needs to listen: training goes on, and a launcher that is gone ends it by other means.
    with contextlib.suppress(OSError):
        sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
        sys.stdout.flush()


def _check_unused(folder: Path, rank: int) -> None:
    """Refuse to write over an earlier run of that name."""
    from greentrain.runtime.messages import rank_ledger_path

    for path in (folder / "summary.json", rank_ledger_path(folder, rank)):
        if path.exists():
            raise UsageError(
                f"{path}: exists already, this run has run before.",
                hint="Choose another --run NAME, the same on every device; runs are never overwritten.",
            )


def _restrain(entry: DeviceEntry) -> None:
    """Keep this worker to its processors and threads."""
    import torch

    if entry.cpus is not None:
        there = cpu_numbers(entry.cpus) & os.sched_getaffinity(0)
        if not there:
            raise UsageError(f"device {entry.id!r}: this machine has none of the processors {entry.cpus!r}.")
        os.sched_setaffinity(0, there)
    if entry.threads is not None:  # Else as many as measuring took: torch's own choice.
        torch.set_num_threads(entry.threads)


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--coordinator is {text!r}, expected HOST:PORT.", hint="For example 192.168.1.20:29500.")
    return host, int(port)
