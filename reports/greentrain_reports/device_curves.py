"""One page of fitted curves: what was measured, the curve through it and its band, by device and operating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from greentrain.files import utc_now
from greentrain.power import PowerCurve
from greentrain.profile import ModelProfile
from greentrain.version import VERSION
from greentrain_reports.curve_tables import CurveRow, TimesRow, Window, pass_s_B
from greentrain_reports.figure import INK, MUTED, bare_axes, device_colour, draw_svg, mark
from greentrain_reports.markup import Html, chip, esc, exact, figure, gap, join, section, table
from greentrain_reports.page_frame import whole_page
from greentrain_reports.pictures import Picture
from greentrain_reports.words import number, percent, power, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DeviceCurves",
    "DrawnCurve",
    "Setting",
    "curves_page",
    "curves_picture",
    "settings_picture",
    "times_picture",
]

_WIDE_PX, _NARROW_PX = 900.0, 356.0
_PANEL_PX = 200.0
_WIDE_COLUMNS = 3


class DrawnCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A curve with what it was fitted to.

    Attributes:
        point: Operating point.
        source: ``measured`` or ``modelled``.
        curve: The curve.
        windows: Measured windows, where they were kept.
        recorded: Share and mean watts of a run at this point, to be drawn beside it.
    """

    point: str
    source: str
    curve: PowerCurve
    windows: tuple[Window, ...] = ()
    recorded: Window | None = None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What an operating point costs, fitted over all points; the bands hold the truth in 95 % of cases.

    Attributes:
        point: Operating point.
        measured: Whether it was measured, or is predicted.
        power_w: Busy power with its band: low, middle, high; watts.
        energy_j: Energy per unit of work with its band: low, middle, high; joules.
    """

    point: str
    measured: bool
    power_w: tuple[float, float, float]
    energy_j: tuple[float, float, float]


class DeviceCurves(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is drawn of one device.

    Attributes:
        device: Device id.
        curves: One per operating point.
        settings: Costs by operating point; empty where fewer than two of a control were measured.
        unit: What the unit of work is, in words.
    """

    device: str
    curves: tuple[DrawnCurve, ...]
    settings: tuple[Setting, ...] = ()
    unit: str = "matrix product"


def curves_page(
    devices: Sequence[DeviceCurves],
    curves: Sequence[CurveRow],
    times: Sequence[TimesRow],
    *,
    models: Sequence[ModelProfile] = (),
    now_utc: str | None = None,
) -> str:
    """The whole page.

    Args:
        devices: What is drawn.
        curves: The table of power curves.
        times: The table of layer times.
        models: Models whose times are drawn over the batch size.
        now_utc: When the page was made; now when not given.
    """
    sections = [
        section("curves", "Power curves", _curve_table(curves), *(figure(curves_picture(it)) for it in devices))
    ]
    costs = [settings_picture(it) for it in devices if it.settings]
    if costs:
        sections.append(section("points", "Operating points", *(figure(picture) for picture in costs)))
    listed = _times_table(times) if times else gap("no model was timed")
    timed = [(model, kind) for model in models for kind in dict.fromkeys(entry.kind for entry in model.times)]
    sections.append(section("times", "Layer times", listed, *(figure(times_picture(*pair)) for pair in timed)))
    names = ", ".join(it.device for it in devices)
    head = Html(
        f'<header><p class="eyebrow">greentrain models</p><h1>Power and time models</h1>'
        f'<p class="lede">{esc(names)}</p></header>'
    )
    foot = Html(f"<footer>Made by greentrain {esc(VERSION)} on {esc(now_utc or utc_now())}.</footer>")
    return whole_page("Power and time models", join((head, *sections, foot)))


