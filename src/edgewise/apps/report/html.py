"""HTML blocks of the report: cards, panels, tables and lists.

The caller escapes foreign text in cells, panels and lists. ``card``, heads and summaries are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def card(what: str, big: str, more: str) -> str:
    """Make a card with one headline number."""
    return (
        f'<div class="card"><div class="what">{escape(what)}</div><div class="big">{escape(big)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def panel(title: str, hint: str, body: str) -> str:
    """Make a panel with a heading, a hint and a chart. Empty without a chart."""
    paragraph = f'<p class="hint">{hint}</p>' if hint else ""
    return f'<div class="panel"><h3>{title}</h3>{paragraph}{body}</div>' if body else ""


def pair(*panels: str) -> str:
    """Put panels side by side if there is room. Empty without panels."""
    return f'<div class="pair">{"".join(panels)}</div>' if any(panels) else ""


def row(head: str, cells: Iterable[str], cls: str = "", plain: Sequence[int] = ()) -> str:
    """Make a table row: a heading cell, then cells, right-aligned unless their index is in ``plain``. All are HTML."""
    tds = "".join(f"<td{'' if i in plain else ' class=n'}>{c}</td>" for i, c in enumerate(cells))
    return f'<tr{f" class={cls}" if cls else ""}><th scope="row">{head}</th>{tds}</tr>'


def table(
    heads: Sequence[str], rows: Iterable[str], caption: str = "", plain: Sequence[int] = (), reflow: bool = False
) -> str:
    """Make an HTML table from ``row``s.

    Columns are right-aligned, except the first one and those in ``plain`` (counted without the first, as in ``row``).
    A table that is too wide scrolls, with a shadow at its edge. With ``reflow`` every row becomes a list of named
    values on a narrow screen instead.

    Args:
        heads: titles of all columns, escaped here.
    """
    top = "".join(
        f'<th scope="col"{"" if i == 0 or i - 1 in plain else " class=n"}>{escape(h)}</th>' for i, h in enumerate(heads)
    )
    paragraph = f'<p class="hint">{caption}</p>' if caption else ""
    if reflow:
        rows = (_with_column_heads(r, heads[1:]) for r in rows)
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'{paragraph}<div class="scroll{" reflow" if reflow else ""}" tabindex="0">{made}</div>'


def _with_column_heads(made: str, heads: Sequence[str]) -> str:
    """Give the cells of a ``row`` the heads of their columns. Empty cells are marked, to be left out of the list."""
    first, *cells = made.split("<td")
    out = [first]
    for head, cell in zip(heads, cells, strict=True):
        empty = ' data-empty="1"' if cell.split(">", 1)[1].startswith("</td>") else ""
        out.append(f'<td data-head="{escape(head)}"{empty}{cell}')
    return "".join(out)


def details(summary: str, body: str) -> str:
    """Make a block that is folded until a reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Make a list of names and HTML values. Empty values are left out."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs if v) + "</dl>"
