"""Lines over time: power of each device over the run, and the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from greentrain.summary import Recovery
from greentrain_reports.figure import MUTED, bare_axes, device_colour, mark
from greentrain_reports.pictures import Picture, drawn, few_ticks, shortened
from greentrain_reports.rounds import RoundTable
from greentrain_reports.words import number, power, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PowerLine", "loss_picture", "power_lines", "power_picture"]

_MOST_POINTS = 120
_STRIPS_N = 60
_LINE_STYLES = ("-", "--", "-.", ":")


class PowerLine(NamedTuple):
    """Mean power of one device over the run. Axis P: points.

    Attributes:
        device: Its id.
        t_s_P: Middle of each point's rounds, seconds since the start of the run.
        power_w_P: Watts; NaN where no joules were recorded.
        error_w_P: ± watts; NaN where it is not known.
        mean_w: Watts over all rounds with joules.
    """

    device: str
    t_s_P: np.ndarray
    power_w_P: np.ndarray
    error_w_P: np.ndarray
    mean_w: float


def power_lines(rounds: RoundTable | None) -> list[PowerLine]:
    """One line per device that has joules in two rounds at least; neighbours are joined into at most 120 points."""
    found: list[PowerLine] = []
    for device in rounds.device.listed if rounds is not None else ():
        assert rounds is not None
        own_G = rounds.device.rows_of(device) & (rounds.duration_s_G > 0)
        known_G = own_G & (rounds.energy_uj_G >= 0)
        if known_G.sum() < 2:
            continue
        order = np.argsort(rounds.t_start_s_G[own_G], kind="stable")
        start_s, length_s = rounds.t_start_s_G[own_G][order], rounds.duration_s_G[own_G][order]
        energy_uj, error_uj = rounds.energy_uj_G[own_G][order], rounds.error_uj_G[own_G][order]
        bins = np.arange(len(start_s)) // -(-len(start_s) // _MOST_POINTS)
        measured = energy_uj >= 0
        seen_s = np.bincount(bins, weights=np.where(measured, length_s, 0.0))
        seen_j = np.bincount(bins, weights=np.where(measured, energy_uj, 0)) / 1e6
        # One unknown error makes the point's unknown.
        error_j = np.bincount(bins, weights=np.where(measured & (error_uj >= 0), error_uj, 0)) / 1e6
        unknown = np.bincount(bins, weights=measured & (error_uj < 0)) > 0
        counts = np.bincount(bins)
        divisor_s = np.where(seen_s > 0, seen_s, np.nan)
        found.append(
            PowerLine(
                device=device,
                t_s_P=np.bincount(bins, weights=start_s + length_s / 2) / counts,
                power_w_P=seen_j / divisor_s,
                error_w_P=np.where(unknown, np.nan, error_j / divisor_s),
                mean_w=float(rounds.energy_uj_G[known_G].sum() / 1e6 / rounds.duration_s_G[known_G].sum()),
            )
        )
    return found


def power_picture(rounds: RoundTable | None, recoveries: Sequence[Recovery] = ()) -> Picture | None:
    """Mean power of each device over the run; None when no joules were recorded.

    Args:
        rounds: The run's rounds.
        recoveries: Marked where they happened.
    """
    lines = power_lines(rounds)
    if rounds is None or not lines:
        return None
    end_s = max(float(line.t_s_P[-1]) for line in lines)
    marks = [(_time_of(rounds, it.round), it) for it in recoveries]

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for index, line in enumerate(lines):
            colour = device_colour(index)
            (drawn_line,) = axes.plot(
                line.t_s_P, line.power_w_P, color=colour, linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
                linewidth=1.8, marker="o" if len(line.t_s_P) < 3 else None,
            )  # fmt: skip
            mark(drawn_line, key=f"s{index}")
            band = axes.fill_between(
                line.t_s_P, line.power_w_P - line.error_w_P, line.power_w_P + line.error_w_P, color=colour, alpha=0.16,
                linewidth=0,
            )  # fmt: skip
            mark(band, key=f"s{index}")
        for t_s, it in marks:
            if t_s is not None:
                axes.axvline(t_s, color=MUTED, linewidth=1, linestyle=":")
                what = f"{', '.join(it.lost)} lost" if it.lost else f"{', '.join(it.joined)} joined"
                axes.annotate(
                    shortened(what, 18), (t_s, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                    textcoords="offset points", color=MUTED, fontsize=10,
                )  # fmt: skip
        _strips(axes, lines, end_s)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the run began")
        axes.set_ylabel("W")
        axes.margins(x=0.01)
        few_ticks(axes, "x", narrow)
        bare_axes(axes, grid="y")

    means = ", ".join(f"{line.device} {power(line.mean_w)}" for line in lines)
    joined = rounds.rounds_n > _MOST_POINTS * len(lines)
    broken = any(np.isnan(line.power_w_P).any() for line in lines) or (rounds.energy_uj_G < 0).any()
    return drawn(
        "power", fill, wide_px=280, narrow_px=240,
        alternative=f"Lines of the mean power of each device over the run. Means: {means}.",
        caption="Mean power of each device in each round; the pale band is the stated ± of the meter."
        + (f" Rounds are averaged into at most {_MOST_POINTS} points." if joined else "")
        + (" A line breaks or ends where no joules were recorded." if broken else ""),
        series=tuple(line.device for line in lines),
    )  # fmt: skip


def loss_picture(loss_by_epoch: Sequence[float]) -> Picture | None:
    """Training loss over the epochs; None with fewer than two epochs."""
    if len(loss_by_epoch) < 2:
        return None

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        epochs = range(1, len(loss_by_epoch) + 1)
        axes.plot(epochs, loss_by_epoch, color=device_colour(0), linewidth=1.8)
        if len(loss_by_epoch) <= 60:
            for epoch, loss in zip(epochs, loss_by_epoch, strict=True):
                (dot,) = axes.plot([epoch], [loss], color=device_colour(0), marker="o", markersize=4.5)
                mark(dot, key="loss", tip=f"epoch {epoch}: loss {number(loss)}")
        axes.set_ylim(bottom=0 if min(loss_by_epoch) >= 0 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        few_ticks(axes, "x", narrow, whole=True)
        bare_axes(axes, grid="y")

    return drawn(
        "loss", fill, wide_px=230, narrow_px=210,
        alternative=f"Line of the mean training loss per epoch: from {number(loss_by_epoch[0])} in the first of "
        f"{len(loss_by_epoch)} epochs to {number(loss_by_epoch[-1])} in the last.",
        caption="Mean training loss of each epoch.",
    )  # fmt: skip


def _strips(axes: Axes, lines: Sequence[PowerLine], end_s: float) -> None:
    """Unseen strips over the whole height that say what every line is at that time."""
    start_s = min(float(line.t_s_P[0]) for line in lines)
    edges_s = np.linspace(start_s, end_s, min(_STRIPS_N, max(len(line.t_s_P) for line in lines)) + 1)
    for low_s, high_s in zip(edges_s[:-1].tolist(), edges_s[1:].tolist(), strict=True):
        middle_s = (low_s + high_s) / 2
        shown: list[str] = []
        for line in lines:
            if line.t_s_P[0] - (high_s - low_s) <= middle_s <= line.t_s_P[-1] + (high_s - low_s):
                watts = float(line.power_w_P[np.argmin(np.abs(line.t_s_P - middle_s))])
                shown.append(f"{line.device} {'not recorded' if np.isnan(watts) else power(watts)}")
            else:
                shown.append(f"{line.device} not recorded")
        mark(axes.axvspan(low_s, high_s, alpha=0), key="hit", tip=f"{seconds(middle_s)}: {', '.join(shown)}")


def _time_of(rounds: RoundTable, number: int) -> float | None:
    chosen_G = rounds.step_G == number
    return float(rounds.t_start_s_G[chosen_G].min()) if chosen_G.any() else None
