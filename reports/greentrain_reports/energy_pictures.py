"""Bars of joules: by device and cause of one run, and by cause of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from greentrain_reports.figure import INK, action_colour, bare_axes, mark
from greentrain_reports.pictures import Picture, drawn, energy_scale, few_ticks, in_order, shortened
from greentrain_reports.tables import RunReport
from greentrain_reports.words import energy, joules_per_sample, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["energy_picture", "runs_picture"]

# Name, kind, joules by cause, whether pale.
_Bar = tuple[str, str, dict[str, float], bool]


def energy_picture(report: RunReport) -> Picture | None:
    """Joules of a round by device and cause, recorded and predicted; None when neither is known."""
    bars = list(_round_bars(report))
    largest_j = max((sum(cause_j.values()) for _, _, cause_j, _ in bars), default=0.0)
    if largest_j <= 0:
        return None
    scale, unit = energy_scale(largest_j)

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        y, ticks, labels, before = 0.0, list[float](), list[str](), ""
        for name, kind, cause_j, pale in bars:
            y += 0.0 if not ticks else (1.45 if name != before else 1.0)
            left = _stack(axes, y, cause_j, scale, f"{name}, {kind}", pale=pale)
            axes.annotate(
                number(left), (left, y), xytext=(6, 0), textcoords="offset points", va="center", color=INK, fontsize=11
            )
            ticks.append(y)
            short = shortened(name, 12 if narrow else 28)
            labels.append(f"{short}\n{kind}" if narrow else f"{short}, {kind}")
            before = name
        axes.set_yticks(ticks, labels, fontsize=11 if narrow else 12)
        axes.invert_yaxis()
        axes.set_xlim(0, largest_j * scale * (1.22 if narrow else 1.1))
        axes.set_xlabel(f"{unit} per round")
        few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="x")

    words = "; ".join(
        f"{name} {kind} {energy(sum(cause_j.values()))}"
        + "".join(f", {cause} {energy(cause_j[cause])}" for cause in in_order(cause_j) if cause != "other")
        for name, kind, cause_j, _ in bars
    )
    attributed = any(device.cause_j for device in report.devices)
    caption = "Joules of one average round. " + (
        "Device totals are those of the ledger; their division into causes is attributed by time and idle power."
        if attributed
        else "The run did not attribute them to causes."
    )
    if report.predicted_cause_j:
        caption += " Pale bars: predicted by the cost model."
    return drawn(
        "energy", fill, wide_px=78 + 32 * len(bars), narrow_px=70 + 44 * len(bars),
        alternative=f"Stacked bars of the energy of one round by device and cause: {words}.", caption=caption,
        actions=in_order({cause: 0.0 for _, _, cause_j, _ in bars for cause in cause_j}),
    )  # fmt: skip


def runs_picture(reports: Sequence[RunReport]) -> Picture | None:
    """Joules per sample of several runs by cause, with their ±; None when fewer than two are known."""
    known = [report for report in reports if report.headline.joules_per_sample is not None]
    if len(known) < 2:
        return None
    most_j = max(_per_sample(report)[0] + (report.headline.error_j_per_sample or 0.0) for report in known)
    scale, unit = energy_scale(most_j)

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for y, report in enumerate(known):
            total_j, cause_j = _per_sample(report)
            _stack(axes, y, cause_j, scale, report.run.name, pale=report.headline.source != "measured")
            if report.headline.error_j_per_sample is not None:
                axes.errorbar(
                    [total_j * scale], [y], xerr=[report.headline.error_j_per_sample * scale], color=INK,
                    elinewidth=1.1, capsize=3,
                )  # fmt: skip
        axes.set_yticks(range(len(known)), [shortened(report.run.name, 12 if narrow else 28) for report in known])
        axes.invert_yaxis()
        axes.set_xlim(0, most_j * scale * 1.05)
        axes.set_xlabel(f"{unit} per sample")
        few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="x")

    words = "; ".join(
        f"{report.run.name} {joules_per_sample(report.headline.joules_per_sample)}, {report.headline.source}"
        + "".join(f", {cause} {energy(value)}" for cause, value in _per_sample(report)[1].items() if cause != "other")
        for report in known
    )
    return drawn(
        "runs", fill, wide_px=78 + 34 * len(known), narrow_px=78 + 34 * len(known),
        alternative=f"Stacked bars of the energy per sample of each run by cause: {words}.",
        caption="Joules per sample, all devices together. The whisker is the stated ± of the meters; pale bars are "
        "wholly or partly modelled.",
        actions=in_order({cause: 0.0 for report in known for cause in _per_sample(report)[1]}),
    )  # fmt: skip


def _round_bars(report: RunReport) -> Sequence[_Bar]:
    bars: list[_Bar] = []
    for device in report.devices:
        if device.energy_j is not None and device.energy_j_per_round is not None:
            parts_j = device.cause_j or {"other": device.energy_j}
            scale = device.energy_j_per_round / device.energy_j if device.energy_j > 0 else 0.0
            shown = {cause: energy_j * scale for cause, energy_j in parts_j.items()}
            bars.append((device.device, device.source or "recorded", shown, False))
        if device.device in report.predicted_cause_j:
            bars.append((device.device, "predicted", report.predicted_cause_j[device.device], True))
    listed = {device.device for device in report.devices}
    bars += [
        (name, "predicted", cause_j, True) for name, cause_j in report.predicted_cause_j.items() if name not in listed
    ]
    return bars


def _per_sample(report: RunReport) -> tuple[float, dict[str, float]]:
    """Joules per sample, and the same by cause."""
    total_j = report.headline.joules_per_sample or 0.0
    sums_j: dict[str, float] = {}
    for device in report.devices:
        for cause, energy_j in (device.cause_j or {"other": device.energy_j or 0.0}).items():
            sums_j[cause] = sums_j.get(cause, 0.0) + energy_j
    whole_j = sum(sums_j.values())
    return total_j, {cause: sums_j[cause] / whole_j * total_j for cause in in_order(sums_j)} if whole_j > 0 else {}


def _stack(axes: Axes, y: float, cause_j: dict[str, float], scale: float, name: str, *, pale: bool) -> float:
    left = 0.0
    for cause in in_order(cause_j):
        width = cause_j[cause] * scale
        (bar,) = axes.barh(
            y, width, left=left, height=0.72, color=action_colour(cause), linewidth=0, alpha=0.5 if pale else 1.0
        )
        shown = "not attributed" if cause == "other" else cause
        mark(bar, key=cause, tip=f"{name}: {shown} {energy(cause_j[cause])}")
        left += width
    return left
