"""HTML page of an audit: one self-contained file in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from edgewise.apps.report.html import card, pair, panel, row, table
from edgewise.apps.report.page import POLICY
from edgewise.apps.report.svg import Bar, bars


def audit_page(a: Mapping[str, Any]) -> str:
    """Build the HTML of the whole page from the result of ``audit.audit_recipe``."""
    css = resources.files("edgewise.apps.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    sections = _privacy_claims(a) + _leakage_section(a) + _crossings_section(a) + _memory_section(a)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape(a["recipe"])} · edgewise audit</title><style>{css}</style></head><body>
<div class="page"><header><p class="kind">edgewise audit</p><h1>{escape(a["recipe"])}</h1>
<p class="lead">{_audit_lead(a)}</p></header><main>{sections}</main>
<footer><code>edgewise audit</code> made this page. The same numbers are in <code>audit.json</code>.</footer>
</div></body></html>
"""


def _audit_lead(a: Mapping[str, Any]) -> str:
    """Write the first paragraph: the worst finding."""
    seen = next((x for x in a["leaks"] if x["seen"]), None)
    first = "No epsilon is claimed." if not a["findings"] else "No measurement exceeds its claim."
    if any(not f["holds"] for f in a["findings"]):
        first = "<b>A measurement exceeds its claim. This recipe must not run.</b>"
    if seen is None:
        return first
    largest = max((x for x in (seen["span"], seen["rows"]) if x is not None), default=None)
    if largest is None:
        return f"{first} The token attacks cannot use anything that the server sees."
    return (
        f"{first} The best attack on the server's view names <b>{100 * largest:.0f} %</b> of one batch's tokens. "
        f"Guessing frequent tokens names {100 * seen['base']:.0f} %."
    )


def _privacy_claims(a: Mapping[str, Any]) -> str:
    """Draw the claims and their measured lower bounds."""
    if not a["findings"]:
        return "<section><h2>Claims</h2><p>Without differential privacy no epsilon is claimed.</p></section>"
    cards = [
        card(
            f["name"].capitalize(),
            f"{f['epsilon_lower']:.3g} of {f['epsilon_claimed']:.3g}",
            f"measured epsilon ({_confidence_in_words(f)}) of claimed, {_trials_in_words(f)}: "
            + ("holds" if f["holds"] else "BROKEN"),
        )
        for f in a["findings"]
    ]
    whole = a["claim"]
    rows = [
        row(escape(f["name"]), [escape(f["of"]), escape("; ".join(f["left_out"]) or "nothing")], plain=(0, 1))
        for f in a["findings"]
    ]
    note = (
        f"<p>The recipe claims epsilon {whole['epsilon']:.3g} at delta {whole['delta']:g} for its whole run, at noise "
        f"multiplier {whole['noise_multiplier']:.4g}. Each audit compares with the claim for the part that it "
        f"attacked.</p>{table(('audit', 'attacked', 'left out'), rows, plain=(0, 1))}"
        f"<p>Not tried by any audit: {escape('; '.join(a['not_tried']))}.</p>"
        "<p class=hint>A lower bound can show that a claim is false, never that it is true.</p>"
    )
    return f'<section><h2>Claims</h2><div class="cards">{"".join(cards)}</div>{note}</section>'


def _confidence_in_words(f: Mapping[str, Any]) -> str:
    """Name the confidence of a bound."""
    return "exact" if f["confidence"] == 1.0 else f"{100 * f['confidence']:.0f} % lower bound"


def _trials_in_words(f: Mapping[str, Any]) -> str:
    """Name the trials behind a bound."""
    if f["name"] == "length":
        return f"{f['runs']:,} updates"
    if (g := f["guessed"]) is None:
        return f"{f['runs']:,} runs"
    return (
        f"{f['runs']:,} canaries, {g['right']:,} of {g['guesses']:,} guesses right "
        f"({g['epsilon_plain']:.3g} without the Gaussian curve)"
    )


def _leakage_section(a: Mapping[str, Any]) -> str:
    """Draw what single updates reveal."""
    if not a["leaks"]:
        return ""
    drawn = []
    for x in a["leaks"]:
        best = max((v for v in (x["span"], x["rows"]) if v is not None), default=None)
        if best is not None:
            name = x["what"] + (" (the server sees this)" if x["seen"] else "")
            drawn.append(Bar(name, best, f"{100 * best:.0f} %", colour="federated" if x["seen"] else "base"))
    drawn.append(Bar("guessing frequent tokens", a["leaks"][0]["base"], f"{100 * a['leaks'][0]['base']:.0f} %"))
    chart = bars("Tokens named by the better attack", drawn, width=1000, left=520)
    rows = [
        row(
            escape(x["what"]) + (" <b>(seen by the server)</b>" if x["seen"] else ""),
            [_percent(x["span"]), _percent(x["rows"]), _percent(x["base"])],
        )
        for x in a["leaks"]
    ]
    made = table(("from", "span check", "embedding rows", "guessing"), rows)
    hint = f"Share of the {a['tokens']} distinct tokens of one batch that an attacker names with as many guesses."
    return f"<section><h2>Leakage</h2>{panel('Token recall', hint, chart)}{made}</section>"


def _crossings_section(a: Mapping[str, Any]) -> str:
    """Draw the table of what crosses the cut of a split model."""
    if not a["crossings"]:
        return ""
    rows = [
        row(
            f"{x['kind'].replace('_', ' ')} behind block {x['cut']}"
            + (f" <b>({escape(a['held_by'])} sees this)</b>" if x["seen"] else ""),
            [x["rounding"], x["tells"], _percent(x["top1"]), _percent(x["unigram"])],
        )
        for x in a["crossings"]
    ]
    made = table(("from", "format", "tells", "first guess", "most frequent token"), rows)
    hint = (
        f"Share of {a['crossings'][0]['tokens']:,} tokens of one device that a head names at its first guess. It was "
        "trained on text of other devices. The last column is the score without an attack."
    )
    return f"<section><h2>Cut</h2>{panel('Tokens recovered at the cut', hint, made)}</section>"


def _memory_section(a: Mapping[str, Any]) -> str:
    """Draw the table of what models remember."""
    if not a["memory"]:
        return ""
    rows = [
        row(
            escape(x["what"]),
            [
                f"{x['auc']:.3f} (chance: 0.5 +- {x['chance']:.2f})",
                f"{x['tpr_at_1']:.3f}",
                f"{x['exposure']:.1f} of {x['exposure_most']:.1f} bits",
            ],
        )
        for x in a["memory"]
    ]
    made = table(("model after", "membership AUC", "TPR at 1 % FPR", "canary exposure"), rows)
    n, m = a["memory"][0]["members"], a["memory"][0]["others"]
    hint = (
        f"Membership: the attacker looks for the {n} of {n + m} random pieces of one device's text that its update "
        "trained on. It compares their losses with the base model's. For a planted secret, 1 bit of exposure is chance."
    )
    return f"<section><h2>Memory</h2>{pair(panel('What the model remembers', hint, made))}</section>"


def _percent(x: float | None) -> str:
    """Write a share in percent."""
    return "-" if x is None else f"{100 * x:.0f} %"
