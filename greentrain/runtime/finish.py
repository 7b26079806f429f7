"""From the ranks' rows to the run's files: one ledger, one summary, the trained model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from greentrain.cluster import Cluster
from greentrain.cost import stage_traffic, unused_power
from greentrain.errors import UsageError
from greentrain.ledger import (
    LedgerRow,
    energy_uj,
    metered_rounds,
    read_ledger,
    split_energy_j,
    total_energy_j,
    totals_j,
    write_ledger,
)
from greentrain.plan import Estimate, Plan
from greentrain.runtime.messages import RankResult, rank_ledger_path
from greentrain.summary import Outcome

__all__ = [
    "board_split",
    "complete_rounds",
    "counted_rows",
    "measured_outcome",
    "merge_rank_ledgers",
    "predicted_outcome",
    "round_losses",
    "unused_rows",
]


def board_split(results: Sequence[RankResult]) -> list[LedgerRow]:
    """All ranks' rows, with the joules of a shared board split among its ranks.

    A meter of the whole board belongs to its first rank; what another rank of the board states for its own
    process is in there already. Each round's joules are split by
    the processor time that each rank used in it, in whole microjoules: the sum is the meter's, exactly.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for rank, result in enumerate(results):
        members[result.board].append(rank)
    rows: list[LedgerRow] = []
    for ranks in members.values():
        if len(ranks) > 1 and results[ranks[0]].scope == "board":
            rows += _split(ranks, results)
        else:
            for rank in ranks:
                rows += results[rank].rows
    return sorted(rows, key=lambda row: (row.step, row.rank, row.t_start_s))


def _split(ranks: Sequence[int], results: Sequence[RankResult]) -> list[LedgerRow]:
    leader = results[ranks[0]]
    joules = {row.step: row for row in leader.rows if row.action == "step"}
    rows: list[LedgerRow] = []
    for position, rank in enumerate(ranks):
        for row in results[rank].rows:
            whole = joules.get(row.step)
            if row.action != "step" or whole is None or whole.energy_j is None:
                rows.append(row)
                continue
            weights = [results[other].cpu_s_S[row.step] for other in ranks]
            rows.append(
                msgspec.structs.replace(
                    row,
                    energy_j=split_energy_j(whole.energy_j, weights)[position],
                    error_j=None if whole.error_j is None else split_energy_j(whole.error_j, weights)[position],
                    source=whole.source,
                    meter=f"{whole.meter} (split by CPU time)",
                )
            )
    return rows


def merge_rank_ledgers(run_dir: Path, ranks_n: int) -> tuple[list[LedgerRow], tuple[str, ...]]:
    """Join what the ranks wrote before a run was cut short into ``ledger.csv``; a torn last line is dropped.

    Returns:
        The rows, and a sentence for each rank's file that is damaged; it is left as it is.
    """
    rows: list[LedgerRow] = []
    damaged: list[str] = []
    for rank in range(ranks_n):
        path = rank_ledger_path(run_dir, rank)
        # A rank that died at once, or on a full disk, leaves no file or an empty one.
        if not path.exists() or path.stat().st_size == 0:
            continue
        try:
            rows += read_ledger(path, allow_cut=True)
        except UsageError as error:
            damaged.append(error.message)
    rows.sort(key=lambda row: (row.step, row.rank, row.t_start_s))
    write_ledger(run_dir / "ledger.csv", rows)
    return rows, tuple(damaged)


def complete_rounds(rows: Iterable[LedgerRow], ranks_n: int) -> int:
    """Rounds that every rank finished."""
    counts = Counter(row.rank for row in rows if row.action == "step")
    return min((counts[rank] for rank in range(ranks_n)), default=0)


