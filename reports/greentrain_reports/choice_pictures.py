"""What could have been chosen, and how good the predictions were: the time-energy frontier, and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from greentrain_reports.comparison import ComparisonRow
from greentrain_reports.figure import GRID, INK, MUTED, action_colour, bare_axes, device_colour, mark
from greentrain_reports.pictures import Picture, drawn, energy_scale, few_ticks, shortened
from greentrain_reports.tables import RunReport
from greentrain_reports.words import joules_per_sample, number, signed_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["QUANTITIES", "Choice", "choices", "frontier_picture", "ratio_picture"]

QUANTITIES = {
    "energy_j_per_sample": "Energy per sample",
    "samples_per_s": "Samples per second",
    "round_s": "Length of a round",
    "energy_j_per_round": "Energy of a round",
    "compute_s_per_round": "Computing time of a round",
    "sent_bytes_per_round": "Bytes sent in a round",
    "peak_memory_bytes": "Peak training memory",
}


# One figure far off must not flatten the others.
_MOST_PERCENT = 100.0


class Choice(NamedTuple):
    """A plan that was known, or the run itself.

    Attributes:
        kind: ``frontier``, ``chosen``, ``fastest``, ``one device`` or ``recorded``.
        label: Who takes part, in words.
        samples_per_s: Throughput.
        energy_j: Joules per sample.
        error_j: ± of it; None for a prediction.
    """

    kind: str
    label: str
    samples_per_s: float
    energy_j: float
    error_j: float | None = None


def choices(report: RunReport) -> list[Choice]:
    """The frontier, the chosen plan, what it is compared with, and what the run recorded; as far as they are known."""
    run = report.run
    found = [
        Choice(
            "frontier", f"plan {row.number}, {row.parallelism} on {', '.join(row.devices)}", row.samples_per_s,
            row.energy_j_per_sample,
        )
        for row in (run.frontier.rows if run.frontier is not None else ())
    ]  # fmt: skip
    for kind, plan in (("chosen", run.plan), ("fastest", run.time_optimal), ("one device", run.single)):
        if plan is not None and plan.estimate is not None:
            price = plan.estimate
            found.append(Choice(kind, ", ".join(plan.devices), price.samples_per_s, price.energy_j_per_sample))
    head = report.headline
    if head.joules_per_sample is not None and head.samples_per_s is not None:
        found.append(
            Choice("recorded", "this run", head.samples_per_s, head.joules_per_sample, head.error_j_per_sample)
        )
    return found


def frontier_picture(found: Sequence[Choice]) -> Picture | None:
    """Joules per sample over throughput; None with fewer than two points."""
    if len({(choice.samples_per_s, choice.energy_j) for choice in found}) < 2:
        return None
    scale, unit = energy_scale(max(choice.energy_j for choice in found))
    looks = {
        "frontier": ("o", 5.0, device_colour(0)), "fastest": ("^", 13.0, device_colour(1)),
        "one device": ("s", 13.0, device_colour(3)), "chosen": ("o", 10.0, device_colour(0)),
        "recorded": ("D", 7.0, INK),
    }  # fmt: skip
    kinds = list(dict.fromkeys(choice.kind for choice in found))

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        line = sorted((choice.samples_per_s, choice.energy_j * scale) for choice in found if choice.kind == "frontier")
        if line:
            axes.plot(*zip(*line, strict=True), color=device_colour(0), linewidth=1.2, alpha=0.5)
        for choice in found:
            sign, size_pt, colour = looks[choice.kind]
            hollow = choice.kind in ("fastest", "one device")
            if choice.error_j is not None:
                axes.errorbar(
                    [choice.samples_per_s], [choice.energy_j * scale], yerr=[choice.error_j * scale], color=colour,
                    elinewidth=1.1, capsize=3,
                )  # fmt: skip
            (dot,) = axes.plot(
                [choice.samples_per_s], [choice.energy_j * scale], linestyle="", marker=sign, markersize=size_pt,
                color=colour, markerfacecolor="none" if hollow else colour, markeredgewidth=1.8, label=choice.kind,
            )  # fmt: skip
            mark(
                dot,
                key=choice.kind.replace(" ", "-"),
                tip=f"{choice.kind}: {choice.label}: {number(choice.samples_per_s)} samples/s, "
                f"{joules_per_sample(choice.energy_j)}",
            )
        axes.set_xlabel("samples/s (further right is faster)")
        axes.set_ylabel(f"{unit} per sample")
        axes.margins(x=0.08, y=0.12)
        axes.set_ylim(bottom=0)
        few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="y")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(
            [once[kind] for kind in kinds], kinds, loc="lower left", bbox_to_anchor=(0, 1.0),
            ncols=2 if narrow else len(kinds), borderaxespad=0,
        )  # fmt: skip

    words = "; ".join(
        f"{choice.kind} ({choice.label}) {number(choice.samples_per_s)} samples/s "
        f"at {joules_per_sample(choice.energy_j)}"
        for choice in found
    )
    return drawn(
        "frontier", fill, wide_px=320, narrow_px=320,
        alternative=f"Energy per sample over throughput of the plans that were known, and of the run: {words}.",
        caption="Below and to the right is better. Plans are priced by the cost model; the diamond is what this run "
        "recorded.",
    )  # fmt: skip


def ratio_picture(rows: Sequence[ComparisonRow]) -> Picture | None:
    """How far each recorded figure lies from its prediction, percent; None when none has both sides."""
    shown = [(row, row.difference_percent) for row in rows if row.difference_percent is not None]
    if not shown:
        return None
    names = [QUANTITIES[row.quantity] if row.device == "all" else row.device for row, _ in shown]
    most = min(max(20.0, *(abs(percent) for _, percent in shown)), _MOST_PERCENT)

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1)
        labels: list[str] = []
        for y, ((row, percent), name) in enumerate(zip(shown, names, strict=True)):
            value = max(-most, min(percent, most))
            (bar,) = axes.barh(y, value, height=0.6, color=action_colour("compute"), linewidth=0)
            full = f"{QUANTITIES[row.quantity]}{'' if row.device == 'all' else f' of {row.device}'}"
            mark(bar, key="compute", tip=f"{full}: {signed_percent(percent)} against the prediction")
            said = signed_percent(percent) if value == percent else f"{signed_percent(percent)} …"
            axes.annotate(
                said, (value, y), xytext=(5 if value >= 0 else -5, 0), textcoords="offset points", va="center",
                ha="left" if value >= 0 else "right", color=INK, fontsize=10.5,
            )  # fmt: skip
            label = _row_label(row, name)
            labels.append(shortened(label, 24 if narrow else 44))
        axes.set_yticks(range(len(labels)), labels, fontsize=10.5 if narrow else 12)
        axes.invert_yaxis()
        axes.set_xlim(-most * (1.7 if narrow else 1.2), most * (1.7 if narrow else 1.2))
        axes.set_xlabel("% above or below the prediction")
        few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="x")
        axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)

    words = "; ".join(
        f"{_row_label(row, name)} {signed_percent(percent)}" for (row, percent), name in zip(shown, names, strict=True)
    )
    return drawn(
        "ratios", fill, wide_px=64 + 24 * len(shown), narrow_px=64 + 26 * len(shown),
        alternative=f"Bars of how far each recorded figure lies from its prediction: {words}.",
        caption="How far the run lies above (right) or below (left) what was predicted before it."
        + (f" Bars end at {most:.0f} %." if any(abs(percent) > most for _, percent in shown) else ""),
    )  # fmt: skip


def _row_label(row: ComparisonRow, name: str) -> str:
    short = {
        "energy_j_per_round": "energy", "compute_s_per_round": "computing", "sent_bytes_per_round": "bytes sent",
        "peak_memory_bytes": "memory",
    }  # fmt: skip
    return name if row.device == "all" else f"{name}, {short.get(row.quantity, row.quantity)}"
