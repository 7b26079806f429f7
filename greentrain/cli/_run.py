"""Starting a run: one worker per device of the plan, watched to its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from greentrain._checks import require_id
from greentrain.cli._common import say
from greentrain.cli._problem import problem_of_plan
from greentrain.cli._run_files import save_cut_run, write_plan_files
from greentrain.cli._training_options import training_words
from greentrain.cluster_file import ClusterFile, DeviceEntry, cpu_numbers
from greentrain.errors import NotSupportedError, RunError, UsageError
from greentrain.files import read_json, utc_now, writing
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.runtime.options import TrainingOptions
from greentrain.simulator import simulate, to_estimate
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from types import FrameType

    from greentrain.runtime.launch import WorkerCommand

__all__ = [
    "RunOptions",
    "check_network",
    "check_processors",
    "check_run_name",
    "claim_folder",
    "coordinator_address",
    "launch_run",
    "placed",
    "runnable_entry",
    "stopped_by_signals",
    "worker_commands",
]


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
        replan: What is done when measured rounds disagree with the plan: ``off``, ``offer`` (say so) or ``auto``.
        recovery: Whether training goes on when a device is lost.
        losses_per_hour: How many devices are lost per hour, to weigh copies against rounds done again.
        checkpoint_rounds: Rounds between checkpoints; None: every ten minutes; 0: never.
        resume: The run, or the checkpoint of one, to go on from.
        training: How gradients travel, and in what is computed.
        torch_device: Where this worker, or all that are started here, compute.
    """

    run: str | None
    plan_path: Path
    cluster_path: Path
    profiles: Path
    epochs: int | None
    rounds: int | None
    seed: int
    sysroot: Path
    replan: str = "offer"
    recovery: bool = True
    losses_per_hour: float = 0.1
    checkpoint_rounds: int | None = None
    resume: Path | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    torch_device: str = "cpu"


def launch_run(plan: Plan, options: RunOptions, *, quiet: bool) -> tuple[Path, Summary]:
    """Start one worker per device, watch them, and return the run's folder and summary.

    Raises:
        UsageError: The plan does not fit cluster, profiles or model, or the run's name is taken.
        RunError: A worker failed; the ledger so far and a summary with its status are written.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the same is written.
    """
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    entries = [runnable_entry(file, device) for device in plan.devices]
    check_network(entries)
    check_processors(entries, options.sysroot)
    with stopped_by_signals():
        return _launch(plan, problem, entries, options, quiet=quiet)


