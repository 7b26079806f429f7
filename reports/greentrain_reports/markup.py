"""Small pieces of HTML. Whatever comes from a file passes :func:`esc`; the type ``Html`` says that it has."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NewType

from greentrain_reports.figure import action_colours, series_colour_name
from greentrain_reports.pictures import Picture
from greentrain_reports.words import GAP

__all__ = [
    "Html",
    "card",
    "chip",
    "definitions",
    "details",
    "esc",
    "exact",
    "figure",
    "gap",
    "join",
    "section",
    "table",
]

Html = NewType("Html", str)


def esc(text: object) -> Html:
    """Text as HTML; markup in it becomes letters."""
    return Html(html.escape(str(text), quote=True))


def join(parts: Iterable[Html], separator: str = "\n") -> Html:
    """Pieces one after the other."""
    return Html(separator.join(part for part in parts if part))


def gap(text: str = GAP) -> Html:
    """What the run did not record."""
    return Html(f'<span class="gap">{esc(text)}</span>')


def exact(value: float | None, shown: str) -> Html:
    """A rounded figure that carries its exact value; a gap where there is none."""
    return gap() if value is None else Html(f'<data value="{esc(value)}">{esc(shown)}</data>')


def chip(source: str | None) -> Html:
    """``measured`` or ``modelled`` beside a figure."""
    return gap() if source is None else Html(f'<span class="chip {esc(source)}">{esc(source)}</span>')


def section(identity: str, title: str, *parts: Html) -> Html:
    """A part of the page with its heading."""
    return Html(
        f'<section id="{esc(identity)}" aria-labelledby="{esc(identity)}-title">\n'
        f'<h2 id="{esc(identity)}-title">{esc(title)}</h2>\n{join(parts)}\n</section>'
    )


def card(title: str, figure: Html, unit: str, text: Html, *, lead: bool = False) -> Html:
    """One quoted figure with what must be known about it; the lead stands out."""
    kind = "card lead" if lead else "card"
    look = "figure gap" if 'class="gap"' in figure else "figure"
    # A number keeps to its unit when lines break.
    text = Html(re.sub(r"(?<=\d) (?=[%A-Za-zµ])", "&nbsp;", text))
    shown_unit = f' <span class="unit">{esc(unit)}</span>' if unit else ""
    return Html(
        f'<div class="{kind}"><h2>{esc(title)}</h2><p class="{look}">{figure}{shown_unit}</p><p>{text}</p></div>'
    )


def definitions(pairs: Iterable[tuple[str, Html]]) -> Html:
    """A list of names and what they mean."""
    return Html("<dl>" + "".join(f"<dt>{esc(name)}</dt><dd>{text}</dd>" for name, text in pairs) + "</dl>")


def table(
    label: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Html]],
    *,
    numeric: Sequence[int] = (),
    foot: Sequence[Html] | None = None,
) -> Html:
    """A table that scrolls sideways by itself where the screen is narrow.

    Args:
        label: What the table shows, for those who hear the page.
        head: Names of the columns.
        rows: Cells; the first of each row names it. A row of one cell is a heading of the rows below.
        numeric: Columns that are set flush right.
        foot: The last row, a sum.
    """

    def cells(row: Sequence[Html]) -> str:
        if len(row) == 1:
            return f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{row[0]}</th></tr>'
        return f"<tr>{''.join(_cell(cell, column, numeric) for column, cell in enumerate(row))}</tr>"

    headings = "".join(f'<th scope="col"{_look(column, numeric)}>{esc(name)}</th>' for column, name in enumerate(head))
    body = "\n".join(cells(row) for row in rows)
    feet = f"\n<tfoot>{cells(foot)}</tfoot>" if foot is not None else ""
    return Html(
        f'<div class="scroll" role="region" aria-label="{esc(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{body}\n</tbody>{feet}\n</table></div>"
    )


def figure(picture: Picture) -> Html:
    """A picture in both sizes, its legend, its caption and its description."""
    known = action_colours()
    entries = [
        (
            action,
            f"--a-{action if action in known else 'other'}",
            "not attributed" if action == "other" else action,
        )
        for action in picture.actions
    ]
    entries += [(f"s{index}", series_colour_name(index), name) for index, name in enumerate(picture.series)]
    listed = "".join(
        f'<li data-switch="{esc(key)}"><i style="background:var({colour})"></i>{esc(name)}</li>'
        for key, colour, name in entries
    )
    legend = f'<ul class="legend">{listed}</ul>' if listed else ""
    return Html(
        f'<figure id="figure-{esc(_plain(picture.name))}">{legend}'
        f'<div class="plot" role="img" aria-label="{esc(picture.alternative)}">'
        f'<div class="wide">{picture.wide_svg}</div><div class="narrow">{picture.narrow_svg}</div></div>'
        f"<figcaption>{esc(picture.caption)}</figcaption></figure>"
    )


def details(title: str, *parts: Html) -> Html:
    """Something that is shown when it is asked for."""
    return Html(f"<details><summary>{esc(title)}</summary>{join(parts)}</details>")


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _cell(cell: Html, column: int, numeric: Sequence[int]) -> str:
    if column == 0:
        return f'<th scope="row">{cell}</th>'
    return f"<td{_look(column, numeric)}>{cell}</td>"


def _look(column: int, numeric: Sequence[int]) -> str:
    return ' class="n"' if column in numeric else ""
