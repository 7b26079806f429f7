"""What ``greentrain train`` does: launch the workers of a plan, or be one of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain._checks import require_id
from greentrain.cli._common import say
from greentrain.cli._problem import problem_of_plan
from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile, DeviceEntry
from greentrain.errors import GreentrainError, NotSupportedError, RunError, UsageError
from greentrain.files import canonical_sha256, read_json, utc_now, write_bytes, write_json, writing
from greentrain.ledger import LedgerRow, write_ledger
from greentrain.objective import Problem
from greentrain.plan import PLAN_SCHEMA, Estimate, Plan, parallelism_name
from greentrain.simulator import simulate, to_estimate
from greentrain.summary import SUMMARY_SCHEMA, Outcome, Summary
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from types import FrameType

    from greentrain.runtime.launch import WorkerCommand
    from greentrain.runtime.messages import Progress
    from greentrain.runtime.worker import Job, Trained

__all__ = ["RunOptions", "launch_run", "work"]

_CLUSTER_SCHEMA = "greentrain.cluster/1"
# Importing torch on a slow, throttled board takes minutes; the launcher sees dead workers at once anyway,
# and a person is told who is missing.
_JOIN_TIMEOUT_S = 600.0
# A person who starts the workers by hand may have mistyped the address.
_REACH_TIMEOUT_S = 15.0
# A peer that is silent for this long, or for many rounds, is lost; with all that follows it makes 30 s.
_MESSAGE_TIMEOUT_S = 20.0
_MESSAGE_TIMEOUT_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command's options.

    Attributes:
        run: Name of the run, or None for the next free one.
        plan_path: The plan file; a time-optimal plan beside it is kept with the run.
        cluster_path: cluster.toml.
        profiles: Folder of profiles.
        epochs: Passes over the data, or None for the workload's own.
        rounds: Stop after so many rounds, or None.
        seed: Weights and order of the samples.
        sysroot: Prefix of the sensors' files.
    """

    run: str | None
    plan_path: Path
    cluster_path: Path
    profiles: Path
    epochs: int | None
    rounds: int | None
    seed: int
    sysroot: Path


def launch_run(plan: Plan, options: RunOptions, *, quiet: bool) -> tuple[Path, Summary]:
    """Start one worker per device, watch them, and return the run's folder and summary.

    Raises:
        UsageError: The plan does not fit cluster, profiles or model, or the run's name is taken.
        RunError: A worker failed; the ledger so far and a summary with its status are written.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the same is written.
    """
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    entries = [_entry(file, device) for device in plan.devices]
    _check_network(entries)
    with _stopped_by_signals():
        return _launch(plan, problem, entries, options, quiet=quiet)