def _launch(
    plan: Plan, problem: Problem, entries: Sequence[DeviceEntry], options: RunOptions, *, quiet: bool
) -> tuple[Path, Summary]:
    from greentrain.cli._progress import Watcher
    from greentrain.cli._remote import fetch_runs, send_run_files
    from greentrain.runtime.launch import run_workers

    simulated = simulate(plan, problem)
    price = to_estimate(simulated, plan, problem)
    run, folder = claim_folder(options.run, plan.model)
    try:
        _check_space(folder, plan)
        write_plan_files(folder, plan, problem, simulated, options.plan_path)
        send_run_files(entries, folder, options, problem.model.workload)
        commands = worker_commands("train", entries, folder, run, options, _train_words(options))
    except BaseException:
        # Nothing has started: the name is free again.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    started_utc = utc_now()
    watcher = Watcher(plan, price, "starting the workers …", quiet=quiet)
    status = "failed"
    try:
        with watcher:
            run_workers(commands, watcher.report, lost=say if options.recovery else None)
        fetch_runs(entries, folder)
        return folder, read_json(folder / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except RunError as error:
        error.hint = f"{error.hint or ''} Kept: {folder} ({watcher.steps_done} rounds).".strip()
        raise
    finally:
        if not (folder / "summary.json").exists():
            fetch_runs(entries, folder, failed=True)
        save_cut_run(folder, run, plan, problem.cluster, price, watcher.last, status, started_utc)


@contextlib.contextmanager
def stopped_by_signals() -> Generator[None, None, None]:
    """Let SIGTERM and SIGHUP stop a run as Ctrl-C does: in order, clocks and caps restored, and only once."""

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


def runnable_entry(file: ClusterFile, device: str) -> DeviceEntry:
    entry = next(entry for entry in file.device if entry.id == device)
    if entry.launch is None:
        raise UsageError(
            f"device {device!r} of the plan cannot run: cluster.toml gives it no launch.",
            hint="Schedule without --simulated, add launch = 'local' to it, or try greentrain simulate.",
        )
    return entry


def check_network(entries: Sequence[DeviceEntry]) -> None:
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


def check_processors(entries: Sequence[DeviceEntry], sysroot: Path) -> None:
    """Refuse local workers that share processors where no sensor sees the board.

    Each would be modelled with the idle power of the same processors: joules counted twice.
    """
    from greentrain_harness.meters import choose

    taken: dict[int, str] = {}
    for entry in entries:
        modelled = entry.launch == "local" and choose(entry.meter, sysroot=sysroot) == "modelled"
        if not modelled or entry.quota_percent is not None:
            continue
        for cpu in cpu_numbers(entry.cpus) if entry.cpus else os.sched_getaffinity(0):
            other = taken.setdefault(cpu, entry.id)
            if other != entry.id:
                raise UsageError(
                    f"devices {other!r} and {entry.id!r} share processor {cpu} of this machine, and no sensor sees it: "
                    "its idle power would count twice.",
                    hint="Give each its own in cluster.toml, such as cpus = '0' and cpus = '1', or a quota_percent.",
                )


def check_run_name(run: str) -> None:
    try:
        require_id(run, what="--run")
        if run.startswith("."):
            raise ValueError(f"--run is {run!r}, expected a name that does not start with a dot")
    except ValueError as error:
        raise UsageError(f"{error}.", hint="The run's files go to runs/NAME.") from error


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


def claim_folder(run: str | None, model: str) -> tuple[str, Path]:
    """Make the run's folder; of two commands at once only one gets a name."""
    if run is not None:
        check_run_name(run)
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


def worker_commands(
    command: str, entries: Sequence[DeviceEntry], folder: Path, run: str, options: RunOptions, words: Sequence[str]
) -> list[WorkerCommand]:
    """How to start one worker per device.

    Args:
        command: The subcommand that every worker runs.
        entries: The devices, that of rank 0 first.
        folder: Folder of the run, which holds its plan.
        run: Name of the run.
        options: The command's options.
        words: Further arguments of every worker.
    """
    from greentrain.cli._remote import REMOTE_CLUSTER, REMOTE_PROFILES
    from greentrain.runtime.launch import WorkerCommand
    from greentrain.runtime.network import free_port
    from greentrain.runtime.remote import host_of, remote_argv

    coordinator = f"{coordinator_address(entries)}:{free_port()}"
    commands: list[WorkerCommand] = []
    for entry in entries:
        host = host_of(entry)
        cluster, profiles = (
            (str(options.cluster_path), str(options.profiles)) if host is None else (REMOTE_CLUSTER, REMOTE_PROFILES)
        )
        arguments = [
            command, str(folder / "plan.json"), "--as", entry.id, "--coordinator", coordinator, "--run", run,
            "--cluster", cluster, "--profiles", profiles, "--seed", str(options.seed), *words,
        ]  # fmt: skip
        env = {"GREENTRAIN_DEVICE_ID": entry.id}
        if entry.threads is not None:
            env["OMP_NUM_THREADS"] = str(entry.threads)
        if entry.launch == "local":
            # A node of a lab has sensors of its own.
            arguments += ["--sysroot", str(options.sysroot)]
        if host is not None:
            argv, env = remote_argv(host, arguments, env), {}
        else:
            argv, env = placed(entry, [sys.executable, "-m", "greentrain.cli", *arguments], env)
        log = folder / "logs" / f"{entry.id}.log"
        commands.append(WorkerCommand(device=entry.id, argv=argv, env=env, log=log))
    return commands


def _train_words(options: RunOptions) -> list[str]:
    found = ["--epochs", str(options.epochs)] if options.epochs is not None else []
    found += ["--rounds", str(options.rounds)] if options.rounds is not None else []
    return [*found, *_recovery_arguments(options), *training_words(options.training, options.torch_device)]


def _recovery_arguments(options: RunOptions) -> list[str]:
    found = ["--losses-per-hour", str(options.losses_per_hour)] if options.recovery else ["--no-recovery"]
    found += ["--replan", options.replan]
    if options.checkpoint_rounds is not None:
        found += ["--checkpoint-every", str(options.checkpoint_rounds or "never")]
    return found if options.resume is None else [*found, "--resume", str(options.resume)]


def coordinator_address(entries: Sequence[DeviceEntry]) -> str:
    """Where the other workers reach the first one."""
    from greentrain.runtime.network import address_towards
    from greentrain.runtime.remote import host_of

    hosts = [host_of(entry) for entry in entries]
    if entries[0].address is not None:
        return entries[0].address
    if hosts[0] is not None:
        return hosts[0].address
    elsewhere = next((host.address for host in hosts if host is not None), None)
    return "127.0.0.1" if elsewhere is None else address_towards(elsewhere)


def placed(entry: DeviceEntry, argv: list[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
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
