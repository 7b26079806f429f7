"""RunReport: a run folder as tables. Pages, pictures and CSV files show it and compute nothing of their own."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from greentrain.carbon import Intensity, co2e_kg
from greentrain.ledger import ACTION_CAUSES, LedgerRow, metered_rounds, total_energy_j, totals_j
from greentrain.plan import Estimate, Plan, parallelism_name
from greentrain_reports.energy import (
    DeviceEnergy,
    RoundRow,
    TimelineBar,
    counted_rows,
    device_energy,
    round_rows,
    source_of,
    timeline,
    total_error_j,
    typical_round,
)
from greentrain_reports.run_folder import RunFolder

__all__ = ["ComparisonRow", "Headline", "RunReport", "Saving", "build_report", "measured_saving"]


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
        rounds: Rounds completed.
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


class ComparisonRow(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted figure beside the measured one.

    Attributes:
        quantity: Name with its unit, such as ``energy_j_per_sample``.
        unit: The unit once more.
        device: Device id, or ``all``.
        predicted: From the plan or the simulator.
        measured: From the run.
        predicted_source: Always ``modelled``, or None without a prediction.
        measured_source: ``measured`` (clocks, counted bytes, sensors), ``modelled`` or ``mixed``.
    """

    quantity: str
    unit: str
    device: str
    predicted: float | None
    measured: float | None
    predicted_source: str | None
    measured_source: str | None

    @property
    def difference_percent(self) -> float | None:
        """How far the run lies above (+) or below (−) the prediction, percent of the prediction."""
        if self.predicted is None or self.measured is None or self.predicted == 0:
            return None
        return (self.measured - self.predicted) / self.predicted * 100


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """This run beside another way to train.

    Attributes:
        other: What it is compared with.
        basis: ``predicted`` (cost model on both sides) or ``recorded`` (both ran).
        energy_percent: Energy per sample saved (+) or lost (−), percent of the other.
        slower_percent: Time per sample added (+) or saved (−), percent of the other.
        joules_per_sample: Energy per sample of this side.
        other_joules_per_sample: Energy per sample of the other.
        same_plan: Both sides are the same decision.
    """

    other: str
    basis: str
    energy_percent: float
    slower_percent: float | None
    joules_per_sample: float
    other_joules_per_sample: float
    same_plan: bool = False


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown of one run.

    Attributes:
        run: The folder it was made of.
        headline: First figures.
        intensity: Of the grid, for the CO2e.
        devices: Energy by device, in pipeline order.
        rounds: One row per round and rank.
        comparison: Predicted beside measured.
        saving: Against the time-optimal plan; None when it is not known.
        predicted_cause_j: Predicted joules of a round by device and cause.
        predicted_timeline: Actions of one simulated round.
        measured_timeline: Actions of the median round.
        timeline_round: Number of that round.
        parallelism: single, data, pipeline or hybrid; None without plan and summary.
        remarks: What a reader must know.
    """

    run: RunFolder
    headline: Headline
    intensity: Intensity
    devices: tuple[DeviceEnergy, ...]
    rounds: tuple[RoundRow, ...]
    comparison: tuple[ComparisonRow, ...]
    saving: Saving | None
    predicted_cause_j: dict[str, dict[str, float]]
    predicted_timeline: tuple[TimelineBar, ...]
    measured_timeline: tuple[TimelineBar, ...]
    timeline_round: int | None
    parallelism: str | None
    remarks: tuple[str, ...]


def build_report(run: RunFolder, intensity: Intensity) -> RunReport:
    """Turn a run folder into tables; pure, nothing is written."""
    devices = _devices(run)
    rounds = round_rows(run.rows or ())
    headline = _headline(run, devices, rounds, intensity)
    predicted_cause_j = _predicted_cause_j(run)
    number = typical_round([row for row in rounds if row.rank >= 0])
    simulated = run.predicted_rows or ()
    return RunReport(
        run=run,
        headline=headline,
        intensity=intensity,
        devices=devices,
        rounds=rounds,
        comparison=_comparison(run, headline, devices, rounds, predicted_cause_j),
        saving=_time_optimal_saving(run),
        predicted_cause_j=predicted_cause_j,
        predicted_timeline=timeline(simulated, min((row.step for row in simulated), default=0)),
        measured_timeline=() if number is None else timeline(run.rows or (), number),
        timeline_round=number,
        parallelism=_parallelism(run),
        remarks=(*run.remarks, *_gaps(devices, rounds), *_disagreements(run, headline)),
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
    by_device: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in run.rows or ():
        by_device[row.device].append(row)
    planned = run.plan.devices if run.plan is not None else ()
    summary = run.summary
    listed = summary.devices if summary is not None else ()
    causes_j = summary.measured.energy_j if summary is not None else {}
    notes = summary.meters if summary is not None else {}
    names = list(dict.fromkeys((*planned, *listed, *by_device)))
    if run.rows is None and summary is not None:
        return tuple(
            DeviceEnergy(
                device=name,
                ranks=tuple(rank for rank, device in enumerate(listed) if device == name),
                energy_j=summary.energy_j_by_device.get(name),
                error_j=None,
                cause_j=causes_j.get(name),
                source=summary.source if name in summary.energy_j_by_device else None,
                meter=None,
                note=notes.get(name, ""),
            )
            for name in names
        )
    return tuple(
        device_energy(name, by_device[name], causes_j=causes_j.get(name), note=notes.get(name, "")) for name in names
    )


def _headline(
    run: RunFolder, devices: Sequence[DeviceEnergy], rounds: Sequence[RoundRow], intensity: Intensity
) -> Headline:
    summary = run.summary
    counted = counted_rows(run.rows or ())
    energy_j = total_energy_j(counted)
    if energy_j is None and summary is not None and run.rows is None:
        energy_j = summary.energy_j
    error_j = total_error_j(counted)
    numbers = {row.round for row in rounds if row.rank >= 0}
    rounds_n = len(numbers) if run.rows is not None else (summary.rounds if summary else None)
    samples = _samples(run, rounds_n)
    metered_j, metered_samples = energy_j, samples
    if run.rows is not None:
        seen = _metered_rounds(rounds)
        metered_j = total_energy_j([row for row in counted if row.step in seen])
        metered_samples = len(seen) * samples / rounds_n if samples and rounds_n else None
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
        complete=not _gaps(devices, rounds),
        source=source_of(device.source for device in devices if device.source is not None),
        samples=samples,
        rounds=rounds_n,
        duration_s=duration_s,
        samples_per_s=samples_per_s,
        round_s=_median_round_s(rounds) or (summary.measured.step_s if summary is not None else None),
        co2e_kg=co2e_kg(energy_j, intensity) if energy_j is not None else None,
        accuracy=summary.accuracy if summary is not None else None,
        accuracy_baseline=summary.accuracy_baseline if summary is not None else None,
        test_samples=summary.test_samples if summary is not None else None,
    )


def _metered_rounds(rounds: Sequence[RoundRow]) -> frozenset[int]:
    """Rounds that every meter saw; a silent sensor makes the joules per sample fewer rounds', never lower."""
    own = [row for row in rounds if row.rank >= 0]
    return metered_rounds(((row.round, row.energy_j) for row in own), len({row.rank for row in own}))


