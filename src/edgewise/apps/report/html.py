"""The few HTML blocks that the report is made of. Texts that come from outside are escaped by whoever makes the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def card(what: str, big: str, more: str) -> str:
    """One headline number."""
    return (
        f'<div class="card"><div class="what">{escape(what)}</div><div class="big">{escape(big)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def panel(title: str, hint: str, body: str) -> str:
    """A chart with its heading; nothing where there is nothing to draw."""
    said = f'<p class="hint">{hint}</p>' if hint else ""
    return f'<div class="panel"><h3>{title}</h3>{said}{body}</div>' if body else ""


def pair(*panels: str) -> str:
    """Panels side by side where there is room."""
    return f'<div class="pair">{"".join(panels)}</div>' if any(panels) else ""


def row(head: str, cells: Iterable[str], cls: str = "", plain: Sequence[int] = ()) -> str:
    """A table row: a heading cell, then right-aligned cells but for the ones in ``plain``. HTML in, HTML out."""
    tds = "".join(f"<td{'' if i in plain else ' class=n'}>{c}</td>" for i, c in enumerate(cells))
    return f'<tr{f" class={cls}" if cls else ""}><th scope="row">{head}</th>{tds}</tr>'


def table(
    heads: Sequence[str], rows: Iterable[str], caption: str = "", plain: Sequence[int] = (), reflow: bool = False
) -> str:
    """A table from ``row``s; ``heads`` of all columns, right-aligned but for the first and the ones in ``plain``
    (counted as in ``row``, without the first).

    A table that is too wide for its place scrolls, and a shadow at its edge says so. With ``reflow`` every row becomes
    a list of named values on a narrow screen instead.
    """
    top = "".join(
        f'<th scope="col"{"" if i == 0 or i - 1 in plain else " class=n"}>{escape(h)}</th>' for i, h in enumerate(heads)
    )
    said = f'<p class="hint">{caption}</p>' if caption else ""
    if reflow:
        rows = (_named(r, heads[1:]) for r in rows)
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'{said}<div class="scroll{" reflow" if reflow else ""}" tabindex="0">{made}</div>'


def _named(made: str, heads: Sequence[str]) -> str:
    """A ``row`` whose cells know the heads of their columns; an empty cell is left out of the list."""
    first, *cells = made.split("<td")
    out = [first]
    for head, cell in zip(heads, cells, strict=True):
        empty = ' data-empty="1"' if cell.split(">", 1)[1].startswith("</td>") else ""
        out.append(f'<td data-head="{escape(head)}"{empty}{cell}')
    return "".join(out)


def details(summary: str, body: str) -> str:
    """Something that is folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and (HTML) values; empty values are left out."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs if v) + "</dl>"
