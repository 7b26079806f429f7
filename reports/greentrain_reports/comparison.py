"""Predicted beside measured, figure by figure."""

from __future__ import annotations

import msgspec
import numpy as np

from greentrain.plan import Estimate
from greentrain_reports.energy import DeviceEnergy, cause_totals_j
from greentrain_reports.ledger_table import LedgerTable
from greentrain_reports.rounds import RoundTable, compute_s, counted_rows, mean_where, round_table
from greentrain_reports.run_folder import RunFolder

__all__ = ["ComparisonRow", "RunFigures", "comparison", "predicted_cause_j"]


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


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the run itself says of the compared figures.

    Attributes:
        joules_per_sample: Energy over samples.
        source: Where its joules come from.
        samples_per_s: Throughput.
        round_s: Median seconds per round.
    """

    joules_per_sample: float | None
    source: str | None
    samples_per_s: float | None
    round_s: float | None


def comparison(
    run: RunFolder,
    figures: RunFigures,
    devices: tuple[DeviceEnergy, ...],
    rounds: RoundTable | None,
    predicted_j: dict[str, dict[str, float]],
) -> tuple[ComparisonRow, ...]:
    """Every figure of which one side at least is known."""
    estimate = run.plan.estimate if run.plan is not None else None
    # Where the plan's price is missing, the summary may still hold it.
    per_sample_j, samples_per_s, round_s = _prediction(run, estimate)
    names = [device.device for device in devices]
    simulated = round_table(run.predicted_rows) if run.predicted_rows is not None else None
    peaks = run.summary.measured.peak_bytes if run.summary is not None else {}
    found = [
        _row("energy_j_per_sample", "J/sample", "all", per_sample_j, figures.joules_per_sample, figures.source),
        _row("samples_per_s", "samples/s", "all", samples_per_s, figures.samples_per_s),
        _row("round_s", "s", "all", round_s, figures.round_s),
    ]
    for device in devices:
        cause_j = predicted_j.get(device.device)
        left_j = sum(cause_j.values()) if cause_j is not None else None
        found.append(_row("energy_j_per_round", "J", device.device, left_j, device.energy_j_per_round, device.source))
    for name in names:
        busy_s = estimate.busy_s.get(name) if estimate is not None else None
        found.append(_row("compute_s_per_round", "s", name, busy_s, _mean_compute_s(rounds, name)))
    for name in names:
        left, right = _mean_sent(simulated, name), _mean_sent(rounds, name)
        if left or right:
            found.append(_row("sent_bytes_per_round", "B", name, left, right))
    for name in names:
        peak_bytes = estimate.peak_bytes.get(name) if estimate is not None else None
        found.append(_row("peak_memory_bytes", "B", name, peak_bytes, peaks.get(name)))
    return tuple(row for row in found if row.predicted is not None or row.measured is not None)


def predicted_cause_j(run: RunFolder) -> dict[str, dict[str, float]]:
    """Predicted joules of one round by device and cause: the simulator's where it ran, else the plan's."""
    table = run.predicted_rows
    counted_N = counted_rows(table) if table is not None else np.zeros(0, dtype=bool)
    if table is not None and counted_N.any():
        rounds_n = len(np.unique(table.step_N[counted_N]))
        return {
            device: _per_round_j(table, counted_N & table.device.rows_of(device), rounds_n)
            for device in table.device.listed
        }
    estimate = run.plan.estimate if run.plan is not None else None
    return estimate.energy_j if estimate is not None else {}


def _per_round_j(table: LedgerTable, chosen_N: np.ndarray, rounds_n: int) -> dict[str, float]:
    return {cause: energy_j / rounds_n for cause, energy_j in cause_totals_j(table, chosen_N).items()}


def _row(
    quantity: str, unit: str, device: str, left: float | None, right: float | None, source: str | None = "measured"
) -> ComparisonRow:
    return ComparisonRow(
        quantity=quantity,
        unit=unit,
        device=device,
        predicted=left,
        measured=right,
        predicted_source="modelled" if left is not None else None,
        measured_source=source if right is not None else None,
    )


def _prediction(run: RunFolder, estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Predicted joules per sample, samples per second and seconds per round."""
    if estimate is not None:
        return estimate.energy_j_per_sample, estimate.samples_per_s, estimate.step_s
    if run.summary is None:
        return None, None, None
    outcome = run.summary.predicted
    return outcome.joules_per_sample, outcome.samples_per_s, outcome.step_s


def _mean_compute_s(rounds: RoundTable | None, device: str) -> float | None:
    if rounds is None:
        return None
    seconds_G = compute_s(rounds)
    return mean_where(seconds_G, rounds.device.rows_of(device) & ~np.isnan(seconds_G))


def _mean_sent(rounds: RoundTable | None, device: str) -> float | None:
    if rounds is None:
        return None
    return mean_where(rounds.sent_bytes_G, rounds.device.rows_of(device) & (rounds.sent_bytes_G >= 0))
