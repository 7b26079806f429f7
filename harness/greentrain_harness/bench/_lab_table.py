"""Rows of the lab's benchmark, and the tables made of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec

__all__ = ["Row", "agreement_table", "plans_table", "ratios_table"]

# What the planner's own plans are held against.
_RIVALS = ("dapple", "asteroid", "pipeline", "tensor", "tensor-sequence", "data", "data-equal")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of one model on one cluster, predicted and measured; joules are modelled from real CPU time.

    Attributes:
        slower: How many times as long a fixed piece of work took around the run as around the measuring (None = not
            looked at).
    """

    model: str
    batch: int
    quotas: str
    bandwidth: str
    plan: str
    parallelism: str
    devices: str
    rounds: int
    predicted_step_s: float
    measured_step_s: float
    predicted_j_per_sample: float
    measured_j_per_sample: float
    samples_per_s: float
    memory_error: float | None
    slower: float | None = None

    @property
    def step_error(self) -> float:
        """Predicted over measured round time, less one."""
        return self.predicted_step_s / self.measured_step_s - 1

    @property
    def energy_error(self) -> float:
        """Predicted over measured joules per sample, less one."""
        return self.predicted_j_per_sample / self.measured_j_per_sample - 1

    @property
    def case(self) -> tuple[str, str, str, str]:
        """Model, samples per round, and cluster."""
        return (self.model, str(self.batch), self.quotas, self.bandwidth)


def plans_table(rows: Sequence[Row]) -> str:
    """Every plan, predicted beside measured."""
    lines = [
        f"{'model':16} {'batch':>5} {'quotas %':16} {'link':>8} {'plan':15} {'parallelism':15} "
        f"{'round s: pred':>13} {'meas':>8} {'diff':>5} {'J/sample: pred':>14} {'meas':>8} {'diff':>5} "
        f"{'samples/s':>9} {'memory':>6} {'pace':>5}  devices"
    ]
    lines += [
        f"{row.model:16} {row.batch:>5} {row.quotas:16} {row.bandwidth:>8} {row.plan:15} {row.parallelism:15} "
        f"{row.predicted_step_s:>13.3f} {row.measured_step_s:>8.3f} {row.step_error:>+5.0%} "
        f"{row.predicted_j_per_sample:>14.4f} {row.measured_j_per_sample:>8.4f} {row.energy_error:>+5.0%} "
        f"{row.samples_per_s:>9.1f} {_percent(row.memory_error):>6} "
        f"{_percent(None if row.slower is None else 1 / row.slower - 1):>5}  {row.devices}"
        for row in rows
    ]
    return "\n".join([*lines, "(joules: source=modelled from real CPU time)", ""])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}"


def agreement_table(rows: Sequence[Row]) -> str:
    """How far predictions lie from what was measured: median and worst over the plans."""
    lines = [f"{'predicted against measured':28} {'plans':>5} {'median':>7} {'worst':>7}"]
    for title, found in (
        ("round time", [row.step_error for row in rows]),
        ("J/sample", [row.energy_error for row in rows]),
        ("peak memory, worst device", [row.memory_error for row in rows]),
    ):
        errors = [error for error in found if error is not None]
        if errors:
            middle = statistics.median(abs(error) for error in errors)
            lines.append(f"{title:28} {len(errors):>5} {middle:>7.1%} {max(errors, key=abs):>+7.1%}")
    return "\n".join([*lines, ""])


def ratios_table(rows: Sequence[Row]) -> str:
    """By case, each baseline against the planner's own plans: its round's time, and its joules."""
    times = _ratios(rows, "time-optimal", "round time over that of time-optimal", lambda row: row.measured_step_s)
    joules = _ratios(
        rows, "energy-optimal", "joules over those of energy-optimal", lambda row: row.measured_j_per_sample
    )
    return times + joules


def _ratios(rows: Sequence[Row], own_plan: str, title: str, figure: Callable[[Row], float]) -> str:
    own = {row.case: row for row in rows if row.plan == own_plan}
    rivals = [name for name in _RIVALS if any(row.plan == name for row in rows)]
    if not own or not rivals:
        return ""
    lines = [f"{title:50} " + " ".join(f"{name:>15}" for name in rivals)]
    for case, first in own.items():
        found = {row.plan: figure(row) / figure(first) for row in rows if row.case == case}
        cells = [f"{found[name]:.2f}" if name in found else "-" for name in rivals]
        lines.append(f"{' '.join(case):50} " + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join([*lines, ""])
