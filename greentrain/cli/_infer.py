"""Starting the workers of ``greentrain infer``, and one worker's part."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from greentrain.cli._common import say
from greentrain.cli._problem import problem_of_plan
from greentrain.cli._run import (
    RunOptions,
    check_network,
    check_processors,
    claim_folder,
    runnable_entry,
    stopped_by_signals,
    worker_commands,
)
from greentrain.cli.infer import INFERENCE_SCHEMA, Inference, summarise, write_inference
from greentrain.errors import UsageError
from greentrain.files import read_json, write_json
from greentrain.plan import PLAN_SCHEMA, Plan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RequestOptions", "launch_requests", "serve"]


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """The command's options besides those of a run.

    Attributes:
        requests_n: Requests that are timed.
        warm_up_n: Requests before them.
        rows: Samples per request; None: the plan's micro-batch.
        weights: Trained parameters; None: those of the seed.
    """

    requests_n: int
    warm_up_n: int
    rows: int | None
    weights: Path | None


def launch_requests(
    plan: Plan, options: RunOptions, requests: RequestOptions, *, quiet: bool
) -> tuple[Path, Inference]:
    """Start one worker per device and wait for their end; the run's folder and summary.

    Raises:
        UsageError: The plan does not fit cluster, profiles or rows, or the run's name is taken.
        RunError: A worker failed.
    """
    from greentrain.cli._remote import fetch_runs, send_run_files
    from greentrain.runtime.infer import request_plan
    from greentrain.runtime.launch import run_workers

    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    request_plan(plan, requests.rows or plan.micro_batch)
    entries = [runnable_entry(file, device) for device in plan.devices]
    check_network(entries)
    check_processors(entries, options.sysroot)
    run, folder = claim_folder(options.run, plan.model)
    try:
        write_json(folder / "plan.json", plan, schema=PLAN_SCHEMA)
        words = ["--requests", str(requests.requests_n)]
        words += ["--rows", str(requests.rows)] if requests.rows is not None else []
        words += ["--weights", str(requests.weights)] if requests.weights is not None else []
        send_run_files(entries, folder, options, problem.model.workload)
        commands = worker_commands("infer", entries, folder, run, options, words)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    say(f"{requests.requests_n} requests on {', '.join(plan.devices)} …", quiet=quiet)
    with stopped_by_signals():
        run_workers(commands, lambda progress: None)
    fetch_runs(entries, folder)
    return folder, read_json(folder / "inference.json", Inference, schema=INFERENCE_SCHEMA)


def serve(plan: Plan, options: RunOptions, requests: RequestOptions, *, device: str, coordinator: str) -> None:
    """Be one device's worker; rank 0 writes the run's files.

    Raises:
        UsageError: The plan does not fit, or the ranks disagree.
        RunError: A peer is gone or silent.
    """
    from dataclasses import replace

    from greentrain.cli._work import address_of, at_point, make_job, operating_point, restrain
    from greentrain.files import canonical_sha256
    from greentrain.runtime.infer import infer, request_plan
    from greentrain.runtime.lifeline import end_with_launcher
    from greentrain.simulator import simulate, to_estimate
    from greentrain_harness.meters import open_named
    from greentrain_harness.sampler import Sampler

    launched = end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if device not in plan.devices:
        raise UsageError(f"device {device!r} is not in the plan.", hint=f"It has: {', '.join(plan.devices)}.")
    run = options.run or f"{plan.model}-requests"
    folder = Path("runs") / run
    file, problem = problem_of_plan(plan, options.plan_path, options.cluster_path, options.profiles)
    entry = runnable_entry(file, device)
    price = to_estimate(simulate(plan, problem), plan, problem)
    restrain(entry)
    job = make_job(plan, problem, options, entry, folder, run, price, *address_of(coordinator), launched=launched)
    asked = request_plan(plan, requests.rows or plan.micro_batch)
    job = replace(job, plan=asked, plan_sha256=canonical_sha256(asked))
    meter = open_named(entry.meter, sysroot=options.sysroot, device=at_point(job, problem, options))
    with stopped_by_signals(), operating_point(job, options.sysroot, meter.name), Sampler(meter) as sampler:
        found = infer(
            job, sampler, requests_n=requests.requests_n, warm_up_n=requests.warm_up_n,
            weights=_weights(requests.weights), say=say,
        )  # fmt: skip
    if found is not None:
        write_inference(folder, summarise(run, asked, found), found)


def _weights(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return {}
    from safetensors.torch import load_file

    return load_file(path)
