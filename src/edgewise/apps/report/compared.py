"""Contributions beside one another, for runs whose merge keeps the updates of a round one by one.

rows = by_device(log)["clinic-3"]     # {"rounds": 10, "l2": 1.2, "cosine": 0.4, "distance": 5.1, "far": 9}
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgewise.apps.report import numbers
from edgewise.apps.report.html import panel, row, table
from edgewise.core import events

FAR = 3.0  # An update that is as many median distances away is counted as far from the others.
MOST_ROWS = 50  # devices in the table, those that are farthest from the others first


def by_device(log: Sequence[events.AnyEvent]) -> dict[str, dict[str, Any]]:
    """Summarise the comparisons of a run by device: means over rounds, and the number of rounds in which it was far."""
    found: dict[str, list[events.Compared]] = defaultdict(list)
    for event in log:
        if isinstance(event, events.Compared):
            found[event.device].append(event)
    return {
        device: {
            "rounds": len(each),
            "l2": statistics.fmean(e.l2 for e in each),
            "cosine": statistics.fmean(e.cosine for e in each),
            "distance": statistics.fmean(e.distance for e in each),
            "far": sum(e.distance > FAR for e in each),
        }
        for device, each in found.items()
    }


def section(s: Mapping[str, Any]) -> str:
    """Draw the table of devices by the distance of their updates. Empty where the server compared none."""
    known = [(d["device"], d["compared"]) for d in s["per_device"] if d.get("compared")]
    known.sort(key=lambda pair: -pair[1]["distance"])
    if not known:
        return ""
    rows = [
        row(
            escape(device),
            [
                numbers.count(c["rounds"]),
                numbers.figures(c["l2"]),
                f"{c['cosine']:.2f}",
                f"{c['distance']:.2f}",
                numbers.count(c["far"]) if c["far"] else "",
            ],
        )
        for device, c in known[:MOST_ROWS]
    ]
    more = "" if len(known) <= MOST_ROWS else f" These are the {MOST_ROWS} farthest of {len(known)}."
    hint = (
        "The server saw each update. Distance is that from the medians of a round's updates, and 1 is usual. Far "
        f"counts the rounds above {FAR:g}. A device far in most rounds lies, or has text unlike all others.{more}"
    )
    heads = ("device", "rounds", "update L2", "cosine", "distance", "far")
    return "<div class=gap></div>" + panel("Updates compared", hint, table(heads, rows))
