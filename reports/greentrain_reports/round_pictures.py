"""One round, action by action: a lane per device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from greentrain.ledger import ACTION_CAUSES
from greentrain_reports.figure import MUTED, action_colour, bare_axes, mark
from greentrain_reports.pictures import Picture, drawn, few_ticks, in_order, shortened
from greentrain_reports.tables import RunReport
from greentrain_reports.timeline import TimelineBar
from greentrain_reports.words import energy, seconds, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "busy_s", "round_picture", "timeline_panels", "timeline_picture"]

# Title and bars.
Panel = tuple[str, Sequence[TimelineBar]]

# More bars than these are drawn without tips: the page must stay small.
_MOST_TIPS = 240
_QUIET = ("wait", "idle", "sleep")


def timeline_panels(report: RunReport) -> list[Panel]:
    """What is known of one round: the simulator's, and the run's own."""
    panels: list[Panel] = []
    if report.predicted_timeline:
        panels.append(("predicted (simulator)", report.predicted_timeline))
    if report.measured_timeline:
        panels.append((f"recorded (round {report.timeline_round}, of median length)", report.measured_timeline))
    return panels


def timeline_picture(report: RunReport) -> Picture | None:
    """One round's actions on every device; None when neither the simulator's nor the run's are known."""
    panels = timeline_panels(report)
    missing = [
        text
        for text, bars in (
            ("The simulator's timeline is not recorded.", report.predicted_timeline),
            ("The run did not record when its actions ran.", report.measured_timeline),
        )
        if not bars
    ]
    return round_picture(panels, missing) if panels else None


def round_picture(panels: Sequence[Panel], remarks: Sequence[str] = ()) -> Picture:
    """The actions of one round, a panel per title and a lane per device.

    Args:
        panels: Title and bars; at least one panel.
        remarks: Sentences for the caption.
    """
    end_s = max(bar.start_s + bar.duration_s for _, bars in panels for bar in bars)
    scale, unit = (1e3, "ms") if end_s < 2 else (1.0, "s")
    lanes = {title: list(dict.fromkeys(bar.lane for bar in bars)) for title, bars in panels}

    def fill(figure: Figure, narrow: bool) -> None:
        ratios = [len(lanes[title]) + 0.6 for title, _ in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
        for axes, (title, bars) in zip(grid[:, 0], panels, strict=True):
            _draw_lanes(axes, bars, lanes[title], scale)
            axes.set_yticks(range(len(lanes[title])), [shortened(lane, 12 if narrow else 28) for lane in lanes[title]])
            axes.set_ylim(len(lanes[title]) - 0.5, -0.5)
            axes.set_xlim(0, end_s * scale)
            axes.set_title(title, loc="left", fontsize=12, color=MUTED)
            few_ticks(axes, "x", narrow)
            bare_axes(axes, grid="x")
        grid[-1, 0].set_xlabel(f"{unit} since the round began")

    words = "; ".join(
        f"{title}: " + ", ".join(f"{lane} computes {seconds(busy_s(bars, lane))}" for lane in lanes[title])
        + f", the round ends at {seconds(max(bar.start_s + bar.duration_s for bar in bars))}"
        for title, bars in panels
    )  # fmt: skip
    height_px = 60 + 34 * len(panels) + 30 * sum(map(len, lanes.values()))
    crowded = any(len(bars) > _MOST_TIPS for _, bars in panels)
    caption = [
        "What each device does during one round; thin lines are waiting.",
        *(["Both drawings share one time scale."] if len(panels) > 1 else []),
        *(["Single actions are too many to point at; predicted.csv and ledger.csv list them."] if crowded else []),
        *remarks,
    ]
    return drawn(
        "timeline", fill, wide_px=height_px, narrow_px=height_px,
        alternative=f"Timeline of one round by device. {words}.", caption=" ".join(caption),
        actions=in_order({bar.action: 0.0 for _, bars in panels for bar in bars}),
    )  # fmt: skip


def busy_s(bars: Sequence[TimelineBar], lane: str) -> float:
    """Seconds in which a lane computes."""
    return sum(
        bar.duration_s for bar in bars if bar.lane == lane and ACTION_CAUSES.get(bar.action, bar.action) == "compute"
    )


def _draw_lanes(axes: Axes, bars: Sequence[TimelineBar], lanes: Sequence[str], scale: float) -> None:
    if len(bars) <= _MOST_TIPS:
        for bar in bars:
            (drawn_bar,) = axes.barh(
                lanes.index(bar.lane), bar.duration_s * scale, left=bar.start_s * scale, height=_height(bar.action),
                color=action_colour(bar.action), linewidth=0,
            )  # fmt: skip
            mark(drawn_bar, key=bar.action, tip=_tip(bar))
        return
    for action in in_order({bar.action: 0.0 for bar in bars}):
        for position, lane in enumerate(lanes):
            spans = [
                (bar.start_s * scale, bar.duration_s * scale)
                for bar in bars
                if bar.lane == lane and bar.action == action
            ]
            high = _height(action)
            joined = axes.broken_barh(
                spans, (position - high / 2, high), facecolors=action_colour(action), linewidth=0
            )  # fmt: skip
            mark(joined, key=action)


def _height(action: str) -> float:
    return 0.16 if action in _QUIET else 0.68


def _tip(bar: TimelineBar) -> str:
    parts = [f"{bar.lane}: {bar.action} {seconds(bar.duration_s)}, from {seconds(bar.start_s)}"]
    if bar.bytes:
        parts.append(size(bar.bytes))
    if bar.energy_j is not None:
        parts.append(energy(bar.energy_j))
    return ", ".join(parts)
