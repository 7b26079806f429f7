"""The figures of a run as named series, for programs that people watch their training in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from greentrain.tracking import RunMetrics, Step
from greentrain_reports.emissions import run_id
from greentrain_reports.tables import RunReport

__all__ = ["run_metrics"]

# More steps than these are joined: nobody looks at more points, and every one is a message to a server.
_MOST_STEPS = 1000


def run_metrics(report: RunReport) -> RunMetrics:
    """Totals of a run, what was chosen, and joules and watts by step; what was not recorded is absent, never 0."""
    head, account, plan = report.headline, report.carbon, report.run.plan
    totals: dict[str, float | int | None] = {
        "energy_j": head.energy_j,
        "error_j": head.error_j,
        "energy_j_per_sample": head.joules_per_sample,
        "error_j_per_sample": head.error_j_per_sample,
        "samples_per_s": head.samples_per_s,
        "duration_s": head.duration_s,
        "co2e_kg": head.co2e_kg,
        "co2e_kg_per_sample": account.operational_kg_per_sample,
        "sci_kg_per_sample": account.sci_kg_per_sample,
        "accuracy_ratio": head.accuracy,
        **{f"device/{device.device}/energy_j": device.energy_j for device in report.devices},
    }
    place = account.intensity
    settings = {
        "source": head.source,
        "parallelism": report.parallelism,
        "devices": " ".join(device.device for device in report.devices),
        "objective": plan.objective.minimise if plan is not None else None,
        "planner": plan.planner if plan is not None else None,
        "intensity": f"{place.kg_per_kwh:.6g} kg/kWh, {place.place}, {place.source}" if place is not None else None,
    }
    return RunMetrics(
        run=report.run.name,
        run_id=run_id(report),
        totals={name: float(value) for name, value in totals.items() if value is not None},
        settings={name: value for name, value in settings.items() if value is not None},
        steps=tuple(_steps(report)),
        energy_j_by_device={device.device: device.energy_j for device in report.devices if device.energy_j is not None},
        source_by_device={device.device: device.source for device in report.devices if device.source is not None},
    )


def _steps(report: RunReport) -> Iterator[Step]:
    """Joules of all devices and watts of each, of rounds that every meter saw."""
    rounds = report.rounds
    if rounds is None:
        return
    seen = rounds.metered_steps()
    size = -(-len(seen) // _MOST_STEPS) or 1
    for first in range(0, len(seen), size):
        chosen_G = np.isin(rounds.step_G, seen[first : first + size])
        values = {"energy_j": float(rounds.energy_uj_G[chosen_G & (rounds.energy_uj_G >= 0)].sum()) / 1e6}
        for device in rounds.device.listed:
            own_G = chosen_G & rounds.device.rows_of(device) & (rounds.energy_uj_G >= 0)
            length_s = float(rounds.duration_s_G[own_G].sum())
            if length_s > 0:
                values[f"device/{device}/power_w"] = float(rounds.energy_uj_G[own_G].sum()) / 1e6 / length_s
        yield Step(number=int(seen[min(first + size, len(seen)) - 1]), values=values)