def counted_rows(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """The rows that carry a run's joules: the rounds of its devices, and idle devices that count."""
    return [row for row in rows if row.action == "step" or (row.action in ("idle", "sleep") and row.rank < 0)]


def unused_rows(rows: Sequence[LedgerRow], plan: Plan, cluster: Cluster) -> list[LedgerRow]:
    """Idle devices without a part, where the plan's objective counts them: modelled, one row per round.

    Without them a prediction that holds their joules would stand beside a run that does not.
    """
    if not plan.objective.count_idle_of_unused:
        return []
    return [
        msgspec.structs.replace(
            row, device=device.id, rank=-1, action=cause, energy_j=rest_w * row.duration_s,
            error_j=None, bytes=0, source="modelled", meter=f"{cause} power of the profile",
        )
        for row in rows
        if row.action == "step" and row.rank == 0
        for device in cluster.devices
        if device.id not in plan.devices
        for cause, rest_w in (unused_power(device),)
    ]  # fmt: skip


def round_losses(results: Sequence[RankResult]) -> list[float]:
    """Exact mean loss of every round: the ranks hold parts that add up."""
    rounds = min(len(result.loss_S) for result in results)
    return [sum(result.loss_S[number] for result in results) for number in range(rounds)]


def measured_outcome(
    rows: Sequence[LedgerRow],
    plan: Plan,
    cluster: Cluster,
    *,
    duration_s: float | None,
    peak_bytes: Mapping[str, int],
) -> Outcome:
    """What a run cost, from its ledger.

    Joules per sample are those of the rounds that every meter saw; a silent sensor makes them fewer, never
    lower. Device totals are the meter's. The causes inside a device are attributed: its joules are split in
    proportion to what the power curve gives for computing and waiting and the links give for messages.

    Args:
        rows: The ledger.
        plan: What ran.
        cluster: Power curves and links.
        duration_s: Seconds of training; None for a run that was cut short: then from the rows.
        peak_bytes: Measured memory by device; empty when not known.
    """
    steps = [row for row in rows if row.action == "step"]
    counted = counted_rows(rows)
    samples = complete_rounds(steps, len(plan.devices)) * plan.batch
    seconds = duration_s or max((row.t_start_s + row.duration_s for row in steps), default=0.0)
    known = metered_rounds(((row.step, row.energy_j) for row in steps), len(plan.devices))
    metered = [row for row in counted if row.step in known]
    metered_samples = len(known) * plan.batch
    energy_j = total_energy_j(metered)
    errors_uj = [energy_uj(row.error_j) for row in metered if row.error_j is not None]
    lengths = sorted(_round_lengths(steps))
    sources = {row.source for row in counted if row.energy_j is not None}
    return Outcome(
        joules_per_sample=energy_j / metered_samples if energy_j is not None else None,
        error_j_per_sample=sum(errors_uj) / 1e6 / metered_samples if errors_uj else None,
        samples_per_s=samples / seconds if seconds > 0 and samples else None,
        step_s=lengths[len(lengths) // 2] if lengths else None,
        energy_j={
            name: _causes(name, joules, rows, plan, cluster)
            for name, joules in totals_j(counted, lambda row: row.device).items()
        },
        peak_bytes=dict(peak_bytes),
        source=next(iter(sources)) if len(sources) == 1 else "mixed" if sources else "modelled",
    )


def predicted_outcome(price: Estimate) -> Outcome:
    """The plan's price in the form of an outcome."""
    return Outcome(
        joules_per_sample=price.energy_j_per_sample,
        error_j_per_sample=None,
        samples_per_s=price.samples_per_s,
        step_s=price.step_s,
        energy_j=price.energy_j,
        peak_bytes=price.peak_bytes,
        source=price.source,
    )


def _round_lengths(steps: Sequence[LedgerRow]) -> list[float]:
    """Seconds of each round on rank 0 (or the first rank that has any)."""
    first = min((row.rank for row in steps), default=0)
    return [row.duration_s for row in steps if row.rank == first]


def _causes(name: str, energy_j: float, rows: Sequence[LedgerRow], plan: Plan, cluster: Cluster) -> dict[str, float]:
    if name not in plan.devices:
        return {unused_power(cluster.device(name))[0]: energy_j}
    index = next(number for number, stage in enumerate(plan.stages) if name in stage.devices)
    stage = plan.stages[index]
    position = stage.devices.index(name)
    curve = cluster.device(name).curve(stage.points[position])
    own = [row for row in rows if row.device == name]
    total_s = sum(row.duration_s for row in own if row.action == "step")
    rounds = sum(row.action == "step" for row in own)
    busy_s = sum(row.duration_s for row in own if row.action in ("forward", "backward", "update"))
    traffic = stage_traffic(plan, index, cluster)[position]
    weights = (
        curve.busy_w * busy_s,
        curve.idle_w * max(total_s - busy_s, 0.0),
        traffic.sent_j * rounds,
        traffic.received_j * rounds,
    )
    return dict(zip(("compute", "wait", "send", "receive"), split_energy_j(energy_j, weights), strict=True))
