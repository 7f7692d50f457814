"""The HTML of the owner's page. All text is escaped here, because servers name their runs and write reasons.

All links are relative, because the page lies under a path that is secret (``owner_page``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgewise.apps.device.record import RecordLine
from edgewise.apps.device.status import SHOWN, amount, counted_noun, local_moment
from edgewise.apps.report.html import card, facts, row, table
from edgewise.drivers.http.browser import FIELD

PLACES = (("folder", "home"), ("policy", "policy"))
LINES = 100  # newest lines of the record that the page shows


def owner_page_html(status: Mapping[str, Any], lines: Sequence[RecordLine], form_token: str, note: str = "") -> str:
    """Write the page: what left this device, when, how much, under which promise, and the owner's orders."""
    left, paused = status["left"], status["state"] == "paused"
    word = status["state"] + (f": {status['why']}" if status["why"] else "")
    cap = status["budget"]
    spent = 0.0 if left["epsilon"] is None else left["epsilon"]
    budget = ("not capped", "by your policy")
    if cap is not None:
        budget = (f"{spent:.3g} of {cap['epsilon']:g}", f"at delta {cap['delta']:g}, over all runs")
    name = escape(f"{status['device']} of {status['server']}")
    cards = (
        card("Now", status["state"], status["why"] or ("the agent runs" if status["running"] else "")),
        card("Left today", amount(left["today"]).partition(", ")[2], counted_noun(left["today"]["frames"], "frame")),
        card("Left in all", amount(left["all"]).partition(", ")[2], counted_noun(left["all"]["rounds"], "round")),
        card("Epsilon", *budget),
    )
    body = [
        f"<h1>This device</h1><p class=hint>{name}. Now: {escape(word)}.</p>",
        f"<p class=alerts role=status>{escape(note)}</p>" if note else "",
        f"<p class=alerts>{escape(status['policy_error'])}</p>" if status["policy_error"] else "",
        f'<div class="cards">{"".join(cards)}</div>',
        _orders(paused, form_token),
        "<h2>Runs</h2>",
        _runs(left["runs"]),
        "<h2>What left, the newest first</h2>",
        _lines(lines),
        "<h2>Refused</h2>" if left["refusals"] else "",
        _refusals(left["refusals"]),
        f"<h2>Leave</h2>{_leave(form_token)}",
        facts([(name.capitalize(), f"<code>{escape(status[key])}</code>") for name, key in PLACES]),
    ]
    return whole_owner_page("".join(body))


def whole_owner_page(body: str) -> str:
    """Write a whole page around its content."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>This device · edgewise</title>'
        f'<link rel="icon" href="icon.svg"><link rel="stylesheet" href="style.css"></head><body><main>{body}</main>'
        '<footer><a href="page.json">This page as JSON</a></footer></body></html>'
    )


def _form(path: str, form_token: str, inner: str) -> str:
    field = f'<input type="hidden" name="{FIELD}" value="{escape(form_token)}">'
    return f'<form method="post" action="{path}" class="fields">{field}{inner}</form>'


def _orders(paused: bool, form_token: str) -> str:
    if paused:
        inner = '<button class="main">Resume</button>'
        hint = "Nothing leaves this device until you resume."
        form = _form("resume", form_token, inner)
        return f'<section class="panel"><h2>Paused</h2><p class=hint>{hint}</p>{form}</section>'
    inner = '<label>Until, such as 18:30 (empty: until you resume) <input name="until" maxlength="20"></label>'
    hint = "All uploads stop within a second, also in the middle of one."
    form = _form("pause", form_token, f'{inner}<button class="main">Pause</button>')
    return f'<section class="panel"><h2>Pause</h2><p class=hint>{hint}</p>{form}</section>'


def _leave(form_token: str) -> str:
    hint = (
        "The server revokes this device. Its key and state are deleted here. Your text and your policy stay. "
        "Models that were released with your contributions stay with the server."
    )
    inner = '<label class="check"><input type="checkbox" name="sure" required> I want to leave for good</label>'
    inner += '<label class="check"><input type="checkbox" name="keep" checked> keep the record of what left</label>'
    form = _form("leave", form_token, f'{inner}<button class="danger">Leave the server</button>')
    return f'<section class="panel"><p class=hint>{hint}</p>{form}</section>'


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "<p class=empty>Nothing has left this device.</p>"
    made = [
        row(
            _hash(one["run"]),
            [
                str(one["rounds"]), amount(one).partition(", ")[2],
                escape(", ".join(f"{count} x {kind}" for kind, count in sorted(one["kinds"].items()))),
                escape(one["promise"] or "–"), local_moment(one["last_s"]) if one["last_s"] else "–",
            ],
            plain=(2, 3, 4),
        )
        for one in sorted(runs, key=lambda one: -(one["last_s"] or 0.0))
    ]  # fmt: skip
    return _reflow(table(("Run", "Rounds", "Bytes", "What", "Promise", "Last"), made, plain=(2, 3, 4), reflow=True))


def _lines(lines: Sequence[RecordLine]) -> str:
    if not lines:
        return "<p class=empty>The record is empty.</p>"
    made = [
        row(
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at_s)),
            [
                escape(one.kind), _hash(one.run),
                "" if one.round is None else str(one.round + 1), f"{one.size:,}",
                "" if one.epsilon is None else f"{one.epsilon:.4g}",
            ],
            plain=(0, 1),
        )
        for one in lines[: -LINES - 1 : -1]
    ]  # fmt: skip
    heads = ("When", "What", "Run", "Round", "Bytes", "Epsilon so far")
    return _reflow(table(heads, made, plain=(0, 1), reflow=True))


def _refusals(refusals: Sequence[Mapping[str, Any]]) -> str:
    if not refusals:
        return ""
    made = [
        row(_hash(one["run"]), [escape(one["reason"]), str(one["times"])], plain=(0,))
        for one in sorted(refusals, key=lambda one: -one["last_s"])
    ]
    return table(("Run", "Reason", "Times"), made, plain=(0,))


def _hash(run: str) -> str:
    return f"<span class=hash>{escape(run[:SHOWN])}</span>"


def _reflow(made: str) -> str:
    """Give a table the class by which the dashboard's style sheet makes lists of its rows on a phone."""
    return made.replace("<table>", '<table class="reflow">', 1)
