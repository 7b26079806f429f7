"""Picture: a figure drawn twice, for wide screens and for phones, and described in words; what all pictures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from greentrain_reports.energy import CAUSES
from greentrain_reports.figure import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "drawn", "energy_scale", "few_ticks", "in_order", "shortened"]

WIDE_PX, NARROW_PX = 900.0, 356.0


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn figure.

    Attributes:
        name: Unique in the page.
        wide_svg: For wide screens and print.
        narrow_svg: For phones.
        alternative: What the picture shows, in words and figures.
        caption: Shown under it.
        actions: Actions or causes whose colours the picture uses, for the legend; also their keys.
        series: Names of the lines, in the order of their colours; their keys are ``s0``, ``s1``, …
    """

    name: str
    wide_svg: str
    narrow_svg: str
    alternative: str
    caption: str
    actions: tuple[str, ...] = ()
    series: tuple[str, ...] = ()


def drawn(
    name: str,
    fill: Callable[[Figure, bool], None],
    *,
    wide_px: float,
    narrow_px: float,
    alternative: str,
    caption: str,
    actions: tuple[str, ...] = (),
    series: tuple[str, ...] = (),
) -> Picture:
    """Draw both sizes.

    Args:
        name: Unique in the page.
        fill: Fills the figure; its second argument is whether it is the narrow one.
        wide_px: Height of the wide drawing, CSS pixels.
        narrow_px: Height of the narrow one.
        alternative: What the picture shows, in words.
        caption: Shown under it.
        actions: Actions whose colours it uses.
        series: Names of its lines.
    """
    plain = "".join(letter if letter.isalnum() else "-" for letter in name)
    return Picture(
        name=name,
        wide_svg=draw_svg(f"{plain}-w", lambda figure: fill(figure, False), width_px=WIDE_PX, height_px=wide_px),
        narrow_svg=draw_svg(f"{plain}-n", lambda figure: fill(figure, True), width_px=NARROW_PX, height_px=narrow_px),
        alternative=alternative,
        caption=caption,
        actions=actions,
        series=series,
    )


def in_order(cause_j: Mapping[str, object]) -> tuple[str, ...]:
    """Causes or actions in the order of tables and pictures."""
    known = [cause for cause in CAUSES if cause in cause_j]
    return (*known, *(cause for cause in cause_j if cause not in CAUSES))


def energy_scale(largest_j: float) -> tuple[float, str]:
    """Factor and unit for an axis of energies."""
    for unit, factor in (("kJ", 1e-3), ("J", 1.0), ("mJ", 1e3)):
        if largest_j * factor >= 1:
            return factor, unit
    return 1e6, "µJ"


def few_ticks(axes: Axes, axis: str, narrow: bool, *, whole: bool = False) -> None:
    """As many ticks as the width has room for."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=4 if narrow else 8, integer=whole, steps=[1, 2, 2.5, 5, 10])
    (axes.xaxis if axis == "x" else axes.yaxis).set_major_locator(locator)


def shortened(name: str, most: int) -> str:
    """A name that fits; a dollar sign would start mathematics in matplotlib."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
