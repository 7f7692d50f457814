"""Participation of devices: its figures for the summary, and its section of the report.

``apps.report.summary`` defines each figure.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgewise.apps.report import compared, numbers, svg, traffic
from edgewise.apps.report.alone_or_together import Measures
from edgewise.apps.report.html import details, pair, panel, row, table
from edgewise.apps.report.quality import perplexity
from edgewise.core import events

Summary = Mapping[str, Any]
MATRIX_DEVICES, MATRIX_ROUNDS = 64, 120  # The cells of a larger matrix are too small to see.


def figures(log: Sequence[events.AnyEvent], buffered: bool = False) -> dict[str, Any]:
    """Count invitations, contributions and losses over all rounds. ``buffered``: rounds do not wait (``[buffer]``)."""
    finished = [e for e in log if isinstance(e, events.RoundFinished)]
    answered = {(e.round, e.device) for e in log if isinstance(e, events.Accepted)}
    gone = [e for e in log if isinstance(e, events.Lost) and (e.round, e.device) not in answered]
    met, invited = [e for e in finished if e.met], traffic.invited(log)
    lag, in_sums = Counter[int](), {e.round for e in met}
    if buffered:
        lag.update(e.staleness for e in log if isinstance(e, events.Accepted) and e.round in in_sums)
    return {
        "invited": invited,
        "accepted": sum(e.accepted for e in met),
        "unused": sum(e.accepted for e in finished if not e.met),
        "lost": sum(e.lost for e in finished),
        "late": sum(e.late for e in finished),
        "lost_by_code": dict(Counter(e.code for e in gone).most_common()),
        "at_work": invited - sum(e.accepted + e.lost for e in finished) if buffered else 0,
        "staleness": {str(rounds): n for rounds, n in sorted(lag.items())},
    }


def rungs(log: Sequence[events.AnyEvent], names: Sequence[str]) -> list[dict[str, Any]]:
    """Make one row per rung that devices could choose, from the most bytes to the fewest.

    Only contributions to rounds that were met count. The list is empty if the codec is fixed.
    """
    met = {e.round for e in log if isinstance(e, events.RoundFinished) and e.met}
    chosen: dict[int | None, list[events.Accepted]] = defaultdict(list)
    for e in log:
        if isinstance(e, events.Accepted) and e.round in met:
            chosen[e.rung].append(e)
    return [
        {
            "rung": i,
            "name": name,
            "accepted": len(chosen[i]),
            "devices": len({e.device for e in chosen[i]}),
            "bytes_up": statistics.fmean(e.bytes_up for e in chosen[i]) if chosen[i] else None,
        }
        for i, name in enumerate(names)
    ]


def devices(
    log: Sequence[events.AnyEvent], measures: Mapping[str, Measures], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Make one row per known device: its contributions, and its perplexity under each model."""
    accepted: dict[str, list[events.Accepted]] = defaultdict(list)
    lost: dict[str, list[events.Lost]] = defaultdict(list)
    flagged: dict[str, dict[str, str]] = defaultdict(dict)
    for e in log:
        if isinstance(e, events.Accepted):
            accepted[e.device].append(e)
        elif isinstance(e, events.Lost):
            lost[e.device].append(e)
        elif isinstance(e, events.Flagged):
            flagged[e.device][str(e.round)] = e.code
    beside = compared.by_device(log)
    text = facts.get("devices") if isinstance(facts.get("devices"), dict) else {}
    names = sorted({*accepted, *lost, *(text or {}), *(d for m in measures.values() for d in m)})
    return [
        {
            "device": d,
            "tokens": (text or {}).get(d),
            "held_out_tokens": next((m[d][1] for m in measures.values() if d in m), None),
            "rounds": [e.round for e in accepted[d]],
            "lost": {str(e.round): e.code for e in lost[d] if e.round not in {a.round for a in accepted[d]}},
            "flagged": flagged[d],
            "compared": beside.get(d),
            "bytes_up": sum(e.bytes_up for e in accepted[d]),
            "bytes_down": sum(e.bytes_down for e in accepted[d]),
            "train_s": sum(e.train_s for e in accepted[d]),
            **{name: perplexity(*m[d]) if d in m else None for name, m in measures.items()},
        }
        for d in names
    ]


def section(s: Summary) -> str:
    """Build the section on participation: funnel, lost contributions, devices by rounds, and a table of rounds.

    A chart is left out if all of its values would be the same.
    """
    p = s["participation"]
    if not p["invited"]:
        return '<p class="hint">No round has been finished yet.</p>'
    dropped = p["lost_by_code"].get("dropped", 0)
    steps = [
        svg.Bar(n, v, numbers.count(v), numbers.percent(100 * v / p["invited"], signed=False), "federated")
        for n, v in funnel(p)
    ]
    causes = [
        svg.Bar(numbers.loss_reason(code), n, numbers.count(n), code if code.startswith("E-") else "", "lost")
        for code, n in reasons(p)
    ]
    why = svg.bars("Lost contributions by reason", causes, left=250)
    hint = f"{p['lost'] - dropped} failed, {dropped} dropped out, {p['late']} came late in virtual time."
    if why or p["accepted"] < p["invited"]:
        top = pair(
            panel("Funnel", "Invitations of all rounds.", svg.bars("Participation funnel", steps, left=165)),
            panel("Lost contributions", hint, why),
        )
    else:
        top = f"<p>Nothing was lost. All {numbers.count(p['invited'])} invitations gave contributions that counted.</p>"
    return top + _staleness_bars(p) + _codec_bars(s) + _participation_matrix(s) + compared.section(s) + _rounds_table(s)


