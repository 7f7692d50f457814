"""Bytes that a run sent and received, computed from its events for ``summary.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgewise.core import events


def sizes(
    log: Sequence[events.AnyEvent], facts: Mapping[str, Any], trained: int | None, noised: bool
) -> dict[str, Any]:
    """Compute the bytes of a run, as ``apps.report.summary`` defines them, from its events ``log``."""
    up = [e.bytes_up for e in log if isinstance(e, events.Accepted)]
    down = sum(e.bytes_down for e in log if isinstance(e, events.RoundFinished))
    asked = invited(log)
    update = 4.0 * trained if trained else None
    model = 4.0 * facts["parameters"] if facts.get("parameters") else None
    per_up = sum(up) / len(up) if up else None
    per_down = down / asked if asked else None
    reference = model or update
    return {
        "up_per_device_round": per_up,
        "down_per_device_round": per_down,
        "up_total": sum(up),
        "down_total": down,
        "float32_model": model,
        "float32_update": update,
        "up_ratio": reference / per_up if reference and per_up else None,
        "up_ratio_update": update / per_up if update and per_up else None,
        "down_ratio": reference / per_down if reference and per_down else None,
        **_text_traffic(sum(up), facts, noised),
    }


def _text_traffic(up: int, facts: Mapping[str, Any], noised: bool) -> dict[str, Any]:
    """Compute the size of the training text, and the upload of one device in all rounds."""
    held = facts.get("devices") if isinstance(facts.get("devices"), dict) else {}
    population = (facts.get("plan") or {}).get("population") or len(held or {})
    text = sum((held or {}).values()) * (facts.get("bytes_per_token") or 0.0)
    known = bool(text) and not noised
    return {
        "text_total": text if known else None,
        "text_per_device": text / len(held or {}) if known else None,
        "up_per_device": up / population if population else None,
    }


def quality_for_bytes(s: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compute the perplexity over the bytes of one device. Evaluations of uncommitted rounds are left out."""
    devices = s["population"] or len(s["per_device"]) or 1
    up, down = 0.0, 0.0
    moved = {0: (up, down)}
    for r in s["per_round"]:
        up, down = up + r["bytes_up"], down + r["bytes_down"]
        moved[r["round"] + 1] = (up, down)
    return [
        {
            "played": c["played"],
            "up": moved[c["played"]][0] / devices,
            "down": moved[c["played"]][1] / devices,
            "perplexity": c["weighted_mean"],
        }
        for c in s["curve"]
        if c["played"] in moved and "weighted_mean" in c
    ]


def invited(log: Iterable[events.AnyEvent]) -> int:
    """Count the invitations of committed rounds. A round in progress has no events in the store."""
    return sum(e.invited for e in log if isinstance(e, events.RoundStarted))
