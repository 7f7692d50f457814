"""Bytes that a run sent and received, computed from its events for ``summary.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgewise.apps.report import numbers
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
    sessions = [e for e in log if isinstance(e, events.SplitSession)]
    if noised and (facts.get("split") or {}).get("once"):
        sessions = []  # What crosses once has the size of a device's text.
    crossed = sum(e.bytes_up for e in sessions)
    per_up = (sum(up) + crossed) / len(up) if up else None
    per_down = down / asked if asked else None
    reference = model or update
    return {
        "up_per_device_round": per_up,
        "down_per_device_round": per_down,
        "up_total": sum(up) + crossed,
        "down_total": down,
        "float32_model": model,
        "float32_update": update,
        "up_ratio": reference / per_up if reference and per_up else None,
        "up_ratio_update": update / per_up if update and per_up else None,
        "down_ratio": reference / per_down if reference and per_down else None,
        **_text_traffic(sum(up) + crossed, facts, noised),
        "split": _session_traffic(sessions, facts),
    }


def _session_traffic(sessions: Sequence[events.SplitSession], facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compute the share of the sessions of a split model in the bytes. None where the model is whole."""
    if not facts.get("split"):
        return None
    up, down = sum(e.bytes_up for e in sessions), sum(e.bytes_down for e in sessions)
    n = len(sessions)
    return {
        "cut": facts["split"]["cut"],
        "shape": facts["split"]["shape"],
        "once": facts["split"]["once"],
        "sessions": n,
        "up_per_session": up / n if n else None,
        "down_per_session": down / n if n else None,
        "up_total": up,
        "down_total": down,
        "token_bytes": facts["split"]["token_bytes"],
    }


def split_in_words(found: Mapping[str, Any] | None) -> str:
    """Say how many bytes crossed the cut. Empty where the model is whole, or before the first session."""
    if not found or not found["sessions"]:
        return ""
    up, down = (numbers.size(found[f"{way}_per_session"]) for way in ("up", "down"))
    each = found["token_bytes"]
    if found["once"]:
        total = numbers.size(found["up_total"])
        return f"behind block {found['cut']}: activations went up once, {each['up']:g} bytes a token and {total} in all"
    return (
        f"behind block {found['cut']} ({found['shape']}): activations and gradients are {up} up and {down} down of "
        f"each device and round, {each['up']:g} and {each['down']:g} bytes a token and pass"
    )


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
