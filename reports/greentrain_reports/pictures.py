"""The pictures of a report: each is drawn twice, for wide screens and for phones, and described in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from greentrain.ledger import ACTION_CAUSES
from greentrain_reports.energy import CAUSES, RoundRow, TimelineBar
from greentrain_reports.figure import INK, MUTED, action_colour, bare_axes, device_colour, draw_svg
from greentrain_reports.tables import RunReport
from greentrain_reports.words import energy, number, power, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "energy_picture", "loss_picture", "power_picture", "round_picture", "timeline_picture"]

_WIDE_PX, _NARROW_PX = 900.0, 356.0
_MOST_POINTS = 120
_LINE_STYLES = ("-", "--", "-.", ":")


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn figure.

    Attributes:
        name: Unique in the page.
        wide_svg: For wide screens and print.
        narrow_svg: For phones.
        alternative: What the picture shows, in words and figures.
        caption: Shown under it.
        actions: Actions or causes whose colours the picture uses, for the legend.
    """

    name: str
    wide_svg: str
    narrow_svg: str
    alternative: str
    caption: str
    actions: tuple[str, ...] = ()


def energy_picture(report: RunReport) -> Picture | None:
    """Joules of a round by device and cause, recorded and predicted; None when neither is known."""
    rounds_n = report.headline.rounds
    bars: list[tuple[str, str, dict[str, float], str]] = []
    for device in report.devices:
        if device.energy_j is not None and rounds_n:
            parts_j = device.cause_j or {"other": device.energy_j}
            shown = {cause: energy_j / rounds_n for cause, energy_j in parts_j.items()}
            bars.append((device.device, device.source or "recorded", shown, "solid"))
        if device.device in report.predicted_cause_j:
            bars.append((device.device, "predicted", report.predicted_cause_j[device.device], "pale"))
    for name, cause_j in report.predicted_cause_j.items():
        if all(device.device != name for device in report.devices):
            bars.append((name, "predicted", cause_j, "pale"))
    largest_j = max((sum(cause_j.values()) for _, _, cause_j, _ in bars), default=0.0)
    if largest_j <= 0:
        return None
    scale, unit = _energy_scale(largest_j)

    def draw(axes: Axes, *, narrow: bool) -> None:
        y, ticks, labels, before = 0.0, list[float](), list[str](), ""
        for name, kind, cause_j, look in bars:
            y += 0.0 if not ticks else (1.45 if name != before else 1.0)
            left = 0.0
            for cause in _in_order(cause_j):
                width = cause_j[cause] * scale
                axes.barh(
                    y, width, left=left, height=0.72, color=action_colour(cause), linewidth=0,
                    alpha=1.0 if look == "solid" else 0.45,
                )  # fmt: skip
                left += width
            axes.annotate(
                number(left), (left, y), xytext=(6, 0), textcoords="offset points", va="center", color=INK, fontsize=11
            )
            ticks.append(y)
            short = _shortened(name, 12) if narrow else _shortened(name, 28)
            labels.append(f"{short}\n{kind}" if narrow else f"{short}, {kind}")
            before = name
        axes.set_yticks(ticks, labels, fontsize=11 if narrow else 12)
        axes.invert_yaxis()
        axes.set_xlim(0, largest_j * scale * (1.22 if narrow else 1.1))
        axes.set_xlabel(f"{unit} per round")
        _few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="x")

    words = "; ".join(
        f"{name} {kind} {energy(sum(cause_j.values()))}"
        + "".join(f", {cause} {energy(cause_j[cause])}" for cause in _in_order(cause_j) if cause != "other")
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
    height = 44.0
    return _picture(
        "energy", draw, wide_px=70 + height * 0.72 * len(bars) + 8, narrow_px=70 + height * len(bars),
        alternative=f"Stacked bars of the energy of one round by device and cause: {words}.", caption=caption,
        actions=_in_order({cause: 0.0 for _, _, cause_j, _ in bars for cause in cause_j}),
    )  # fmt: skip


def timeline_picture(report: RunReport) -> Picture | None:
    """One round's actions on every device; None when neither the simulator's nor the run's are known."""
    panels: list[tuple[str, Sequence[TimelineBar]]] = []
    if report.predicted_timeline:
        panels.append(("predicted (simulator)", report.predicted_timeline))
    if report.measured_timeline:
        panels.append((f"recorded (round {report.timeline_round}, of median length)", report.measured_timeline))
    missing = [
        text
        for text, bars in (
            ("The simulator's timeline is not recorded.", report.predicted_timeline),
            ("The run did not record when its actions ran.", report.measured_timeline),
        )
        if not bars
    ]
    return round_picture(panels, missing) if panels else None


def round_picture(panels: Sequence[tuple[str, Sequence[TimelineBar]]], remarks: Sequence[str] = ()) -> Picture:
    """The actions of one round, a panel per title and a lane per device.

    Args:
        panels: Title and bars; at least one panel.
        remarks: Sentences for the caption.
    """
    end_s = max(bar.start_s + bar.duration_s for _, bars in panels for bar in bars)
    scale, unit = (1e3, "ms") if end_s < 2 else (1.0, "s")
    lanes = {title: list(dict.fromkeys(bar.lane for bar in bars)) for title, bars in panels}
    lanes_n = sum(map(len, lanes.values()))

    def fill(figure: Figure, *, narrow: bool) -> None:
        ratios = [len(lanes[title]) + 0.6 for title, _ in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
        for axes, (title, bars) in zip(grid[:, 0], panels, strict=True):
            for action in _in_order({bar.action: 0.0 for bar in bars}):
                for position, lane in enumerate(lanes[title]):
                    spans = [
                        (bar.start_s * scale, bar.duration_s * scale)
                        for bar in bars
                        if bar.lane == lane and bar.action == action
                    ]
                    quiet = action in ("wait", "idle", "sleep")
                    height = 0.16 if quiet else 0.68
                    axes.broken_barh(
                        spans, (position - height / 2, height), facecolors=action_colour(action), linewidth=0
                    )
            axes.set_yticks(range(len(lanes[title])), [_shortened(lane, 12 if narrow else 28) for lane in lanes[title]])
            axes.set_ylim(len(lanes[title]) - 0.5, -0.5)
            axes.set_xlim(0, end_s * scale)
            axes.set_title(title, loc="left", fontsize=12, color=MUTED)
            _few_ticks(axes, "x", narrow)
            bare_axes(axes, grid="x")
        grid[-1, 0].set_xlabel(f"{unit} since the round began")

    words = "; ".join(
        f"{title}: " + ", ".join(f"{lane} computes {seconds(_busy_s(bars, lane))}" for lane in lanes[title])
        + f", the round ends at {seconds(max(bar.start_s + bar.duration_s for bar in bars))}"
        for title, bars in panels
    )  # fmt: skip
    height_px = 60 + 34 * len(panels) + 30 * lanes_n
    return Picture(
        name="timeline",
        wide_svg=draw_svg(
            "timeline-w", lambda figure: fill(figure, narrow=False), width_px=_WIDE_PX, height_px=height_px
        ),
        narrow_svg=draw_svg(
            "timeline-n", lambda figure: fill(figure, narrow=True), width_px=_NARROW_PX, height_px=height_px
        ),
        alternative=f"Timeline of one round by device. {words}.",
        caption=" ".join(
            [
                "What each device does during one round; thin lines are waiting.",
                *(["Both drawings share one time scale."] if len(panels) > 1 else []),
                *remarks,
            ]
        ),
        actions=_in_order({bar.action: 0.0 for _, bars in panels for bar in bars}),
    )


def power_picture(rounds: Sequence[RoundRow]) -> Picture | None:
    """Mean power of each device over the rounds; None when no joules were recorded."""
    series: defaultdict[str, list[tuple[int, float, float, float | None]]] = defaultdict(list)
    for row in rounds:
        if row.energy_j is not None and row.duration_s > 0:
            series[row.device].append((row.round, row.energy_j, row.duration_s, row.error_j))
    lines = {device: _binned(points) for device, points in series.items()}
    if not lines or max(len(points) for points in lines.values()) < 2:
        return None

    def draw(axes: Axes, *, narrow: bool) -> None:
        for index, (device, points) in enumerate(lines.items()):
            x = [point[0] for point in points]
            y = [point[1] for point in points]
            colour = device_colour(index)
            style = _LINE_STYLES[index % len(_LINE_STYLES)]
            axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=_shortened(device, 24))
            if all(point[2] is not None for point in points):
                low = [point[1] - (point[2] or 0.0) for point in points]
                high = [point[1] + (point[2] or 0.0) for point in points]
                axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("round")
        axes.set_ylabel("W")
        axes.margins(x=0.01)
        _few_ticks(axes, "x", narrow, whole=True)
        bare_axes(axes, grid="y")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1 if narrow else 4, borderaxespad=0, handlelength=2.4
        )

    means = ", ".join(
        f"{device} {power(sum(row[1] for row in points) / sum(row[2] for row in points))}"
        for device, points in series.items()
    )
    binned = max(len(points) for points in series.values()) > _MOST_POINTS
    return _picture(
        "power", draw, wide_px=280, narrow_px=230 + 18 * len(lines),
        alternative=f"Lines of the mean power of each device per round. Means over the run: {means}.",
        caption="Mean power of each device in each round; the pale band is the stated ± of the meter."
        + (f" Rounds are averaged into at most {_MOST_POINTS} points." if binned else ""),
    )  # fmt: skip