def curves_picture(device: DeviceCurves) -> Picture:
    """Power over throughput share, one panel per operating point: windows as dots, the curve, its band."""
    most_w = max(
        [drawn.curve.busy_w + (drawn.curve.band_w or 0.0) for drawn in device.curves]
        + [watts for drawn in device.curves for _, watts in drawn.windows]
        + [drawn.recorded[1] for drawn in device.curves if drawn.recorded is not None]
    )

    def fill(figure: Figure, columns: int) -> None:
        rows = -(-len(device.curves) // columns)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(device.curves):
                axes.set_visible(False)
                continue
            _draw_curve(axes, device.curves[index], most_w)
            if index % columns == 0:
                axes.set_ylabel("W")
            if index + columns >= len(device.curves):
                axes.set_xlabel("share of peak throughput")
                axes.tick_params(labelbottom=True)

    words = "; ".join(
        f"{drawn.point} ({drawn.source}) {power(drawn.curve.idle_w)} idle, {power(drawn.curve.busy_w)} busy"
        + (f" ± {power(drawn.curve.band_w)}" if drawn.curve.band_w is not None else "")
        for drawn in device.curves
    )
    return _picture(
        f"curves-{device.device}", fill, len(device.curves),
        alternative=f"Power of {device.device} over its throughput share at each operating point: {words}.",
        caption=f"{device.device}: {_dots(device)}a dashed curve is modelled.",
    )  # fmt: skip


def settings_picture(device: DeviceCurves) -> Picture:
    """Busy power and energy per unit of work at every operating point, with bands; predicted ones are hollow."""

    def fill(figure: Figure, columns: int) -> None:
        wide = columns > 1
        grid = figure.subplots(1 if wide else 2, 2 if wide else 1, squeeze=False)
        panels = ([at.power_w for at in device.settings], "W while busy"), (
            [at.energy_j for at in device.settings], f"J per {device.unit}",
        )  # fmt: skip
        for axes, (bands, label) in zip(grid.flat, panels, strict=True):
            _draw_settings(axes, device.settings, bands, label)

    least = min(device.settings, key=lambda at: at.energy_j[1])
    predicted = [at.point for at in device.settings if not at.measured]
    words = "; ".join(f"{at.point} {power(at.power_w[1])}, {number(at.energy_j[1])} J" for at in device.settings)
    return _picture(
        f"points-{device.device}", fill, 1 + len(device.settings) // 6, columns=2,
        alternative=f"Busy power and energy per {device.unit} of {device.device} by operating point: {words}.",
        caption=f"{device.device}: {least.point} takes least energy per {device.unit}. Bars hold the truth in 95 % of "
        f"cases; {'hollow dots are predicted: ' + ', '.join(predicted) if predicted else 'every point was measured'}.",
    )  # fmt: skip


def times_picture(model: ModelProfile, kind: str) -> Picture:
    """Seconds per sample of a whole pass over the batch size, one line per operating point."""
    lines = [
        (entry, [time_s / batch for time_s, batch in zip(pass_s_B(entry), entry.batch_B, strict=True)])
        for entry in model.times
        if entry.kind == kind
    ]
    scale, unit = (1e3, "ms") if max(max(sample_s_B) for _, sample_s_B in lines) < 1 else (1.0, "s")

    def fill(figure: Figure, columns: int) -> None:
        axes = figure.subplots()
        for index, (entry, sample_s_B) in enumerate(lines):
            modelled = entry.provenance.source == "modelled"
            axes.plot(
                entry.batch_B, [sample_s * scale for sample_s in sample_s_B], color=device_colour(index), linewidth=1.8,
                linestyle="--" if modelled else "-", marker=None if modelled else "o", markersize=4,
                label=_plain(entry.point),
            )  # fmt: skip
        sizes = sorted({size for entry, _ in lines for size in entry.batch_B})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch size")
        axes.set_ylabel(f"{unit} per sample")
        bare_axes(axes, grid="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(columns * 2, 6), borderaxespad=0)

    words = "; ".join(
        f"{entry.point} ({entry.provenance.source}) {seconds(sample_s_B[0])} at batch {entry.batch_B[0]}, "
        f"{seconds(sample_s_B[-1])} at batch {entry.batch_B[-1]}"
        for entry, sample_s_B in lines
    )
    return _picture(
        f"times-{model.model}-{kind}", fill, 1,
        alternative=f"Seconds per sample of {model.model} on {kind} over the batch size: {words}.",
        caption=f"{model.model} on {kind}: forward and backward pass of all layers; dots were measured, dashed "
        "lines are modelled.",
    )  # fmt: skip


def _dots(device: DeviceCurves) -> str:
    parts = ["dots are measured windows, "] if any(drawn.windows for drawn in device.curves) else []
    if any(drawn.recorded is not None for drawn in device.curves):
        parts.append("the diamond is the mean of this run, ")
    if any(drawn.curve.band_w is not None or drawn.curve.band_w_X is not None for drawn in device.curves):
        parts.append("the pale band is the stated ± of the curve, ")
    return "".join(parts)


def _draw_curve(axes: Axes, drawn: DrawnCurve, most_w: float) -> None:
    curve = drawn.curve
    colour = device_colour(0)
    axes.plot(
        curve.share_X,
        curve.power_w_X,
        color=colour,
        linewidth=1.8,
        linestyle="-" if drawn.source == "measured" else "--",
    )
    bands_w = [curve.band_at_w(share) for share in curve.share_X]
    if None not in bands_w:
        pairs = [(watts, band_w or 0.0) for watts, band_w in zip(curve.power_w_X, bands_w, strict=True)]
        low = [max(watts - band_w, 0.0) for watts, band_w in pairs]
        high = [watts + band_w for watts, band_w in pairs]
        axes.fill_between(curve.share_X, low, high, color=colour, alpha=0.16, linewidth=0)
    if drawn.windows:
        axes.plot(*zip(*drawn.windows, strict=True), color=INK, linestyle="", marker="o", markersize=3)
    if drawn.recorded is not None:
        (dot,) = axes.plot([drawn.recorded[0]], [drawn.recorded[1]], color=INK, linestyle="", marker="D", markersize=6)
        mark(
            dot,
            key="recorded",
            tip=f"this run: {power(drawn.recorded[1])} at {drawn.recorded[0]:.0%} busy; the curve says "
            f"{power(curve.power_w(drawn.recorded[0]))}",
        )
    axes.set_title(_plain(drawn.point), loc="left", fontsize=12, color=MUTED)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(0, most_w * 1.08 or 1.0)
    bare_axes(axes, grid="y")


def _draw_settings(
    axes: Axes, settings: Sequence[Setting], bands: Sequence[tuple[float, float, float]], label: str
) -> None:
    colour = device_colour(0)
    for position, (at, (low, middle, high)) in enumerate(zip(settings, bands, strict=True)):
        axes.plot([low, high], [position, position], color=colour, linewidth=1.6, alpha=0.5)
        axes.plot(
            [middle], [position], linestyle="", marker="o", markersize=6, color=colour,
            markerfacecolor=colour if at.measured else "none",
        )  # fmt: skip
    axes.set_yticks(range(len(settings)), [_plain(at.point) for at in settings])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    bare_axes(axes, grid="x")


def _picture(
    name: str,
    fill: Callable[[Figure, int], None],
    panels: int,
    *,
    alternative: str,
    caption: str,
    columns: int = _WIDE_COLUMNS,
) -> Picture:
    rows = -(-panels // columns) if columns == _WIDE_COLUMNS else panels
    narrow_rows = panels if columns == _WIDE_COLUMNS else 2 * panels
    plain = "".join(letter if letter.isalnum() else "-" for letter in name)
    return Picture(
        name=name,
        wide_svg=draw_svg(
            f"{plain}-w", lambda figure: fill(figure, columns), width_px=_WIDE_PX, height_px=40 + _PANEL_PX * rows
        ),
        narrow_svg=draw_svg(
            f"{plain}-n", lambda figure: fill(figure, 1), width_px=_NARROW_PX, height_px=40 + _PANEL_PX * narrow_rows
        ),
        alternative=alternative,
        caption=caption,
    )


def _curve_table(rows: Sequence[CurveRow]) -> Html:
    head = ("device", "point", "idle", "busy", "±", "fit", "windows", "left-out error", "measured shares", "source")
    cells = [
        (
            esc(row.device), esc(row.point), exact(row.idle_w, power(row.idle_w)), exact(row.busy_w, power(row.busy_w)),
            exact(row.band_w, power(row.band_w)), esc(row.fit), esc(row.points_n),
            exact(row.loo_ratio, percent(row.loo_ratio)),
            gap() if row.share_low is None else esc(f"{row.share_low:.2f} to {row.share_high:.2f}"), chip(row.source),
        )
        for row in rows
    ]  # fmt: skip
    return table("Power curves by device and operating point", head, cells, numeric=(2, 3, 4, 6, 7))


def _times_table(rows: Sequence[TimesRow]) -> Html:
    head = ("model", "kind", "point", "batch sizes", "per sample", "±", "fit", "left-out error", "spread", "source")
    cells = [
        (
            esc(row.model), esc(row.kind), esc(row.point),
            esc(f"{row.batch_low} to {row.batch_high} ({row.batches_n})"), exact(row.sample_s, seconds(row.sample_s)),
            exact(row.band_ratio, percent(row.band_ratio)), esc(row.fit), exact(row.loo_ratio, percent(row.loo_ratio)),
            exact(row.spread_ratio, percent(row.spread_ratio)), chip(row.source),
        )
        for row in rows
    ]  # fmt: skip
    return table("Layer times by model, device kind and operating point", head, cells, numeric=(4, 5, 7, 8))


def _plain(name: str) -> str:
    # A dollar sign would start mathematics in matplotlib.
    return name.replace("$", r"\$")
