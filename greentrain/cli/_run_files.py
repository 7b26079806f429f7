"""The files of a run: the plan before it starts, ledger, summary and model when it ends or is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._common import say
from greentrain.cli._run_beside import write_beside
from greentrain.cluster import Cluster
from greentrain.errors import GreentrainError
from greentrain.files import canonical_sha256, write_bytes, write_json
from greentrain.ledger import LedgerRow, write_ledger
from greentrain.objective import Problem
from greentrain.plan import PLAN_SCHEMA, Estimate, Plan, parallelism_name
from greentrain.summary import SUMMARY_SCHEMA, Outcome, Summary

if TYPE_CHECKING:
    from greentrain.runtime.messages import Progress
    from greentrain.runtime.worker import Job, Trained

__all__ = ["save_cut_run", "write_plan_files", "write_run"]

_CLUSTER_SCHEMA = "greentrain.cluster/1"


def write_plan_files(
    folder: Path, plan: Plan, problem: Problem, simulated: Sequence[LedgerRow], plan_path: Path
) -> None:
    """Keep with the run what it was started from, and what its plan is compared with later."""
    write_json(folder / "plan.json", plan, schema=PLAN_SCHEMA)
    write_json(folder / "cluster.json", problem.cluster, schema=_CLUSTER_SCHEMA)
    write_ledger(folder / "predicted.csv", simulated)
    write_beside(folder, plan, problem, plan_path)


def write_run(
    folder: Path, job: Job, trained: Trained, cluster: Cluster, price: Estimate, versions: dict[str, str],
    started_utc: str,
) -> None:  # fmt: skip
    from safetensors.torch import save

    from greentrain.runtime.evaluate import accuracy, baseline
    from greentrain.runtime.finish import (
        board_split,
        epoch_losses,
        measured_outcome,
        predicted_outcome,
        unused_rows,
        with_files,
    )
    from greentrain_harness.environment import host_description

    plan = job.plan
    write_bytes(
        folder / "model.safetensors",
        save(trained.model.parameters, metadata={"model": plan.model, "plan_sha256": job.plan_sha256}),
    )
    results = with_files(trained.results, folder)
    rows = board_split(results)
    rows += unused_rows(rows, plan, cluster)
    write_ledger(folder / "ledger.csv", rows)
    peaks = {result.device: result.peak_bytes for result in results if result.peak_bytes is not None}
    measured = measured_outcome(rows, plan, cluster, duration_s=trained.duration_s, peak_bytes=peaks)
    summary = _summary(
        job.run, plan, rows, predicted_outcome(price), measured, status="finished", started_utc=started_utc
    )
    summary = msgspec.structs.replace(
        summary,
        meters={result.device: result.meter for result in reversed(results)},
        epochs=len(trained.losses) / trained.rounds_per_epoch,
        duration_s=trained.duration_s,
        loss=trained.losses[-1] if trained.losses else None,
        loss_by_epoch=tuple(epoch_losses(trained.losses, job.first_round, trained.rounds_per_epoch)),
        recoveries=trained.recoveries,
        accuracy=accuracy(job.workload, job.seed, trained.model, job.data),
        accuracy_baseline=baseline(job.data),
        test_samples=len(job.data.test_targets),
        dataset=f"{job.data.name}: {job.data.source}",
        host=host_description(),
        versions=versions,
    )
    write_json(folder / "summary.json", summary, schema=SUMMARY_SCHEMA)


def save_cut_run(
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
    from greentrain.runtime.finish import measured_outcome, merge_rank_ledgers, predicted_outcome, unused_rows

    rows, damaged = merge_rank_ledgers(folder)
    unused = unused_rows(rows, plan, cluster)
    if unused:
        rows += unused
        write_ledger(folder / "ledger.csv", rows)
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
    from greentrain.runtime.finish import complete_rounds, counted_rows, metered_rounds

    rounds = complete_rounds(rows, len(plan.devices))
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
        metered_rounds=len(metered_rounds(rows, len(plan.devices))),
        energy_j=total_energy_j(counted_rows(rows)),
        energy_j_by_device=totals_j(counted_rows(rows), lambda row: row.device),
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