def _samples(run: RunFolder, rounds_n: int | None) -> int | None:
    if run.summary is not None:
        return run.summary.samples
    return rounds_n * run.plan.batch if run.plan is not None and rounds_n else None


def _span_s(rounds: Sequence[RoundRow]) -> float | None:
    if not rounds:
        return None
    return max(row.t_start_s + row.duration_s for row in rounds) - min(row.t_start_s for row in rounds)


def _median_round_s(rounds: Sequence[RoundRow]) -> float | None:
    slowest_s: defaultdict[int, float] = defaultdict(float)
    for row in rounds:
        if row.rank >= 0:
            slowest_s[row.round] = max(slowest_s[row.round], row.duration_s)
    return statistics.median(slowest_s.values()) if slowest_s else None


def _predicted_cause_j(run: RunFolder) -> dict[str, dict[str, float]]:
    """Predicted joules of one round by device and cause: the simulator's where it ran, else the plan's."""
    counted = counted_rows(run.predicted_rows or ())
    if counted:
        rounds_n = len({row.step for row in counted})
        devices = dict.fromkeys(row.device for row in counted)
        return {
            device: {
                cause: energy_j / rounds_n
                for cause, energy_j in totals_j(
                    (row for row in counted if row.device == device),
                    lambda row: ACTION_CAUSES.get(row.action, row.action),
                ).items()
            }
            for device in devices
        }
    estimate = run.plan.estimate if run.plan is not None else None
    return estimate.energy_j if estimate is not None else {}