def loss_picture(loss_by_epoch: Sequence[float]) -> Picture | None:
    """Training loss over the epochs; None with fewer than two epochs."""
    if len(loss_by_epoch) < 2:
        return None

    def draw(axes: Axes, *, narrow: bool) -> None:
        marker = "o" if len(loss_by_epoch) <= 20 else None
        epochs = range(1, len(loss_by_epoch) + 1)
        axes.plot(epochs, loss_by_epoch, color=device_colour(0), linewidth=1.8, marker=marker, markersize=4)
        axes.set_ylim(bottom=0 if min(loss_by_epoch) >= 0 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        _few_ticks(axes, "x", narrow, whole=True)
        bare_axes(axes, grid="y")

    return _picture(
        "loss", draw, wide_px=230, narrow_px=210,
        alternative=f"Line of the mean training loss per epoch: from {number(loss_by_epoch[0])} in the first of "
        f"{len(loss_by_epoch)} epochs to {number(loss_by_epoch[-1])} in the last.",
        caption="Mean training loss of each epoch.",
    )  # fmt: skip


def _picture(
    name: str,
    draw: Callable[..., None],
    *,
    wide_px: float,
    narrow_px: float,
    alternative: str,
    caption: str,
    actions: tuple[str, ...] = (),
) -> Picture:
    def fill(figure: Figure, *, narrow: bool) -> None:
        draw(figure.subplots(), narrow=narrow)

    return Picture(
        name=name,
        wide_svg=draw_svg(f"{name}-w", lambda figure: fill(figure, narrow=False), width_px=_WIDE_PX, height_px=wide_px),
        narrow_svg=draw_svg(
            f"{name}-n", lambda figure: fill(figure, narrow=True), width_px=_NARROW_PX, height_px=narrow_px
        ),
        alternative=alternative,
        caption=caption,
        actions=actions,
    )


def _in_order(cause_j: Mapping[str, float]) -> tuple[str, ...]:
    known = [cause for cause in CAUSES if cause in cause_j]
    return (*known, *(cause for cause in cause_j if cause not in CAUSES))


def _busy_s(bars: Sequence[TimelineBar], lane: str) -> float:
    return sum(
        bar.duration_s for bar in bars if bar.lane == lane and ACTION_CAUSES.get(bar.action, bar.action) == "compute"
    )


def _binned(points: Sequence[tuple[int, float, float, float | None]]) -> list[tuple[float, float, float | None]]:
    """Round, watts and ± watts; neighbours are joined where there are more rounds than a line can show."""
    size = -(-len(points) // _MOST_POINTS)
    binned: list[tuple[float, float, float | None]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        duration_s = sum(point[2] for point in part)
        errors_j = [point[3] for point in part]
        known_j = [error_j for error_j in errors_j if error_j is not None]
        error_w = sum(known_j) / duration_s if len(known_j) == len(errors_j) else None
        middle = sum(point[0] for point in part) / len(part)
        binned.append((middle, sum(point[1] for point in part) / duration_s, error_w))
    return binned


def _energy_scale(largest_j: float) -> tuple[float, str]:
    for unit, factor in (("kJ", 1e-3), ("J", 1.0), ("mJ", 1e3)):
        if largest_j * factor >= 1:
            return factor, unit
    return 1e6, "µJ"


def _few_ticks(axes: Axes, axis: str, narrow: bool, *, whole: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=4 if narrow else 8, integer=whole, steps=[1, 2, 2.5, 5, 10])
    (axes.xaxis if axis == "x" else axes.yaxis).set_major_locator(locator)


def _shortened(name: str, most: int) -> str:
    # A dollar sign would start mathematics in matplotlib.
    plain = name.replace("$", r"\$")
    return plain if len(name) <= most else f"{plain[: most - 1]}…"