def _staleness_bars(p: Mapping[str, Any]) -> str:
    """Draw the contributions by the rounds that they lagged. Empty where rounds wait for their devices."""
    if not p["staleness"]:
        return ""
    rows = [
        svg.Bar(
            "none" if rounds == "0" else f"{rounds} round{'s' * (rounds != '1')}", n, numbers.count(n), "", "federated"
        )
        for rounds, n in p["staleness"].items()
    ]
    hint = "Accepted contributions by the rounds between the model that they start from and the one that they enter."
    return "<div class=gap></div>" + panel("Staleness", hint, svg.bars("Contributions by staleness", rows))


def _codec_bars(s: Summary) -> str:
    """Draw the contributions by codec that devices chose. Empty if the codec is fixed."""
    used = [r for r in s["rungs"] if r["accepted"]]
    rows = [
        svg.Bar(
            r["name"],
            r["accepted"],
            numbers.count(r["accepted"]),
            f"{numbers.count(r['devices'])} devices, {numbers.size(r['bytes_up'])}",
            "federated",
        )
        for r in used
    ]
    if not rows:
        return ""
    hint = f"Accepted contributions by the rung that the device chose. The ladder has {len(s['rungs'])} rungs."
    return "<div class=gap></div>" + panel("Codecs that devices chose", hint, svg.bars("Contributions by rung", rows))


def funnel(p: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count the invitations that reached each step, from invited to accepted."""
    connected = p["invited"] - p["lost_by_code"].get("dropped", 0)
    return [
        ("invited", p["invited"]),
        ("stayed connected", connected),
        ("answered in time", connected - p["late"] - p["at_work"]),
        ("accepted", p["accepted"] + p["unused"]),
        *([("in a round that counted", p["accepted"])] if p["unused"] else []),
    ]


def reasons(p: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count missing contributions by code, late ones included, the most frequent first."""
    found = {**p["lost_by_code"], **({"late": p["late"]} if p["late"] else {})}
    return sorted(found.items(), key=lambda pair: -pair[1])


def _participation_matrix(s: Summary) -> str:
    """Draw who took part in which round. Empty if there are too many devices or rounds."""
    devices, rounds = s["per_device"], s["rounds"]["played"]
    if not (0 < len(devices) <= MATRIX_DEVICES and 0 < rounds <= MATRIX_ROUNDS):
        return ""
    everyone = s["recipe"]["round"]["sampling"] == "all"
    rows = [(d["device"], list(_device_fates(d, rounds, everyone))) for d in devices]
    if {fate for _, fates in rows for fate in fates} <= {"accepted"}:
        return ""
    late = '<span><i style="border:1.5px solid var(--local_only)"></i>late</span>' if everyone else ""
    legend = (
        '<div class="legend"><span><i style="background:var(--federated)"></i>accepted</span>'
        f'<span><i style="background:var(--lost)"></i>lost</span>{late}</div>'
    )
    chart = svg.matrix("Devices by rounds: accepted, lost or late", rows, rounds)
    return "<div class=gap></div>" + panel("Participation by device", "Each column is a round.", legend + chart)


def _device_fates(device: Mapping[str, Any], rounds: int, everyone: bool) -> Iterator[str]:
    """Yield a device's fate in each round: ``accepted``, ``lost``, ``late`` or, if unknown, an empty text.

    If everybody is invited, a device that neither contributed nor was lost must have been late.
    """
    for r in range(rounds):
        if r in device["rounds"]:
            yield "accepted"
        elif str(r) in device["lost"]:
            yield "lost"
        else:
            yield "late" if everyone else ""


def _rounds_table(s: Summary) -> str:
    """Draw the table of rounds."""
    lags = any(r["lag_l2"] for r in s["per_round"])
    rows = [
        row(
            str(r["round"] + 1) + ("" if r["met"] else " <small>abandoned</small>"),
            [
                numbers.count(r["accepted"]),
                numbers.count(r["lost"]),
                numbers.count(r["late"]),
                numbers.NOTHING if r["loss_last"] is None else f"{r['loss_last']:.4f}",
                *(
                    numbers.NOTHING if value is None else numbers.figures(value)
                    for value in r.get("summed_metrics", {}).values()
                ),
                numbers.figures(r["update_l2"]),
                *([numbers.figures(r["lag_l2"])] if lags else []),
                numbers.size(r["bytes_up"]),
                numbers.size(r["bytes_down"]),
                numbers.duration(r["seconds"]),
            ],
        )
        for r in s["per_round"]
    ]
    lag = ("devices behind by, L2",) if lags else ()
    own = [
        m["name"] + (f" ± {numbers.figures(m['noise_std'])}" if m["noise_std"] else "")
        for m in s.get("summed_metrics", ())
    ]
    heads = ("round", "accepted", "lost", "late", "train loss", *own, "update L2", *lag, "up", "down", "time")
    beside = '<p class="hint"><code>rounds.csv</code> next to this page has more columns.</p>'
    return details(f"Table of all {len(rows)} rounds", table(heads, rows) + beside) if rows else ""
