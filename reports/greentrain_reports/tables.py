"""RunReport: a run folder as tables. Pages, pictures and CSV files show it and compute nothing of their own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from greentrain.plan import parallelism_name
from greentrain.summary import Recovery
from greentrain_reports.carbon_account import CarbonAccount, CarbonBasis, carbon_account
from greentrain_reports.comparison import ComparisonRow, RunFigures, comparison, predicted_cause_j
from greentrain_reports.energy import DeviceEnergy, device_energy, source_of, total_error_j, total_j
from greentrain_reports.ledger_table import table_of_rows
from greentrain_reports.rounds import RoundTable, counted_rows, round_table
from greentrain_reports.run_folder import RunFolder
from greentrain_reports.savings import Saving, planned_savings
from greentrain_reports.timeline import TimelineBar, timeline, typical_round

__all__ = ["Headline", "RunReport", "build_report", "measured_saving"]


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run that are quoted first; ``None`` where it did not record them.

    Attributes:
        energy_j: Joules of all devices, the exact sum of the ledger.
        error_j: ± joules.
        joules_per_sample: Energy over samples, of the rounds that every meter saw.
        error_j_per_sample: ± of it.
        complete: Whether every round of every participant has joules; otherwise totals are too small.
        source: ``measured``, ``modelled`` or ``mixed`` joules.
        samples: Samples trained on.
        rounds: Rounds that every rank completed.
        duration_s: Seconds of training.
        samples_per_s: Throughput.
        round_s: Median seconds per round.
        co2e_kg: Kilograms of CO2e of the energy (operation only, without making the devices).
        accuracy: Share of held-out samples classified rightly.
        accuracy_baseline: Share reached by always guessing the most frequent class.
        test_samples: Number of held-out samples.
    """

    energy_j: float | None
    error_j: float | None
    joules_per_sample: float | None
    error_j_per_sample: float | None
    complete: bool
    source: str | None
    samples: int | None
    rounds: int | None
    duration_s: float | None
    samples_per_s: float | None
    round_s: float | None
    co2e_kg: float | None
    accuracy: float | None
    accuracy_baseline: float | None
    test_samples: int | None


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown of one run.

    Attributes:
        run: The folder it was made of.
        headline: First figures.
        carbon: What it emitted, with the intensity of the grid.
        devices: Energy by device, in pipeline order.
        rounds: One entry per round and rank; None without a ledger.
        comparison: Predicted beside measured.
        savings: Against the time-optimal plan and against one device, as far as they are known.
        predicted_cause_j: Predicted joules of a round by device and cause.
        predicted_timeline: Actions of one simulated round.
        measured_timeline: Actions of the median round.
        timeline_round: Number of that round.
        parallelism: single, data, pipeline or hybrid; None without plan and summary.
        recoveries: Devices that were lost or came back while it ran.
        remarks: What a reader must know.
    """

    run: RunFolder
    headline: Headline
    carbon: CarbonAccount
    devices: tuple[DeviceEnergy, ...]
    rounds: RoundTable | None
    comparison: tuple[ComparisonRow, ...]
    savings: tuple[Saving, ...]
    predicted_cause_j: dict[str, dict[str, float]]
    predicted_timeline: tuple[TimelineBar, ...]
    measured_timeline: tuple[TimelineBar, ...]
    timeline_round: int | None
    parallelism: str | None
    recoveries: tuple[Recovery, ...]
    remarks: tuple[str, ...]


def build_report(run: RunFolder, basis: CarbonBasis) -> RunReport:
    """Turn a run folder into tables; pure, nothing is written."""
    devices = _devices(run)
    rounds = round_table(run.rows) if run.rows is not None else None
    gaps = _gaps(run, devices, rounds)
    headline = _headline(run, devices, rounds, complete=not gaps)
    carbon = carbon_account(
        run, rounds, devices, basis, energy_j=headline.energy_j, joules_per_sample=headline.joules_per_sample,
        samples=headline.samples, duration_s=headline.duration_s,
    )  # fmt: skip
    headline = msgspec.structs.replace(headline, co2e_kg=carbon.operational_kg)
    figures = RunFigures(
        joules_per_sample=headline.joules_per_sample, source=headline.source, samples_per_s=headline.samples_per_s,
        round_s=headline.round_s,
    )  # fmt: skip
    predicted_j = predicted_cause_j(run)
    number = typical_round(rounds) if rounds is not None else None
    simulated = run.predicted_rows
    return RunReport(
        run=run,
        headline=headline,
        carbon=carbon,
        devices=devices,
        rounds=rounds,
        comparison=comparison(run, figures, devices, rounds, predicted_j),
        savings=planned_savings(run),
        predicted_cause_j=predicted_j,
        predicted_timeline=() if simulated is None else timeline(simulated, int(simulated.step_N.min(initial=0))),
        measured_timeline=() if number is None or run.rows is None else timeline(run.rows, number),
        timeline_round=number,
        parallelism=_parallelism(run),
        recoveries=run.summary.recoveries if run.summary is not None else (),
        remarks=(*run.remarks, *gaps, *_disagreements(run, headline), *([carbon.remark] if carbon.remark else [])),
    )


def measured_saving(report: RunReport, other: RunReport) -> Saving | None:
    """One run beside another, by what both recorded; None when either lacks joules per sample."""
    mine, theirs = report.headline, other.headline
    if mine.joules_per_sample is None or not theirs.joules_per_sample:
        return None
    slower_percent = None
    if mine.samples_per_s and theirs.samples_per_s:
        slower_percent = (theirs.samples_per_s / mine.samples_per_s - 1) * 100
    return Saving(
        other=f"run {other.run.name}",
        basis="recorded",
        energy_percent=(1 - mine.joules_per_sample / theirs.joules_per_sample) * 100,
        slower_percent=slower_percent,
        joules_per_sample=mine.joules_per_sample,
        other_joules_per_sample=theirs.joules_per_sample,
    )


def _parallelism(run: RunFolder) -> str | None:
    if run.summary is not None:
        return run.summary.parallelism
    return parallelism_name(run.plan) if run.plan is not None else None


def _devices(run: RunFolder) -> tuple[DeviceEnergy, ...]:
    planned = run.plan.devices if run.plan is not None else ()
    summary = run.summary
    listed = summary.devices if summary is not None else ()
    causes_j = summary.measured.energy_j if summary is not None else {}
    notes = summary.meters if summary is not None else {}
    if run.rows is None and summary is not None:
        return tuple(
            DeviceEnergy(
                device=name,
                ranks=tuple(rank for rank, device in enumerate(listed) if device == name),
                energy_j=summary.energy_j_by_device.get(name),
                energy_j_per_round=_of_rounds(summary.energy_j_by_device.get(name), summary.rounds),
                error_j=None,
                cause_j=causes_j.get(name),
                source=summary.source if name in summary.energy_j_by_device else None,
                meter=None,
                note=notes.get(name, ""),
            )
            for name in dict.fromkeys((*planned, *listed))
        )
    table = run.rows if run.rows is not None else table_of_rows(())
    counted_N = counted_rows(table)
    return tuple(
        device_energy(name, table, counted_N, causes_j=causes_j.get(name), note=notes.get(name, ""))
        for name in dict.fromkeys((*planned, *listed, *table.device.listed))
    )


def _of_rounds(energy_j: float | None, rounds_n: int) -> float | None:
    return energy_j / rounds_n if energy_j is not None and rounds_n else None


def _headline(
    run: RunFolder, devices: Sequence[DeviceEnergy], rounds: RoundTable | None, *, complete: bool
) -> Headline:
    summary, table = run.summary, run.rows
    if table is not None and rounds is not None:
        counted_N = counted_rows(table)
        energy_j, error_j = total_j(table, counted_N), total_error_j(table, counted_N)
        rounds_n = len(rounds.complete_steps())
        seen = rounds.metered_steps()
        metered_j = total_j(table, counted_N & np.isin(table.step_N, seen))
        metered_n = len(seen)
    else:
        energy_j, error_j = summary.energy_j if summary is not None else None, None
        rounds_n = summary.rounds if summary is not None else None
        metered_j, metered_n = energy_j, rounds_n
    samples = summary.samples if summary is not None else _samples(run, rounds_n)
    metered_samples = metered_n * samples / rounds_n if samples and rounds_n and metered_n else None
    duration_s = summary.duration_s if summary is not None else _span_s(rounds)
    error_j_per_sample = summary.error_j_per_sample if summary is not None else None
    if error_j_per_sample is None and error_j is not None and samples:
        error_j_per_sample = error_j / samples
    samples_per_s = summary.samples_per_s if summary is not None else None
    if samples_per_s is None and samples and duration_s:
        samples_per_s = samples / duration_s
    if error_j is None and error_j_per_sample is not None and samples:
        error_j = error_j_per_sample * samples
    return Headline(
        energy_j=energy_j,
        error_j=error_j,
        joules_per_sample=metered_j / metered_samples if metered_j is not None and metered_samples else None,
        error_j_per_sample=error_j_per_sample,
        complete=complete,
        source=source_of(device.source for device in devices if device.source is not None),
        samples=samples,
        rounds=rounds_n,
        duration_s=duration_s,
        samples_per_s=samples_per_s,
        round_s=_median_round_s(rounds) or (summary.measured.step_s if summary is not None else None),
        co2e_kg=None,
        accuracy=summary.accuracy if summary is not None else None,
        accuracy_baseline=summary.accuracy_baseline if summary is not None else None,
        test_samples=summary.test_samples if summary is not None else None,
    )


def _samples(run: RunFolder, rounds_n: int | None) -> int | None:
    return rounds_n * run.plan.batch if run.plan is not None and rounds_n else None


def _span_s(rounds: RoundTable | None) -> float | None:
    if rounds is None or not rounds.rounds_n:
        return None
    return float((rounds.t_start_s_G + rounds.duration_s_G).max() - rounds.t_start_s_G.min())


def _median_round_s(rounds: RoundTable | None) -> float | None:
    if rounds is None:
        return None
    _, slowest_s = rounds.slowest_s()
    return float(np.median(slowest_s)) if len(slowest_s) else None


def _gaps(run: RunFolder, devices: Sequence[DeviceEnergy], rounds: RoundTable | None) -> list[str]:
    """Name the devices whose joules are missing, wholly or for some rounds, and ranks whose rows end early."""
    remarks: list[str] = []
    for device in devices:
        mine_G = rounds.device.rows_of(device.device) if rounds is not None else np.zeros(0, dtype=bool)
        rows_n = int(mine_G.sum())
        lacking_n = int((mine_G & (rounds.energy_uj_G < 0)).sum()) if rounds is not None else 0
        if device.energy_j is None:
            remarks.append(f"No joules were recorded for {device.device}; the totals leave it out.")
        elif lacking_n:
            remarks.append(
                f"{lacking_n} of {rows_n} rounds of {device.device} have no joules; the totals leave them out."
            )
    if rounds is None:
        return remarks
    rounds_n = len(np.unique(rounds.step_G[rounds.rank_G >= 0]))
    for rank in rounds.ranks:
        mine_G = rounds.rank_G == rank
        seen_n = len(np.unique(rounds.step_G[mine_G]))
        # A device that was lost and replaced is told as a recovery, and not missed twice.
        if seen_n < rounds_n and not (run.summary is not None and run.summary.recoveries):
            name = rounds.device.listed[int(rounds.device.index_N[np.argmax(mine_G)])]
            remarks.append(
                f"Rank {rank} ({name}) recorded {seen_n} of {rounds_n} rounds; what it did in the others is not known."
            )
    return remarks


def _disagreements(run: RunFolder, headline: Headline) -> list[str]:
    """Say it where ledger and summary do not tell the same story; the ledger is what the report shows."""
    if run.summary is None or run.rows is None:
        return []
    remarks: list[str] = []
    stated_j, summed_j = run.summary.energy_j, headline.energy_j
    if (stated_j is None) != (summed_j is None) or (
        stated_j is not None and summed_j is not None and abs(stated_j - summed_j) > 1e-6
    ):
        remarks.append(
            f"summary.json states {_joules(stated_j)}, the rows of ledger.csv add up to {_joules(summed_j)}; "
            "the report shows the ledger."
        )
    if headline.rounds is not None and run.summary.rounds != headline.rounds:
        remarks.append(f"summary.json states {run.summary.rounds} rounds, ledger.csv holds {headline.rounds}.")
    return remarks


def _joules(energy_j: float | None) -> str:
    return "no joules" if energy_j is None else f"{energy_j} J"
