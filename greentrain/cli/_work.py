"""Being one device's worker of a run, started by the launcher or by a person on the board."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._cluster import load_cluster
from greentrain.cli._common import say
from greentrain.cli._problem import model_for_cluster, problem_of_plan
from greentrain.cli._run import (
    RunOptions,
    check_run_name,
    runnable_entry,
    stopped_by_signals,
)
from greentrain.cli._run_files import save_cut_run, write_plan_files, write_run
from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile, DeviceEntry, cpu_numbers
from greentrain.cost import estimate
from greentrain.device import CURRENT_POINT, Device
from greentrain.errors import UnavailableError, UsageError
from greentrain.files import canonical_sha256, read_json, utc_now
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.plan import Estimate, Plan
from greentrain.reading import Control
from greentrain.simulator import simulate, to_estimate
from greentrain.summary import SUMMARY_SCHEMA, Summary

if TYPE_CHECKING:
    from greentrain.runtime.checkpoints import Resumed
    from greentrain.runtime.messages import Progress
    from greentrain.runtime.worker import Job, Recovering, Trained

__all__ = ["address_of", "at_point", "make_job", "operating_point", "restrain", "work"]

# Importing torch on a slow, throttled board takes minutes; the launcher sees dead workers at once anyway,
# and a person is told who is missing.
_JOIN_TIMEOUT_S = 600.0
# A person who starts the workers by hand may have mistyped the address.
_REACH_TIMEOUT_S = 15.0
# A peer that is silent for this long, or for many rounds, is lost; with all that follows it makes 30 s.
_MESSAGE_TIMEOUT_S = 20.0
_MESSAGE_TIMEOUT_ROUNDS = 20
# A checkpoint every so often, by the plan's prediction.
_CHECKPOINT_S = 600.0


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
    coordinators = [address_of(text) for text in coordinator.split(",")]
    run = options.run or f"{plan.model}-manual"
    check_run_name(run)
    folder = Path("runs") / run
    _check_unfinished(folder)
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    # With recovery any device of the cluster may join a run that goes on.
    if device not in (plan.devices if not options.recovery else [entry.id for entry in file.device]):
        raise UsageError(f"device {device!r} is not in the plan.", hint=f"It has: {', '.join(plan.devices)}.")
    entry = runnable_entry(file, device)
    price = to_estimate(simulate(plan, problem), plan, problem)
    restrain(entry)
    job = make_job(plan, problem, options, entry, folder, run, price, *coordinators[0], launched=launched)
    if _can_recover(plan, device, options):
        job = replace(job, recovering=_recovering(job, file, problem, options, coordinators))
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
            led = _train(job, problem, options, entry, price, watcher.report)
        return (job.run_dir, read_json(job.run_dir / "summary.json", Summary, schema=SUMMARY_SCHEMA)) if led else None
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
) -> bool:  # fmt: skip
    """Train under this device's meter; the leader writes the run's files. Whether this device was it."""
    from greentrain.runtime.worker import train
    from greentrain_harness.environment import package_versions
    from greentrain_harness.meters import open_named
    from greentrain_harness.sampler import Sampler

    started_utc = utc_now()
    plan, folder = job.plan, job.run_dir
    meter = open_named(entry.meter, sysroot=options.sysroot, device=at_point(job, problem, options))

    def keep(trained: Trained) -> None:
        if not (folder / "plan.json").exists():
            write_plan_files(folder, plan, problem, simulate(plan, problem), options.plan_path)
        cluster = _with_joined(problem.cluster, trained, options)
        write_run(folder, job, trained, cluster, price, package_versions(), started_utc)

    with operating_point(job, options.sysroot, meter.name), Sampler(meter) as sampler:
        return train(job, sampler, report, say, keep) is not None


def _point(job: Job) -> str:
    """The operating point that the plan gives this device; a device that joins keeps its own."""
    stage = next((stage for stage in job.plan.stages if job.device in stage.devices), None)
    return CURRENT_POINT if stage is None else stage.points[stage.devices.index(job.device)]


def at_point(job: Job, problem: Problem, options: RunOptions) -> Device:
    """This device with only the power curve of its operating point, for a meter that models."""
    point = _point(job)
    if job.device not in job.plan.devices:
        device = load_cluster(options.cluster_path)[1].device(job.device)
        point = device.points[0].name
    else:
        device = problem.cluster.device(job.device)
    return msgspec.structs.replace(device, points=tuple(known for known in device.points if known.name == point))


def operating_point(job: Job, sysroot: Path, meter: str) -> contextlib.AbstractContextManager[object]:
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


def make_job(
    plan: Plan, problem: Problem, options: RunOptions, entry: DeviceEntry, folder: Path, run: str, price: Estimate,
    host: str, port: int, *, launched: bool,
) -> Job:  # fmt: skip
    from greentrain.runtime.worker import Job
    from greentrain.workloads import load_workload
    from greentrain_datasets.loaders import load_dataset
    from greentrain_harness.environment import machine_id

    workload = load_workload(problem.model.workload or plan.model)
    rank = plan.devices.index(entry.id) if entry.id in plan.devices else None
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
        options=options.training,
        torch_device=options.torch_device,
        run_dir=folder,
        host=host,
        port=port,
        reach_timeout_s=_JOIN_TIMEOUT_S if launched else _REACH_TIMEOUT_S,
        join_timeout_s=_JOIN_TIMEOUT_S,
        message_timeout_s=max(_MESSAGE_TIMEOUT_S, _MESSAGE_TIMEOUT_ROUNDS * price.step_s),
        resumed=None if options.resume is None else _resumed(plan, problem, options.resume, options.seed),
        checkpoint_rounds=_checkpoint_rounds(options, price),
        check_fresh=lambda: None if rank is None else _check_unused(folder, rank),
    )


def _can_recover(plan: Plan, device: str, options: RunOptions) -> bool:
    """Whether others can go on: not alone."""
    return options.recovery and (len(plan.devices) > 1 or device not in plan.devices)


def _checkpoint_rounds(options: RunOptions, price: Estimate) -> int | None:
    if options.checkpoint_rounds is None:
        return max(round(_CHECKPOINT_S / price.step_s), 1)
    return options.checkpoint_rounds or None


def _resumed(plan: Plan, problem: Problem, path: Path, seed: int) -> Resumed:
    from greentrain.runtime.checkpoints import open_checkpoint

    return open_checkpoint(
        path, structure_sha256=plan.structure_sha256, batch=plan.batch, seed=seed, layers_n=len(problem.model.layers)
    )


def _recovering(
    job: Job, file: ClusterFile, problem: Problem, options: RunOptions, coordinators: Sequence[tuple[str, int]]
) -> Recovering:  # fmt: skip
    """How training goes on after a loss: the repair of the plan, and how often stages without a replica are copied."""
    from greentrain.cli._replan import reviser_of
    from greentrain.planners.repair import repair
    from greentrain.runtime.backups import backup_period, copy_energy_j
    from greentrain.runtime.worker import Recovering

    plan = job.plan
    ids = [entry.id for entry in file.device]
    seats = {device: seat for seat, device in enumerate(plan.devices)}
    seats |= {device: len(ids) + number for number, device in enumerate(ids) if device not in seats}

    def repaired(present: Plan, lost: frozenset[str], joined: frozenset[str]) -> Plan:
        new = joined - set(plan.devices)
        try:
            wider = _wider(problem, frozenset({*present.devices, *joined}), options)
        except UsageError as error:
            say(f"{', '.join(sorted(new))} cannot join: {error.message}")
            wider, joined = _wider(problem, frozenset(present.devices), options), joined - new
        return repair(present, wider, lost, joined, home=plan)

    def backup_rounds(present: Plan) -> int:
        price = estimate(present, _wider(problem, frozenset(present.devices), options))
        copy_j = copy_energy_j(
            present, problem.cluster, states_n=OPTIMIZER_STATES[present.optimizer], round_j=price.round_energy_j,
            round_s=price.step_s,
        )  # fmt: skip
        return backup_period(copy_j, price.round_energy_j, options.losses_per_hour * price.step_s / 3600)

    hosts = [*coordinators, *((entry.address, job.port) for entry in file.device if entry.address is not None)]
    addresses = [
        (host, port + 1 + seat) for host, port in hosts for device, seat in seats.items() if device != job.device
    ]
    # Rows and layers cannot move while a group shares work inside a sample.
    by_rows = all(stage.sharing == "samples" for stage in plan.stages)
    revise = reviser_of(problem, plan, apply=options.replan == "auto") if by_rows and options.replan != "off" else None
    return Recovering(
        repair=repaired, backup_rounds=backup_rounds, seat=seats[job.device],
        addresses=tuple(dict.fromkeys(addresses)), revise=revise,
    )  # fmt: skip


def _wider(problem: Problem, devices: frozenset[str], options: RunOptions) -> Problem:
    """The problem with further devices of the cluster, which have joined."""
    if devices <= {device.id for device in problem.cluster.devices}:
        return problem
    file, cluster = load_cluster(options.cluster_path)
    cluster = cluster.restricted_to(tuple(devices | {device.id for device in problem.cluster.devices}))
    model = model_for_cluster(options.profiles, problem.model.model, file, cluster)
    return msgspec.structs.replace(problem, model=model, cluster=cluster)


def _with_joined(cluster: Cluster, trained: Trained, options: RunOptions) -> Cluster:
    """The cluster with devices that have joined."""
    known = {device.id for device in cluster.devices}
    new = {result.device for result in trained.results} - known
    return cluster if not new else load_cluster(options.cluster_path)[1].restricted_to(tuple(known | new))


def _print_progress(progress: Progress) -> None:
    """One JSON line per round; whoever launched this worker shows it."""
    # Nobody needs to listen: training goes on, and a launcher that is gone ends it by other means.
    with contextlib.suppress(OSError):
        sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
        sys.stdout.flush()


def _check_unfinished(folder: Path) -> None:
    """Refuse to write over a run of that name that has ended."""
    _check_absent(folder / "summary.json", "this run has run before")


def _check_unused(folder: Path, rank: int) -> None:
    """Refuse to write over an earlier run of that name; one that goes on would have taken this device in."""
    from greentrain.runtime.messages import rank_ledger_path

    _check_absent(
        rank_ledger_path(folder, rank), "this device has trained in this run before, and it has ended or nobody answers"
    )


def _check_absent(path: Path, seen: str) -> None:
    if path.exists():
        raise UsageError(
            f"{path}: exists already, {seen}.",
            hint="Choose another --run NAME, the same on every device; runs are never overwritten.",
        )


def restrain(entry: DeviceEntry) -> None:
    """Keep this worker to its processors and threads."""
    import torch

    threads = entry.threads
    if entry.cpus is not None:
        there = cpu_numbers(entry.cpus) & os.sched_getaffinity(0)
        if not there:
            raise UsageError(f"device {entry.id!r}: this machine has none of the processors {entry.cpus!r}.")
        os.sched_setaffinity(0, there)
        # torch counts the processors once, as it is loaded; more threads than processors wait for each other.
        threads = threads or min(len(there), torch.get_num_threads())
    if threads is not None:  # Else as many as measuring took: torch's own choice.
        torch.set_num_threads(threads)


def address_of(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--coordinator is {text!r}, expected HOST:PORT.", hint="For example 192.168.1.20:29500.")
    return host, int(port)
