"""From the ranks' rows to the run's files: one ledger, one summary, the trained model."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from greentrain.cluster import Cluster
from greentrain.cost import stage_traffic, unused_power
from greentrain.errors import UsageError
from greentrain.ledger import (
    LedgerRow,
    energy_uj,
    read_ledger,
    split_energy_j,
    total_energy_j,
    totals_j,
    write_ledger,
)
from greentrain.plan import Estimate, Plan
from greentrain.runtime.messages import RankResult, rank_ledger_path, rank_ledger_paths
from greentrain.summary import Outcome

__all__ = [
    "board_split",
    "complete_rounds",
    "counted_rows",
    "epoch_losses",
    "measured_outcome",
    "members_of_rounds",
    "merge_rank_ledgers",
    "metered_rounds",
    "predicted_outcome",
    "round_losses",
    "undone",
    "unused_rows",
    "with_files",
]

_COUNTED = ("step", "recovery")


def board_split(results: Sequence[RankResult]) -> list[LedgerRow]:
    """All devices' rows, with the joules of a shared board split among its ranks.

    A meter of the whole board belongs to its first rank; what another rank of the board states for its own
    process is in there already. Each round's joules are split by
    the processor time that each rank used in it, in whole microjoules: the sum is the meter's, exactly.
    """
    members: defaultdict[str, list[RankResult]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.seat):
        members[result.board].append(result)
    rows: list[LedgerRow] = []
    for ranks in members.values():
        if len(ranks) > 1 and ranks[0].scope == "board":
            rows += _split(ranks)
        else:
            for result in ranks:
                rows += result.rows
    return _sorted(rows)


def _split(ranks: Sequence[RankResult]) -> list[LedgerRow]:
    """Of a board's ranks the first one of the round holds the meter's joules."""
    holders: dict[int, RankResult] = {}
    for result in ranks:
        for row in result.rows:
            if row.action == "step":
                holders.setdefault(row.step, result)
    whole = {
        row.step: row for result in ranks for row in result.rows if row.action == "step" and holders[row.step] is result
    }
    parts: dict[tuple[int, int], LedgerRow] = {}
    for step, row in whole.items():
        if row.energy_j is None:
            continue
        there = [result for result in ranks if any(one.step == step and one.action == "step" for one in result.rows)]
        weights = [result.cpu_s_S.get(step, 0.0) for result in there]
        energies = split_energy_j(row.energy_j, weights)
        errors = (None,) * len(there) if row.error_j is None else split_energy_j(row.error_j, weights)
        for result, energy_j, error_j in zip(there, energies, errors, strict=True):
            parts[id(result), step] = msgspec.structs.replace(row, energy_j=energy_j, error_j=error_j)
    rows: list[LedgerRow] = []
    for result in ranks:
        for row in result.rows:
            part = parts.get((id(result), row.step)) if row.action == "step" else None
            rows.append(
                row
                if part is None
                else msgspec.structs.replace(
                    row, energy_j=part.energy_j, error_j=part.error_j, source=part.source,
                    meter=f"{part.meter} (split by CPU time)",
                )
            )  # fmt: skip
    return rows


def _sorted(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    return sorted(rows, key=lambda row: (row.step, row.rank, row.t_start_s))


def undone(rows: Iterable[LedgerRow], first: int | None) -> list[LedgerRow]:
    """A device's rows with those of rounds that were done again marked as recovery.

    Args:
        rows: In the order of their writing.
        first: The first of these rounds, for a device that was lost; None: all rounds but the last of each number.
    """
    found = list(rows)
    last = {row.step: number for number, row in enumerate(found) if row.action == "step"}
    return [
        msgspec.structs.replace(row, action="recovery")
        if row.action == "step" and (last[row.step] != number or (first is not None and row.step >= first))
        else row
        for number, row in enumerate(found)
    ]


def with_files(results: Sequence[RankResult], run_dir: Path) -> list[RankResult]:
    """Give devices that were lost all the rows that they wrote, where their files are here."""
    found: list[RankResult] = []
    for result in results:
        path = rank_ledger_path(run_dir, result.seat, result.generation)
        if result.undone_from is None:
            found.append(result)
            continue
        rows = result.rows
        if path.exists() and path.stat().st_size > 0:
            with contextlib.suppress(UsageError):
                rows = read_ledger(path, allow_cut=True)
        found.append(msgspec.structs.replace(result, rows=undone(rows, result.undone_from)))
    return found


def merge_rank_ledgers(run_dir: Path) -> tuple[list[LedgerRow], tuple[str, ...]]:
    """Join what the ranks wrote before a run was cut short into ``ledger.csv``; a torn last line is dropped.

    Returns:
        The rows, and a sentence for each rank's file that is damaged; it is left as it is.
    """
    rows: list[LedgerRow] = []
    damaged: list[str] = []
    for path in rank_ledger_paths(run_dir):
        # A rank that died at once, or on a full disk, leaves an empty file.
        if path.stat().st_size == 0:
            continue
        try:
            rows += undone(read_ledger(path, allow_cut=True), None)
        except UsageError as error:
            damaged.append(error.message)
    rows = _sorted(rows)
    write_ledger(run_dir / "ledger.csv", rows)
    return rows, tuple(damaged)


def members_of_rounds(rows: Iterable[LedgerRow], ranks_n: int) -> dict[int, int]:
    """How many ranks took part in each round: all, unless some were lost or joined while the run went on."""
    found: Counter[int] = Counter()
    changed = False
    for row in rows:
        changed = changed or row.action == "recovery"
        found[row.step] += row.action == "step"
    # Then a round that anybody has done was done by all who took part: nobody updates before all are ready.
    return {number: count if changed else ranks_n for number, count in found.items() if count > 0}


def complete_rounds(rows: Sequence[LedgerRow], ranks_n: int) -> int:
    """Rounds that every rank finished which took part in them."""
    counts = Counter(row.step for row in rows if row.action == "step")
    return sum(counts[number] >= members for number, members in members_of_rounds(rows, ranks_n).items())


def metered_rounds(rows: Sequence[LedgerRow], ranks_n: int) -> frozenset[int]:
    """Rounds in which every rank that took part has joules: the only ones whose joules per sample are known."""
    counts = Counter(row.step for row in rows if row.action == "step" and row.energy_j is not None)
    members = members_of_rounds(rows, ranks_n)
    return frozenset(number for number, count in counts.items() if count >= members[number])


def counted_rows(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """The rows that carry a run's joules: rounds and recoveries of its devices, and idle devices that count."""
    return [row for row in rows if row.action in _COUNTED or (row.action in ("idle", "sleep") and row.rank < 0)]


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
        for row in _one_per_round(rows)
        for device in cluster.devices
        if device.id not in plan.devices
        for cause, rest_w in (unused_power(device),)
    ]  # fmt: skip


