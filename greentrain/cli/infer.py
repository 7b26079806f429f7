"""greentrain infer: forward passes of a plan, with the latency and the joules of a request."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, sysroot_option
from greentrain.cli._problem import load_plan
from greentrain.files import write_bytes, write_json
from greentrain.plan import Plan, parallelism_name
from greentrain.power import Source

if TYPE_CHECKING:
    from greentrain.runtime.infer import Inferred

__all__ = ["INFERENCE_SCHEMA", "Inference", "command", "summarise", "write_inference"]

INFERENCE_SCHEMA = "greentrain.inference/1"
_WARM_UP_N = 3


class Inference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``runs/NAME/inference.json`` holds.

    Attributes:
        run: Name of the run.
        model: The workload.
        parallelism: How its devices shared the work.
        devices: The devices.
        rows: Samples per request.
        requests: Requests that were timed.
        latency_median_s: Median of the seconds from a request's start to its result.
        latency_p95_s: 95th percentile of the same.
        samples_per_s: Samples over the time of all requests.
        joules_per_request: Joules of all devices over the requests; None where a meter saw too little.
        error_j_per_request: Its uncertainty.
        source: Whether measured or modelled.
        meters: Meter of each device.
        sent_bytes_per_request: Payload that each device sends to others in a request.
    """

    run: str
    model: str
    parallelism: str
    devices: tuple[str, ...]
    rows: int
    requests: int
    latency_median_s: float
    latency_p95_s: float
    samples_per_s: float
    joules_per_request: float | None
    error_j_per_request: float | None
    source: Source | str
    meters: dict[str, str]
    sent_bytes_per_request: dict[str, int]


@click.command("infer")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--run", "run", metavar="NAME", help="Folder under runs/; the model's name and a number by default.")
@click.option("--requests", "requests_n", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), help="Samples per request; the plan's micro-batch by default.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="A run's model.safetensors.")
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Weights that no file gives.")
@click.option("--as", "device", metavar="DEVICE", help="Be this device's worker; start one on every device.")
@click.option("--coordinator", metavar="HOST:PORT", help="Address of the plan's first device, with --as.")
@json_option
@sysroot_option
def command(
    plan_path: Path, run: str | None, requests_n: int, rows: int | None, weights: Path | None, cluster_path: Path,
    profiles: Path, seed: int, device: str | None, coordinator: str | None, as_json: bool, sysroot: Path,
) -> None:  # fmt: skip
    """Answer requests with PLAN, one after the other, on held-out samples.

    Latency is the time from a request's start on all devices to its result on the plan's first one.
    """
    from greentrain.cli._infer import RequestOptions, launch_requests, serve
    from greentrain.cli._run import RunOptions

    if (device is None) != (coordinator is None):
        raise click.UsageError("--as and --coordinator go together.")
    options = RunOptions(
        run=run, plan_path=plan_path, cluster_path=cluster_path, profiles=profiles, epochs=None, rounds=requests_n,
        seed=seed, sysroot=sysroot, recovery=False,
    )  # fmt: skip
    requests = RequestOptions(requests_n=requests_n, warm_up_n=_WARM_UP_N, rows=rows, weights=weights)
    plan = load_plan(plan_path)
    if device is not None and coordinator is not None:
        serve(plan, options, requests, device=device, coordinator=coordinator)
        return
    folder, found = launch_requests(plan, options, requests, quiet=as_json)
    if as_json:
        emit_json(found)
    else:
        click.echo(_text(folder, found))


def summarise(run: str, plan: Plan, inferred: Inferred) -> Inference:
    """What the requests cost, all devices together."""
    latencies = sorted(inferred.latency_s_R)
    requests_n = len(latencies)
    counted = [entry for entry in inferred.devices if entry.counts]
    joules = [entry.energy_j for entry in counted if entry.energy_j is not None]
    errors = [entry.error_j for entry in counted if entry.error_j is not None]
    whole = len(joules) == len(counted) > 0
    sources = {entry.source for entry in counted}
    return Inference(
        run=run,
        model=plan.model,
        parallelism=parallelism_name(plan),
        devices=plan.devices,
        rows=plan.batch,
        requests=requests_n,
        latency_median_s=statistics.median(latencies),
        latency_p95_s=latencies[max(-(-95 * requests_n // 100) - 1, 0)],
        samples_per_s=requests_n * plan.batch / inferred.duration_s,
        joules_per_request=sum(joules) / requests_n if whole else None,
        error_j_per_request=sum(errors) / requests_n if whole and errors else None,
        source=sources.pop() if len(sources) == 1 else "mixed" if sources else "modelled",
        meters={entry.device: entry.meter for entry in inferred.devices},
        sent_bytes_per_request={entry.device: entry.sent_bytes for entry in inferred.devices},
    )


def write_inference(folder: Path, found: Inference, inferred: Inferred) -> None:
    """Write ``requests.csv`` (one row per request) and ``inference.json``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["request", "latency_s", "predictions"])
    for number, (latency_s, predictions) in enumerate(zip(inferred.latency_s_R, inferred.predictions_R, strict=True)):
        writer.writerow([number, f"{latency_s:.6f}", " ".join(map(str, predictions.flatten().tolist()))])
    write_bytes(folder / "requests.csv", text.getvalue().encode())
    write_json(folder / "inference.json", found, schema=INFERENCE_SCHEMA)


def _text(folder: Path, found: Inference) -> str:
    joules = found.joules_per_request
    energy = "not measured" if joules is None else f"{joules:.4g} J/request, source={found.source}"
    return "\n".join(
        [
            f"{found.run}: {found.model}, {found.parallelism} on {', '.join(found.devices)}, "
            f"{found.requests} requests of {found.rows} samples",
            f"  latency     median {1e3 * found.latency_median_s:.4g} ms, 95 % within "
            f"{1e3 * found.latency_p95_s:.4g} ms",
            f"  energy      {energy}",
            f"  throughput  {found.samples_per_s:.4g} samples/s",
            f"Written: {folder}/requests.csv, inference.json",
        ]
    )
