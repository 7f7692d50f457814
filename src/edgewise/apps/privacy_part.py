"""The report's part on privacy: who could see what, the privacy card, and epsilon by round."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgewise.apps import charts, words
from edgewise.apps.blocks import card, facts, pair, panel, row, table

Summary = Mapping[str, Any]


def privacy(s: Summary) -> str:
    """The section; a sentence where a run of an older version recorded nothing."""
    p = s["plan"].get("privacy")
    if not p:
        return '<p class="hint">Not recorded.</p>'
    rows = [
        row(escape(w["who"]), [escape(w[k]) for k in ("updates", "sum", "promised")], plain=(0, 1, 2))
        for w in p["seen"]
    ]
    made = table(("who", "single updates", "the sum", "promised"), rows, plain=(0, 1, 2))
    c = p["card"]
    if c is None:
        what = "Individual updates are hidden." if p["servers"] else "The server sees each update."
        return f"<p>{what} No epsilon is claimed.</p>{panel('Who could see what', '', made)}"
    return _cards(s, c) + panel("Who could see what", "", made) + pair(_spending(s, c), _rests_on(c))


def _cards(s: Summary, c: Mapping[str, Any]) -> str:
    spent = next((r["epsilon"] for r in reversed(s["per_round"]) if r.get("epsilon")), None)
    shown = [
        card("Against the server", _eps(c["against_server"]), f"epsilon at delta {c['delta']:g}, after all rounds"),
        card("Of the released models", _eps(c["of_release"]), f"epsilon at delta {c['delta']:g}, after all rounds"),
    ]
    if spent is not None:
        shown.append(card("Spent so far", f"{spent:.3g} of {c['budget']:g}", "the ledger, charged before each release"))
    return f'<div class="cards">{"".join(shown)}</div><p class="hint">{escape(c["summary"])}.</p>'


def _spending(s: Summary, c: Mapping[str, Any]) -> str:
    spent = [(r["round"] + 1, r["epsilon"]) for r in s["per_round"] if r.get("epsilon")]
    bars = [
        charts.Bar(f"round {n}", eps, f"{eps:.3g}")
        for n, eps in spent[:: max(1, len(spent) // 12)] + ([spent[-1]] if len(spent) > 12 else [])
    ]
    if not bars:
        return ""
    bars.append(charts.Bar("budget", c["budget"], f"{c['budget']:g}", colour="bundled"))
    return panel(
        "Epsilon by round", "what the ledger had charged after each round", charts.bars("Epsilon by round", bars)
    )


def _rests_on(c: Mapping[str, Any]) -> str:
    body = facts(
        (
            ("unit", escape(c["unit"])),
            ("neighbours", escape(c["adjacency"])),
            ("taking part", escape(f"{c['sampling']}; a device is in at most {words.count(c['rounds_each'])} rounds")),
            ("noise", escape(c["noise"])),
            ("honest devices counted on", words.count(c["honest"]) if c["honest"] else ""),
        )
    )
    if c["fewer"]:
        rows = [row(words.count(h), [f"{eps:.3g}"]) for h, eps in c["fewer"]]
        body += table(("honest devices", "epsilon of one round"), rows, "If fewer of them add their noise")
    return panel("What it rests on", "", body)


def _eps(x: float | None) -> str:
    return "nothing" if x is None else f"{x:.3g}"