def _comparison(
    run: RunFolder,
    headline: Headline,
    devices: Sequence[DeviceEnergy],
    rounds: Sequence[RoundRow],
    predicted_cause_j: dict[str, dict[str, float]],
) -> tuple[ComparisonRow, ...]:
    estimate = run.plan.estimate if run.plan is not None else None
    # Where the plan's price is missing, the summary may still hold it.
    predicted = _prediction(run, estimate)
    found: list[ComparisonRow] = []

    def add(quantity: str, unit: str, device: str, left: float | None, right: float | None, source: str | None) -> None:
        if left is not None or right is not None:
            found.append(
                ComparisonRow(
                    quantity=quantity,
                    unit=unit,
                    device=device,
                    predicted=left,
                    measured=right,
                    predicted_source="modelled" if left is not None else None,
                    measured_source=source if right is not None else None,
                )
            )

    add("energy_j_per_sample", "J/sample", "all", predicted[0], headline.joules_per_sample, headline.source)
    add("samples_per_s", "samples/s", "all", predicted[1], headline.samples_per_s, "measured")
    add("round_s", "s", "all", predicted[2], headline.round_s, "measured")
    rounds_n = headline.rounds
    for device in devices:
        cause_j = predicted_cause_j.get(device.device)
        recorded_j = device.energy_j / rounds_n if device.energy_j is not None and rounds_n else None
        left_j = sum(cause_j.values()) if cause_j is not None else None
        add("energy_j_per_round", "J", device.device, left_j, recorded_j, device.source)
    simulated = round_rows(run.predicted_rows or ())
    for device in devices:
        busy_s = estimate.busy_s.get(device.device) if estimate is not None else None
        add("compute_s_per_round", "s", device.device, busy_s, _mean_compute_s(rounds, device.device), "measured")
    for device in devices:
        left_bytes, right_bytes = _mean_sent(simulated, device.device), _mean_sent(rounds, device.device)
        if left_bytes or right_bytes:
            add("sent_bytes_per_round", "B", device.device, left_bytes, right_bytes, "measured")
    peaks = run.summary.measured.peak_bytes if run.summary is not None else {}
    for device in devices:
        peak_bytes = estimate.peak_bytes.get(device.device) if estimate is not None else None
        add("peak_memory_bytes", "B", device.device, peak_bytes, peaks.get(device.device), "measured")
    return tuple(found)


def _prediction(run: RunFolder, estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Predicted joules per sample, samples per second and seconds per round."""
    if estimate is not None:
        return estimate.energy_j_per_sample, estimate.samples_per_s, estimate.step_s
    if run.summary is None:
        return None, None, None
    outcome = run.summary.predicted
    return outcome.joules_per_sample, outcome.samples_per_s, outcome.step_s


def _mean_compute_s(rounds: Sequence[RoundRow], device: str) -> float | None:
    seconds = [
        sum(value for action, value in row.action_s.items() if ACTION_CAUSES.get(action, action) == "compute")
        for row in rounds
        if row.device == device and any(ACTION_CAUSES.get(action, action) == "compute" for action in row.action_s)
    ]
    return statistics.fmean(seconds) if seconds else None


def _mean_sent(rounds: Sequence[RoundRow], device: str) -> float | None:
    sent = [row.bytes_sent for row in rounds if row.device == device and "send" in row.action_s]
    return statistics.fmean(sent) if sent else None


def _time_optimal_saving(run: RunFolder) -> Saving | None:
    mine = run.plan.estimate if run.plan is not None else None
    other = run.time_optimal.estimate if run.time_optimal is not None else None
    if run.plan is None or run.time_optimal is None or mine is None or other is None or other.energy_j_per_sample <= 0:
        return None
    slower_percent = (other.samples_per_s / mine.samples_per_s - 1) * 100 if mine.samples_per_s > 0 else None
    return Saving(
        other="the fastest plan",
        basis="predicted",
        energy_percent=(1 - mine.energy_j_per_sample / other.energy_j_per_sample) * 100,
        slower_percent=slower_percent,
        joules_per_sample=mine.energy_j_per_sample,
        other_joules_per_sample=other.energy_j_per_sample,
        same_plan=_decision(run.plan) == _decision(run.time_optimal),
    )


def _decision(plan: Plan) -> tuple[object, ...]:
    return (plan.stages, plan.batch, plan.micro_batch, plan.schedule)


def _gaps(devices: Sequence[DeviceEnergy], rounds: Sequence[RoundRow]) -> list[str]:
    """Name the devices whose joules are missing, wholly or for some rounds."""
    remarks: list[str] = []
    for device in devices:
        mine = [row for row in rounds if row.device == device.device]
        lacking_n = sum(row.energy_j is None for row in mine)
        if device.energy_j is None:
            remarks.append(f"No joules were recorded for {device.device}; the totals leave it out.")
        elif lacking_n:
            remarks.append(
                f"{lacking_n} of {len(mine)} rounds of {device.device} have no joules; the totals leave them out."
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
