"""Privacy sections of the report and the model card: the view of each party, the privacy card, epsilon by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edgewise.apps.report import svg
from edgewise.apps.report.html import card, facts, pair, panel, row, table
from edgewise.privacy.card import FEWER, card_assumptions, card_promises, fewer_honest_rows, no_epsilon_sentence

Summary = Mapping[str, Any]
SEEN = {"who": "who", "updates": "single updates", "sum": "the sum", "promised": "promised"}


def privacy_section(s: Summary) -> str:
    """Build the report's section on privacy. A run of an older version recorded nothing, and says so."""
    p = s["plan"].get("privacy")
    if not p:
        return '<p class="hint">Not recorded.</p>'
    rows = [[escape(w[k]) for k in SEEN] for w in p["seen"]]
    made = table(tuple(SEEN.values()), [row(who, rest, plain=(0, 1, 2)) for who, *rest in rows], plain=(0, 1, 2))
    c = p["card"]
    if c is None:
        return f"<p>{no_epsilon_sentence(p['servers'])}</p>{panel('Who could see what', '', made)}"
    return _privacy_cards(s, c) + panel("Who could see what", "", made) + pair(_spending_chart(s, c), _rests_on(c))


def privacy_markdown(s: Summary, played: int) -> str:
    """Build the Markdown privacy section of a model card.

    It holds the facts of ``privacy_section`` and the epsilon that was spent on the model after ``played`` rounds. It is
    empty if the run recorded nothing.
    """
    p = s["plan"].get("privacy")
    if not p:
        return ""
    seen = _markdown_table(tuple(SEEN.values()), [[w[k] for k in SEEN] for w in p["seen"]])
    c = p["card"]
    if c is None:
        return f"\n## Who could see what\n\n{no_epsilon_sentence(p['servers'])}\n\n{seen}"
    promised = card_promises(c)
    if (spent := _spent_epsilon(s, played)) is not None:
        promised.append(("spent on this model", f"epsilon {spent:.3g}, charged before each release"))
    card = _markdown_table(("", ""), [*promised, *card_assumptions(c)])
    caption, *heads = FEWER
    fewer_honest = f"\n{caption}:\n\n{_markdown_table(heads, rows)}" if (rows := fewer_honest_rows(c)) else ""
    summary = c["summary"][0].upper() + c["summary"][1:]
    return f"\n## Privacy card\n\n{summary}.\n\n{card}{fewer_honest}\n### Who could see what\n\n{seen}"


def sentence(s: Summary) -> str:
    """Say on one line who learns how much of a device: the promises of the card after all rounds and what was spent,
    or that no epsilon is claimed. It is empty if the run recorded nothing.

    Example: ``"against the server epsilon 8 at delta 1e-05, of the released models epsilon 7.4 at delta 1e-05; spent
    3.1 of 8"``.
    """
    p = s["plan"].get("privacy")
    if not p:
        return ""
    c = p["card"]
    if c is None:
        return no_epsilon_sentence(p["servers"])
    told = ", ".join(f"{who} {what}" for who, what in card_promises(c) if who != "budget")
    spent = _spent_epsilon(s, s["rounds"]["played"])
    return told if spent is None else f"{told}; spent {spent:.3g} of {c['budget']:.6g}"


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _spent_epsilon(s: Summary, played: int) -> float | None:
    """Return the epsilon that the ledger had charged after ``played`` rounds. None without a ledger."""
    return next((r["epsilon"] for r in reversed(s["per_round"]) if r["round"] < played and r.get("epsilon")), None)


def _privacy_cards(s: Summary, c: Mapping[str, Any]) -> str:
    """Draw the cards with the epsilons of a run."""
    spent = _spent_epsilon(s, s["rounds"]["played"])
    shown = [
        card(
            "Against the server",
            _epsilon_in_words(c["against_server"]),
            f"epsilon at delta {c['delta']:g}, after all rounds",
        ),
        card(
            "Of the released models",
            _epsilon_in_words(c["of_release"]),
            f"epsilon at delta {c['delta']:g}, after all rounds",
        ),
    ]
    if spent is not None:
        shown.append(
            card("Spent so far", f"{spent:.3g} of {c['budget']:g}", "charged in the ledger before each release")
        )
    return f'<div class="cards">{"".join(shown)}</div><p class="hint">{escape(c["summary"])}.</p>'


def _spending_chart(s: Summary, c: Mapping[str, Any]) -> str:
    """Draw epsilon over the rounds."""
    spent = [(r["round"] + 1, r["epsilon"]) for r in s["per_round"] if r.get("epsilon")]
    some = spent[:: -(-len(spent) // 12) or 1]
    bars = [svg.Bar(f"round {n}", eps, f"{eps:.3g}") for n, eps in some + spent[-1:] * (some[-1:] != spent[-1:])]
    if not bars:
        return ""
    bars.append(svg.Bar("budget", c["budget"], f"{c['budget']:g}", colour="base"))
    return panel("Epsilon by round", "Total charge of the ledger after each round.", svg.bars("Epsilon by round", bars))


def _rests_on(c: Mapping[str, Any]) -> str:
    body = facts((name, escape(sentence)) for name, sentence in card_assumptions(c))
    if rows := fewer_honest_rows(c):
        caption, *heads = FEWER
        body += table(heads, [row(honest, [epsilon]) for honest, epsilon in rows], caption)
    return panel("Assumptions", "", body)


def _epsilon_in_words(x: float | None) -> str:
    """Write an epsilon. None is "nothing"."""
    return "nothing" if x is None else f"{x:.3g}"