def _one_per_round(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    found: dict[int, LedgerRow] = {}
    for row in rows:
        if row.action == "step":
            found.setdefault(row.step, row)
    return list(found.values())


def round_losses(results: Sequence[RankResult]) -> list[float]:
    """Exact mean loss of every round: the ranks hold parts that add up."""
    rounds = min(len(result.loss_S) for result in results)
    return [sum(result.loss_S[number] for result in results) for number in range(rounds)]


def epoch_losses(losses: Sequence[float], first_round: int, rounds_per_epoch: int) -> Iterator[float]:
    """Mean loss of each epoch, from the epoch in which a run began."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for number, loss in enumerate(losses, start=first_round):
        found[number // rounds_per_epoch].append(loss)
    yield from (sum(part) / len(part) for part in found.values())


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
    samples = complete_rounds(rows, len(plan.devices)) * plan.batch
    seconds = duration_s or max((row.t_start_s + row.duration_s for row in steps), default=0.0)
    known = metered_rounds(rows, len(plan.devices))
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
    """Seconds of each round on the first rank that took part in it."""
    return [row.duration_s for row in _one_per_round(sorted(steps, key=lambda row: row.rank))]


def _causes(name: str, energy_j: float, rows: Sequence[LedgerRow], plan: Plan, cluster: Cluster) -> dict[str, float]:
    own = [row for row in rows if row.device == name]
    if all(row.rank < 0 for row in own):
        return {unused_power(cluster.device(name))[0]: energy_j}
    lost_j = total_energy_j(row for row in own if row.action == "recovery")
    found = {} if lost_j is None else {"recovery": lost_j}
    rest_j = (energy_uj(energy_j) - energy_uj(lost_j or 0.0)) / 1e6
    if name not in plan.devices:
        return {"compute": rest_j, **found}  # It joined later: what it was to do is not in this plan.
    index = next(number for number, stage in enumerate(plan.stages) if name in stage.devices)
    stage = plan.stages[index]
    position = stage.devices.index(name)
    curve = cluster.device(name).curve(stage.points[position])
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
    parts = split_energy_j(rest_j, weights)
    return {**dict(zip(("compute", "wait", "send", "receive"), parts, strict=True)), **found}
