"""Figures as inline SVG whose colours and letters follow the page, light or dark. matplotlib loads on first use."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "action_colour",
    "action_colours",
    "bare_axes",
    "device_colour",
    "draw_svg",
    "mark",
    "series_colour_name",
]

# matplotlib cannot write CSS variables, so it draws with these placeholder colours; they are replaced after.
INK, GRID, MUTED = "#010101", "#010102", "#010103"

_ACTIONS = (
    "compute", "forward", "backward", "send", "receive", "sum", "update", "wait", "recovery", "idle", "sleep", "other",
)  # fmt: skip
# Between the parts of a mark, until the drawing is finished; no name of a device holds it.
_PART = "\x1e"
_SERIES_N = 6
_VARIABLES: dict[str, str] = {
    INK: "--ink",
    GRID: "--rule",
    MUTED: "--muted",
    **{f"#0201{index:02x}": f"--a-{name}" for index, name in enumerate(_ACTIONS)},
    **{f"#0202{index:02x}": f"--s-{index}" for index in range(_SERIES_N)},
}


def action_colour(action: str) -> str:
    """Placeholder colour of an action or cause."""
    return f"#0201{_ACTIONS.index(action if action in _ACTIONS else 'other'):02x}"


def action_colours() -> tuple[str, ...]:
    """Names of the actions that have a colour of their own, and ``other``."""
    return _ACTIONS


def device_colour(index: int) -> str:
    """Placeholder colour of the device at a position; colours repeat, line styles tell repeats apart."""
    return f"#0202{index % _SERIES_N:02x}"


def series_colour_name(index: int) -> str:
    """The page's name of that colour."""
    return f"--s-{index % _SERIES_N}"


def mark(artist: Artist, *, key: str, tip: str = "") -> None:
    """Let the page switch an artist off by its key, and say its tip where somebody points at it."""
    artist.set_gid(f"{_PART}{key.replace(_PART, ' ')}{_PART}{tip.replace(_PART, ' ')}")


def draw_svg(name: str, draw: Callable[[Figure], None], *, width_px: float, height_px: float) -> str:
    """Draw one figure.

    Args:
        name: Unique in the page; keeps the ids of several figures apart.
        draw: Fills the figure.
        width_px: Width of the drawing, in CSS pixels.
        height_px: Height likewise.

    Returns:
        An ``<svg>`` element without any reference to the outside.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(name):
        # One SVG point per CSS pixel.
        figure = Figure(figsize=(width_px / 72, height_px / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    return _inline(stream.getvalue(), name)


def bare_axes(axes: Axes, *, grid: str) -> None:
    """Leave only what carries meaning: a base line, quiet ticks and a quiet grid on one axis."""
    for side in ("top", "right", "left" if grid == "y" else "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="y" if grid == "y" else "x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


@contextmanager
def _style(name: str) -> Generator[None, None, None]:
    import matplotlib as mpl

    settings: dict[Any, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 12.0,
        "axes.labelsize": 12.0,
        "xtick.labelsize": 12.0,
        "ytick.labelsize": 12.0,
        "legend.fontsize": 12.0,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.labelcolor": INK,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Letters are drawn by the reader's browser, whatever matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    opening, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    opening = f'<svg {box.group(0) if box else ""} aria-hidden="true" focusable="false"'
    rest = re.sub(f'<g id="{_PART}([^{_PART}"]*){_PART}([^"]*)">', _marked, rest)
    rest = rest.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    rest = rest.replace('xlink:href="#', f'href="#{name}-')
    # The page's letters are used; sizes stay as drawn.
    rest = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", rest)
    rest = re.sub(r"font-family: [^;\"]*;? ?", "", rest)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    rest = re.sub(r"\n\s*", "\n", rest).strip()
    return f"{opening}>{rest}"


def _marked(found: re.Match[str]) -> str:
    key, tip = found.groups()
    return f'<g data-key="{key}" data-tip="{tip}">' if tip else f'<g data-key="{key}">'
