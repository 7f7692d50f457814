"""Words and HTML page of an audit with dishonest devices (``apps.federation.poisoning``).

Path("poison.html").write_text(page(found))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from typing import Any

from edgewise.apps.report.html import panel, row, table
from edgewise.apps.report.page import POLICY

HEADS = ("attack", "defence", "perplexity", "worse by", "trigger", "")
SKEWS = {"own": "own text", "iid": "text dealt evenly", "sorted": "text dealt by likeness"}
NOTE = (
    "Perplexity is that of the honest devices' held-out text. Trigger is the share of a secret answer that the model "
    "names after a trigger phrase. Liars run the device's own program, so its clip binds what they send. Behind masks "
    "nobody checks that, and a changed program is not bound."
)


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Group the rows into tables, with a title each: one for each share of liars and skew of the text."""

    def key(row: Mapping[str, Any]) -> tuple[float, str]:
        return row["share"], row["skew"]

    for (_, skew), group in groupby(sorted(found["rows"], key=key), key):
        rows = list(group)
        liars = f"{rows[0]['liars']} of {found['devices']} devices lie"
        yield f"{liars}, {SKEWS[skew]}, {found['rounds']} rounds", rows


def cells(row: Mapping[str, Any]) -> Sequence[str]:
    """Write a row's cells, as many as ``HEADS``."""
    return (
        row["attack"], row["defence"], f"{row['perplexity']:.3g}", f"{100 * (row['worse'] - 1):.0f} %",
        f"{100 * row['trigger']:.0f} %", "does harm" if row["harm"] else "",
    )  # fmt: skip


def costs(found: Mapping[str, Any]) -> list[str]:
    """Say what each defence costs where nobody lies. Several shares of liars have the largest cost."""
    worst: dict[tuple[str, str], float] = {}
    for cost in found["costs"]:
        key = cost["defence"], cost["skew"]
        worst[key] = max(cost["factor"], worst.get(key, 0.0))
    return [
        f"Without liars, the perplexity of {defence} is {factor:.3f} times that of the plain sum ({SKEWS[skew]})."
        for (defence, skew), factor in worst.items()
    ]


def page(found: Mapping[str, Any]) -> str:
    """Build the HTML of the whole page from the result of ``poisoning.play_poisonings``."""
    css = resources.files("edgewise.apps.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    sections = ""
    for title, rows in tables(found):
        made = [row(escape(c[0]), [escape(x) for x in c[1:]], plain=(0, 4)) for c in map(cells, rows)]
        sections += panel(escape(title), "", table(HEADS, made, plain=(0, 4)))
    harmful = sum(r["harm"] for r in found["rows"] if r["defence"] == "recipe")
    played = len([r for r in found["rows"] if r["defence"] == "recipe" and r["attack"] != "none"])
    lead = f"{harmful} of {played} attacks did harm to the recipe." if played else "The recipe itself was not played."
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in (*costs(found), NOTE))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape(found["recipe"])} · dishonest devices</title><style>{css}</style></head><body>
<div class="page"><header><p class="kind">edgewise audit --poison</p><h1>{escape(found["recipe"])}</h1>
<p class="lead">{lead}</p></header><main><section><h2>Attacks</h2>{sections}{paragraphs}</section></main>
<footer><code>edgewise audit --poison</code> made this page. The same numbers are in <code>poison.json</code>.</footer>
</div></body></html>
"""
