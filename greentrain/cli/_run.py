"""What ``greentrain train`` does: launch the workers of a plan, or be one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._problem import problem_of_plan
from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile, DeviceEntry
from greentrain.errors import NotSupportedError, UsageError
from greentrain.files import canonical_sha256, read_json, utc_now, write_bytes, write_json, writing
from greentrain.ledger import LedgerRow, write_ledger
from greentrain.plan import PLAN_SCHEMA, Estimate, Plan, parallelism_name
from greentrain.simulator import simulate, to_estimate
from greentrain.summary import SUMMARY_SCHEMA, Outcome, Summary

if TYPE_CHECKING:
    from greentrain.runtime.launch import WorkerCommand
    from greentrain.runtime.worker import Job, Progress, Trained
    from greentrain.training_data import TrainingData
    from greentrain.workloads.workload import Workload

__all__ = ["RunOptions", "launch_run", "work"]

_CLUSTER_SCHEMA = "greentrain.cluster/1"
# Importing torch on a slow, throttled board takes minutes; the launcher sees dead workers at once anyway.
_JOIN_TIMEOUT_S = 600.0
# A peer that is silent for this long, or for many rounds, is lost.
_MESSAGE_TIMEOUT_S = 25.0
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
    """
    from greentrain.cli._progress import Watcher
    from greentrain.errors import RunError
    from greentrain.runtime.launch import run_workers

    file, problem = problem_of_plan(plan, options.cluster_path, options.profiles)
    entries = [_entry(file, device) for device in plan.devices]
    simulated = simulate(plan, problem)
    price = to_estimate(simulated, plan, problem)
    run, folder = _claim_folder(options.run, plan.model)
    _write_plan_files(folder, plan, problem.cluster, simulated, options)
    started_utc = utc_now()
    commands = _commands(plan, entries, folder, run, options)
    watcher = Watcher(plan, price, quiet=quiet)
    status = "failed"
    try:
        with watcher:
            run_workers(commands, watcher.report)
        return folder, read_json(folder / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except RunError as error:
        hint = f"{error.hint or ''} Kept: {folder}/ledger.csv ({watcher.steps_done} rounds).".strip()
        error.hint = hint
        raise
    finally:
        if not (folder / "summary.json").exists():
            _write_cut_run(folder, run, plan, problem.cluster, price, watcher.last, status, started_utc)


def work(plan: Plan, options: RunOptions, *, device: str, coordinator: str) -> None:
    """Be one device's worker; rank 0 writes the run's files.

    Raises:
        UsageError: The device is not in the plan, or plan, model or data differ between the ranks.
        RunError: A peer was lost.
    """
    from greentrain.runtime.worker import train
    from greentrain.workloads import load_workload
    from greentrain_datasets.loaders import load_dataset
    from greentrain_harness.environment import package_versions
    from greentrain_harness.meters import open_named
    from greentrain_harness.sampler import Sampler

    if device not in plan.devices:
        raise UsageError(f"device {device!r} is not in the plan.", hint=f"It has: {', '.join(plan.devices)}.")
    file, problem = problem_of_plan(plan, options.cluster_path, options.profiles)
    entry = _entry(file, device)
    _restrain(entry)
    host, port = _address(coordinator)
    workload = load_workload(plan.model)
    data = load_dataset(workload.dataset)
    run = options.run or f"{plan.model}-manual"
    folder = Path("runs") / run
    price = to_estimate(simulate(plan, problem), plan, problem)
    job = _job(plan, options, entry, workload, data, folder, run, price, host, port)
    started_utc = utc_now()
    meter = open_named(entry.meter, sysroot=options.sysroot, device=problem.cluster.device(device))
    with Sampler(meter) as sampler:
        trained = train(job, sampler, _print_progress)
    if trained is not None:
        if not (folder / "plan.json").exists():
            _write_plan_files(folder, plan, problem.cluster, simulate(plan, problem), options)
        _write_run(folder, job, trained, problem.cluster, price, package_versions(), started_utc)


def _job(
    plan: Plan, options: RunOptions, entry: DeviceEntry, workload: Workload, data: TrainingData, folder: Path,
    run: str, price: Estimate, host: str, port: int,
) -> Job:  # fmt: skip
    import socket

    from greentrain.runtime.worker import Job

    return Job(
        run=run,
        plan=plan,
        plan_sha256=canonical_sha256(plan),
        device=entry.id,
        # Workers of one machine share its meter, unless the lab makes a machine of each.
        board=entry.board or os.environ.get("GREENTRAIN_LAB") or socket.gethostname(),
        workload=workload,
        data=data,
        epochs=options.epochs or workload.epochs,
        max_rounds=options.rounds,
        seed=options.seed,
        run_dir=folder,
        host=host,
        port=port,
        join_timeout_s=_JOIN_TIMEOUT_S,
        message_timeout_s=max(_MESSAGE_TIMEOUT_S, _MESSAGE_TIMEOUT_ROUNDS * price.step_s),
    )


def _print_progress(progress: Progress) -> None:
    """One JSON line per round; whoever launched this worker shows it."""
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


def _claim_folder(run: str | None, model: str) -> tuple[str, Path]:
    """Make the run's folder; of two commands at once only one gets a name."""
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


def _write_cut_run(
    folder: Path, run: str, plan: Plan, cluster: Cluster, price: Estimate, last: Progress | None, status: str,
    started_utc: str,
) -> None:  # fmt: skip
    """Save what the ranks wrote before the run was cut short."""
    from greentrain.runtime.finish import measured_outcome, merge_rank_ledgers, predicted_outcome

    rows = merge_rank_ledgers(folder, len(plan.devices))
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

    steps = [row for row in rows if row.action == "step"]
    rounds = len(steps) // len(plan.devices)
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
