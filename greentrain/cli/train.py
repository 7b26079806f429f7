"""``greentrain train``: run a plan. Without ``--as`` it starts every worker; with it, it is one of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, sysroot_option
from greentrain.cli._problem import load_plan
from greentrain.cli._training_options import read_training_options, training_options
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from greentrain.runtime.options import Precision
    from greentrain.summary import Recovery, Summary

__all__ = ["command"]


@click.command("train")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--run", "run", metavar="NAME", help="Folder under runs/; the model's name and a number by default.")
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data; the workload's own by default.")
@click.option("--rounds", type=click.IntRange(min=1), help="Stop after so many optimizer steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Weights and order of the samples.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on from the last checkpoint of runs/NAME.")
@click.option(
    "--checkpoint-every",
    "checkpoint",
    metavar="ROUNDS|never",
    help="Rounds between checkpoints; every ten minutes by default.",
)
@click.option(
    "--replan",
    type=click.Choice(["off", "offer", "auto"]),
    default="offer",
    show_default=True,
    help="Where measured rounds disagree with the plan: nothing, say what would gain, or move rows and layers.",
)
@click.option(
    "--recovery/--no-recovery",
    default=True,
    show_default=True,
    help="Go on with the other devices when one is lost, and take it back when its worker is started again.",
)
@click.option(
    "--losses-per-hour",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="Devices lost per hour: weighs copies of weights against rounds that are done again.",
)
@training_options
@click.option("--as", "device", metavar="DEVICE", help="Be this device's worker; start one on every device.")
@click.option(
    "--coordinator",
    metavar="HOST:PORT",
    help="Address of the plan's first device, with --as; further hosts after commas to find a run that goes on.",
)
@click.option(
    "--from-environment",
    is_flag=True,
    help="Be the worker that torchrun's, Slurm's or Kubernetes' variables say (RANK, SLURM_PROCID, …).",
)
@json_option
@sysroot_option
def command(
    plan_path: Path, run: str | None, cluster_path: Path, profiles: Path, epochs: int | None, rounds: int | None,
    seed: int, resume: Path | None, checkpoint: str | None, replan: str, recovery: bool, losses_per_hour: float,
    compress: str, precision: Precision, torch_device: str,
    device: str | None, coordinator: str | None, from_environment: bool, as_json: bool, sysroot: Path,
) -> None:  # fmt: skip
    """Run PLAN: ledger, summary and trained model under runs/NAME.

    The devices that cluster.toml launches (local, ssh:USER@HOST) are started here. Where your boards share no
    launcher, run the same command by hand on every board of the plan with --as DEVICE --coordinator HOST:PORT
    --run NAME; under torchrun, Slurm or Kubernetes with --from-environment --run NAME.
    """
    from greentrain.cli._run import RunOptions, launch_run
    from greentrain.cli._work import work
    from greentrain.runtime.rank_environment import seat_from

    plan = load_plan(plan_path)
    options = RunOptions(
        run=run, plan_path=plan_path, cluster_path=cluster_path, profiles=profiles, epochs=epochs, rounds=rounds,
        seed=seed, sysroot=sysroot, replan=replan, recovery=recovery, losses_per_hour=losses_per_hour,
        checkpoint_rounds=_checkpoint_rounds(checkpoint), resume=resume,
        training=read_training_options(compress, precision), torch_device=torch_device,
    )  # fmt: skip
    if (device is None) != (coordinator is None):
        raise click.UsageError("--as and --coordinator go together.")
    if from_environment:
        if device is not None:
            raise click.UsageError("--from-environment says what --as and --coordinator say; give one of both.")
        seat = seat_from(os.environ, plan.devices, hostname=socket.gethostname())
        device, coordinator = seat.device, f"{seat.host}:{seat.port}"
    if device is not None and coordinator is not None:
        done = work(plan, options, device=device, coordinator=coordinator, quiet=as_json)
    else:
        done = launch_run(plan, options, quiet=as_json)
    if done is None:
        return
    folder, summary = done
    if as_json:
        emit_json(summary)
    else:
        click.echo(_text(folder, summary))


def _recovery_text(recovery: Recovery) -> str:
    names = [f"{', '.join(devices)} {what}" for devices, what in ((recovery.lost, "lost"), (recovery.joined, "joined"))
             if devices] or ["a new plan"]  # fmt: skip
    cost = "joules not measured" if recovery.energy_j is None else format_quantity(recovery.energy_j, "energy")
    repaired = "?" if recovery.repaired_s is None else f"{recovery.repaired_s:.2f} s"
    return f"{' and '.join(names)} in round {recovery.round + 1}, repaired in {repaired}, {cost}"


def _checkpoint_rounds(text: str | None) -> int | None:
    if text is None or text == "never":
        return None if text is None else 0
    if not text.isdigit() or int(text) == 0:
        raise click.BadParameter(
            f"{text!r} is neither a number of rounds nor 'never'.", param_hint="--checkpoint-every"
        )
    return int(text)


def _text(folder: Path, summary: Summary) -> str:
    measured, predicted = summary.measured, summary.predicted

    def beside(measured_value: float | None, predicted_value: float | None, unit: str) -> str:
        if measured_value is None or predicted_value is None:
            return "not measured"
        difference = predicted_value / measured_value - 1
        return f"{measured_value:.4g} {unit} (predicted {predicted_value:.4g}, {difference:+.1%})"

    error = summary.error_j_per_sample
    lines = [
        f"{summary.run}: {summary.model}, {summary.parallelism} on {', '.join(summary.devices)}, "
        f"{summary.rounds} rounds, {summary.epochs:.3g} epochs in {format_quantity(summary.duration_s, 'time')}",
        f"  energy      {beside(measured.joules_per_sample, predicted.joules_per_sample, 'J/sample')}"
        f"{f' ± {error:.2g}' if error is not None else ''}, source={summary.source}",
        f"  throughput  {beside(measured.samples_per_s, predicted.samples_per_s, 'samples/s')}",
        f"  total       {format_quantity(summary.energy_j, 'energy')}",
    ]
    if summary.metered_rounds is not None and summary.metered_rounds < summary.rounds:
        lines.append(
            f"  sensors     silent in {summary.rounds - summary.metered_rounds} of {summary.rounds} rounds: the total "
            "lacks them, J/sample is of the others"
        )
    if summary.recoveries:
        lines.append(f"  recoveries  {'; '.join(_recovery_text(recovery) for recovery in summary.recoveries)}")
    if summary.loss is not None:
        lines.append(f"  loss        {summary.loss:.4f}")
    if summary.accuracy is not None and summary.accuracy_baseline is not None:
        lines.append(
            f"  accuracy    {summary.accuracy:.1%} of {summary.test_samples} held-out samples "
            f"(most frequent class: {summary.accuracy_baseline:.1%})"
        )
    lines.append(f"Written: {folder}/ledger.csv, summary.json, model.safetensors; next: greentrain report {folder}")
    return "\n".join(lines)