def _launch(
    plan: Plan, problem: Problem, entries: Sequence[DeviceEntry], options: RunOptions, *, quiet: bool
) -> tuple[Path, Summary]:
    from greentrain.cli._progress import Watcher
    from greentrain.runtime.launch import run_workers

    simulated = simulate(plan, problem)
    price = to_estimate(simulated, plan, problem)
    run, folder = _claim_folder(options.run, plan.model)
    try:
        _check_space(folder, plan)
        _write_plan_files(folder, plan, problem.cluster, simulated, options)
        commands = _commands(plan, entries, folder, run, options)
    except BaseException:
        # Nothing has started: the name is free again.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    started_utc = utc_now()
    watcher = Watcher(plan, price, "starting the workers …", quiet=quiet)
    status = "failed"
    try:
        with watcher:
            run_workers(commands, watcher.report)
        return folder, read_json(folder / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except RunError as error:
        error.hint = f"{error.hint or ''} Kept: {folder} ({watcher.steps_done} rounds).".strip()
        raise
    finally:
        _save_cut_run(folder, run, plan, problem.cluster, price, watcher.last, status, started_utc)


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
    _check_run_name(run)
    folder = Path("runs") / run
    _check_unused(folder, plan.devices.index(device))
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    entry = _entry(file, device)
    price = to_estimate(simulate(plan, problem), plan, problem)
    _restrain(entry)
    job = _job(plan, problem, options, entry, folder, run, price, host, port, launched=launched)
    if launched:
        _train(job, problem, options, entry, price, _print_progress)
        return None
    return _work_by_hand(job, problem, options, entry, price, quiet=quiet)


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
            _save_cut_run(
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
    meter = open_named(entry.meter, sysroot=options.sysroot, device=problem.cluster.device(job.device))
    with Sampler(meter) as sampler:
        trained = train(job, sampler, report, say)
    if trained is not None:
        if not (folder / "plan.json").exists():
            _write_plan_files(folder, plan, problem.cluster, simulate(plan, problem), options)
        _write_run(folder, job, trained, problem.cluster, price, package_versions(), started_utc)


@contextlib.contextmanager
def _stopped_by_signals() -> Generator[None, None, None]:
    """Let SIGTERM and SIGHUP stop a run as Ctrl-C does: in order, and only once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in changed:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    # Not where somebody chose otherwise, as nohup does.
    changed = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL
    ]  # fmt: skip
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _job(
    plan: Plan, problem: Problem, options: RunOptions, entry: DeviceEntry, folder: Path, run: str, price: Estimate,
    host: str, port: int, *, launched: bool,
) -> Job:  # fmt: skip
    import socket

    from greentrain.runtime.worker import Job
    from greentrain.workloads import load_workload
    from greentrain_datasets.loaders import load_dataset

    workload = load_workload(problem.model.workload or plan.model)
    return Job(
        run=run,
        plan=plan,
        plan_sha256=canonical_sha256(plan),
        device=entry.id,
        # Workers of one machine share its meter, unless the lab makes a machine of each.
        board=entry.board or os.environ.get("GREENTRAIN_LAB") or socket.gethostname(),
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


def _entry(file: ClusterFile, device: str) -> DeviceEntry:
    entry = next(entry for entry in file.device if entry.id == device)
    if entry.launch is None:
        raise UsageError(
            f"device {device!r} of the plan cannot run: cluster.toml gives it no launch.",
            hint="Schedule without --simulated, add launch = 'local' to it, or try greentrain simulate.",
        )
    return entry


def _check_network(entries: Sequence[DeviceEntry]) -> None:
    """Refuse workers that cannot reach each other: no route leads into a lab."""
    networks: dict[str, str] = {}
    for entry in entries:
        launch = entry.launch or ""
        networks.setdefault(launch.rpartition("/")[0] if launch.startswith("lab:") else "the host's network", entry.id)
    if len(networks) > 1:
        seen = " and ".join(f"{device!r} ({network})" for network, device in networks.items())
        raise UsageError(
            f"devices {seen} cannot reach each other.", hint="Schedule with --exclude or --include so that one is left."
        )


def _check_run_name(run: str) -> None:
    try:
        require_id(run, what="--run")
        if run.startswith("."):
            raise ValueError(f"--run is {run!r}, expected a name that does not start with a dot")
    except ValueError as error:
        raise UsageError(f"{error}.", hint="The run's files go to runs/NAME.") from error


def _check_unused(folder: Path, rank: int) -> None:
    """Refuse to write over an earlier run of that name."""
    from greentrain.runtime.messages import rank_ledger_path

    for path in (folder / "summary.json", rank_ledger_path(folder, rank)):
        if path.exists():
            raise UsageError(
                f"{path}: exists already, this run has run before.",
                hint="Choose another --run NAME, the same on every device; runs are never overwritten.",
            )


def _check_space(folder: Path, plan: Plan) -> None:
    """Refuse to train for hours what cannot be kept in the end."""
    needed_bytes = sum(stage.param_bytes for stage in plan.stages)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise RunError(
            f"{folder}: the disk has {format_quantity(free_bytes, 'bytes')} free, the trained model needs "
            f"{format_quantity(needed_bytes, 'bytes')}.",
            hint="Free some space, or run the command in a folder on another disk.",
        )


def _claim_folder(run: str | None, model: str) -> tuple[str, Path]:
    """Make the run's folder; of two commands at once only one gets a name."""
    if run is not None:
        _check_run_name(run)
    base = Path("runs")
    names = [run] if run is not None else [f"{model}-{number}" for number in range(1, 10_000)]
    for name in names:
        folder = base / name
        with writing(folder):
            base.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return name, folder
    raise UsageError(f"runs/{names[0]}: exists already.", hint="Choose another --run NAME; runs are never overwritten.")


def _write_plan_files(
    folder: Path, plan: Plan, cluster: Cluster, simulated: Sequence[LedgerRow], options: RunOptions
) -> None:
    from greentrain.cli.schedule import time_optimal_path

    write_json(folder / "plan.json", plan, schema=PLAN_SCHEMA)
    write_json(folder / "cluster.json", cluster, schema=_CLUSTER_SCHEMA)
    write_ledger(folder / "predicted.csv", simulated)
    beside = time_optimal_path(options.plan_path)
    if beside.exists():
        fastest = read_json(beside, Plan, schema=PLAN_SCHEMA)
        # A plan file left over from another model or cluster would compare apples with pears.
        if (fastest.structure_sha256, fastest.cluster, fastest.batch) == (
            plan.structure_sha256, plan.cluster, plan.batch,
        ):  # fmt: skip
            write_json(folder / "time_optimal.plan.json", fastest, schema=PLAN_SCHEMA)


def _commands(
    plan: Plan, entries: Sequence[DeviceEntry], folder: Path, run: str, options: RunOptions
) -> list[WorkerCommand]:
    from greentrain.runtime.launch import WorkerCommand
    from greentrain.runtime.network import free_port

    first = entries[0]
    host = first.address or "127.0.0.1"
    port = free_port()
    commands: list[WorkerCommand] = []
    for entry in entries:
        argv = [
            sys.executable, "-m", "greentrain.cli", "train", str(folder / "plan.json"), "--as", entry.id,
            "--coordinator", f"{host}:{port}", "--run", run, "--cluster", str(options.cluster_path),
            "--profiles", str(options.profiles), "--seed", str(options.seed),
        ]  # fmt: skip
        argv += ["--epochs", str(options.epochs)] if options.epochs is not None else []
        argv += ["--rounds", str(options.rounds)] if options.rounds is not None else []
        threads = str(entry.threads or 1)
        argv, env = _placed(entry, argv, {"OMP_NUM_THREADS": threads, "GREENTRAIN_DEVICE_ID": entry.id})
        log = folder / "logs" / f"{entry.id}.log"
        commands.append(WorkerCommand(device=entry.id, argv=argv, env=env, log=log))
    return commands


def _placed(entry: DeviceEntry, argv: list[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command as it is started from here, by the entry's launch."""
    launch = entry.launch or ""
    if launch == "local" and entry.quota_percent is not None:
        from greentrain_harness.lab.quota import quota_argv, require_quota

        require_quota(entry.quota_percent)
        return quota_argv(entry.quota_percent, argv), env
    if launch == "local":
        return argv, env
    if launch.startswith("lab:"):
        from greentrain_harness.lab import exec_argv, read_lab

        name, _, node = launch.removeprefix("lab:").partition("/")
        inside, lab_env = exec_argv(read_lab(name), node, argv)
        return inside, {**env, **lab_env}
    raise NotSupportedError(
        f"device {entry.id!r} has launch {launch!r}, which this command cannot start.",
        hint="Run on every board: greentrain train PLAN --as DEVICE --coordinator HOST:PORT --run NAME.",
    )


def _restrain(entry: DeviceEntry) -> None:
    """Keep this worker to its processors and threads."""
    import torch

    if entry.cpus is not None:
        wanted: set[int] = set()
        for part in entry.cpus.split(","):
            first, _, last = part.partition("-")
            wanted |= set(range(int(first), int(last or first) + 1))
        there = wanted & os.sched_getaffinity(0)
        if not there:
            raise UsageError(f"device {entry.id!r}: this machine has none of the processors {entry.cpus!r}.")
        os.sched_setaffinity(0, there)
    torch.set_num_threads(entry.threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or 1)


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--coordinator is {text!r}, expected HOST:PORT.", hint="For example 192.168.1.20:29500.")
    return host, int(port)


def _write_run(
    folder: Path, job: Job, trained: Trained, cluster: Cluster, price: Estimate, versions: dict[str, str],
    started_utc: str,
) -> None:  # fmt: skip
    from safetensors.torch import save

    from greentrain.runtime.evaluate import accuracy, baseline
    from greentrain.runtime.finish import board_split, measured_outcome, predicted_outcome, round_losses
    from greentrain_harness.environment import host_description

    plan = job.plan
    write_bytes(
        folder / "model.safetensors",
        save(trained.model.parameters, metadata={"model": plan.model, "plan_sha256": job.plan_sha256}),
    )
    rows = board_split(trained.results)
    write_ledger(folder / "ledger.csv", rows)
    losses = round_losses(trained.results)
    per_epoch = [losses[i : i + trained.rounds_per_epoch] for i in range(0, len(losses), trained.rounds_per_epoch)]
    peaks = {device: result.peak_bytes for device, result in zip(plan.devices, trained.results, strict=True)}
    measured = measured_outcome(rows, plan, cluster, duration_s=trained.duration_s, peak_bytes=peaks)
    summary = _summary(
        job.run, plan, rows, predicted_outcome(price), measured, status="finished", started_utc=started_utc
    )
    summary = msgspec.structs.replace(
        summary,
        meters={device: result.meter for device, result in zip(plan.devices, trained.results, strict=True)},
        epochs=len(losses) / trained.rounds_per_epoch,
        duration_s=trained.duration_s,
        loss=losses[-1],
        loss_by_epoch=tuple(sum(part) / len(part) for part in per_epoch),
        accuracy=accuracy(job.workload, job.seed, trained.model, job.data),
        accuracy_baseline=baseline(job.data),
        test_samples=len(job.data.test_targets),
        dataset=f"{job.data.name}: {job.data.source}",
        host=host_description(),
        versions=versions,
    )
    write_json(folder / "summary.json", summary, schema=SUMMARY_SCHEMA)


def _save_cut_run(
    folder: Path, run: str, plan: Plan, cluster: Cluster, price: Estimate, last: Progress | None, status: str,
    started_utc: str,
) -> None:  # fmt: skip
    """Save what the ranks wrote before a run was cut short; nothing to do for a finished one.

    Called while an error is on its way: what fails here is a remark and never hides that error.
    """
    if (folder / "summary.json").exists():
        return
    try:
        _write_cut_run(folder, run, plan, cluster, price, last, status, started_utc)
    except GreentrainError as error:
        say(f"Also: {error.message}")


def _write_cut_run(
    folder: Path, run: str, plan: Plan, cluster: Cluster, price: Estimate, last: Progress | None, status: str,
    started_utc: str,
) -> None:  # fmt: skip
    from greentrain.runtime.finish import measured_outcome, merge_rank_ledgers, predicted_outcome

    rows, damaged = merge_rank_ledgers(folder, len(plan.devices))
    for sentence in damaged:
        say(f"Left out of {folder}/ledger.csv: {sentence}")
    measured = measured_outcome(rows, plan, cluster, duration_s=None, peak_bytes={})
    summary = _summary(run, plan, rows, predicted_outcome(price), measured, status=status, started_utc=started_utc)
    if last is not None:
        summary = msgspec.structs.replace(summary, loss=last.loss, duration_s=last.elapsed_s)
    write_json(folder / "summary.json", summary, schema=SUMMARY_SCHEMA)


def _summary(
    run: str, plan: Plan, rows: Sequence[LedgerRow], predicted: Outcome, measured: Outcome, *, status: str,
    started_utc: str,
) -> Summary:  # fmt: skip
    """The part of a summary that finished and cut runs share; the rest is not known."""
    from greentrain.ledger import total_energy_j, totals_j
    from greentrain.runtime.finish import complete_rounds

    steps = [row for row in rows if row.action == "step"]
    rounds = complete_rounds(steps, len(plan.devices))
    return Summary(
        run=run,
        status=status,
        model=plan.model,
        plan_sha256=canonical_sha256(plan),
        parallelism=parallelism_name(plan),
        devices=plan.devices,
        meters={},
        samples=rounds * plan.batch,
        rounds=rounds,
        epochs=0.0,
        duration_s=0.0,
        energy_j=total_energy_j(steps),
        energy_j_by_device=totals_j(steps, lambda row: row.device),
        joules_per_sample=measured.joules_per_sample,
        error_j_per_sample=measured.error_j_per_sample,
        source=measured.source,
        samples_per_s=measured.samples_per_s,
        loss=None,
        loss_by_epoch=(),
        accuracy=None,
        accuracy_baseline=None,
        test_samples=0,
        predicted=predicted,
        measured=measured,
        dataset="",
        host="",
        versions={},
        started_utc=started_utc,
    )
