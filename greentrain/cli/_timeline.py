"""One round as text: a row per device, a column per slice of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from greentrain.ledger import LedgerRow
from greentrain.units import format_quantity

__all__ = ["timeline_text"]

_GLYPHS = {
    "forward": "F", "backward": "B", "send": "S", "receive": "R", "sum": "A", "update": "U",
    "wait": "·", "idle": "-", "sleep": "-",
}  # fmt: skip
_LEGEND = "F forward  B backward  S send  R receive  A gradient sum  U update  · waiting  - not used"
_QUIET = ("·", "-", " ")


def timeline_text(devices: Sequence[str], rows: Iterable[LedgerRow], round_s: float, *, columns: int) -> str:
    """The timeline of a simulated round.

    A column shows what takes most of it; what is nowhere the longest still gets one column. Messages travel while a
    device computes, so they only show where it waits.

    Args:
        devices: In the order of the rows of text.
        rows: The simulator's rows.
        round_s: Length of the round.
        columns: Width of the drawing.
    """
    by_device: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.action in _GLYPHS:
            by_device[row.device].append(row)
    unused = [name for name in by_device if name not in devices]
    width = max(len(name) for name in (*devices, *unused))
    lines = [f"  {name:{width}} |{_cells(by_device[name], round_s, columns)}|" for name in (*devices, *unused)]
    end = format_quantity(round_s, "time")
    lines.append(f"  {'':{width}}  0{end:>{columns - 1}}")
    lines.append(f"  {'':{width}}  {_LEGEND}")
    return "\n".join(lines)


def _cells(rows: Sequence[LedgerRow], round_s: float, columns: int) -> str:
    slice_s = round_s / columns
    covered_s: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(columns)]
    for row in rows:
        first = min(int(row.t_start_s / slice_s), columns - 1)
        # A message takes none of the device's time.
        covered_s[first][_GLYPHS[row.action]] += 0.0
        end_s = row.t_start_s + row.duration_s
        for column in range(first, min(int(end_s / slice_s), columns - 1) + 1):
            part_s = min(end_s, (column + 1) * slice_s) - max(row.t_start_s, column * slice_s)
            covered_s[column][_GLYPHS[row.action]] += max(part_s, 0.0)
    cells = [max(cover, key=lambda glyph: cover[glyph]) if cover else " " for cover in covered_s]
    lasting = {_GLYPHS[row.action] for row in rows if row.duration_s > 0}
    for glyph in sorted(lasting - set(cells)):
        column = max(range(columns), key=lambda index: covered_s[index].get(glyph, -1.0))
        if cells.count(cells[column]) > 1:
            cells[column] = glyph
    for column, cover in enumerate(covered_s):
        messages = [glyph for glyph in ("S", "R") if glyph in cover]
        if messages and cells[column] in _QUIET:
            cells[column] = messages[0]
    return "".join(cells)
