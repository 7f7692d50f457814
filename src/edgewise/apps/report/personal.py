"""Personal models in a summary: who gains over the federated model and over training alone, and what they forget.

The model ``personal`` is each device's own, made of the federated one by the recipe's [personal] section. The model
``local_personal`` is each device alone, with the steps of the rounds and of the personal model together.

devices          devices measured under their personal model
share_improved   share of them whose perplexity is lower with the personal model than with another one:
                 ``over_base``, ``over_federated``, ``over_local_only``, ``over_local_personal``, and ``over_both``
                 (the federated one and ``local_only``); null without common devices
elsewhere        perplexity (weighted mean) on the held-out text of other devices: of the ``personal`` models, and
                 of the ``federated`` one on the same text. Each device's text is read by the models of two others.
                 ``change_percent`` between them is what personal models forget
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.apps.report import numbers, quality
from edgewise.apps.report.alone_or_together import Measures, loss_in_nats, share_improved
from edgewise.drivers.storage.run_store import RunStore

ELSEWHERE = "personal_elsewhere"  # name of the figures on other devices' text, in measures
OTHERS = ("base", "federated", "local_only", "local_personal")


def figures(recipe: Mapping[str, Any], measures: Mapping[str, Measures], elsewhere: Measures) -> dict[str, Any] | None:
    """Compute the figures of personal models (see the module). None where none was measured."""
    own = measures["personal"]
    if not own:
        return None
    shares = {f"over_{name}": share_improved(own, measures[name]) for name in OTHERS}
    lower = {d: min(measures["federated"][d], measures["local_only"][d], key=loss_in_nats) for d in _both(measures)}
    forgets, same = quality.figures(elsewhere), quality.figures(measures["federated"])
    return {
        "method": recipe["personal"]["method"],
        "devices": len(own),
        "share_improved": {**shares, "over_both": share_improved(own, lower)},
        "elsewhere": _elsewhere(forgets, same) if forgets and same and same["devices"] == len(own) else None,
    }


def _both(measures: Mapping[str, Measures]) -> set[str]:
    return set(measures["federated"].keys() & measures["local_only"].keys())


def _elsewhere(personal: Mapping[str, Any], federated: Mapping[str, Any]) -> dict[str, Any]:
    change = quality.change_percent(personal, federated)
    return {"personal": personal["weighted_mean"], "federated": federated["weighted_mean"], "change_percent": change}


def unseen(store: RunStore) -> dict[str, Any] | None:
    """Compute the figures of devices that were in no round. None where there are none.

    They are ``base``, ``federated`` and ``personal``, each as ``quality.figures`` has them.
    """
    found = {name: quality.figures(store.measures(f"{name}_unseen")) for name in ("base", "federated", "personal")}
    return found if found["federated"] else None


def unseen_sentence(s: Mapping[str, Any]) -> str:
    """Say in words how models do on devices that were in no round. Empty if there are none."""
    u = s["unseen"]
    if u is None:
        return ""
    figures = {name: numbers.measured_perplexity(q["weighted_mean"]) for name, q in u.items() if q}
    said = f"On {numbers.devices(u['federated']['devices'])} that were in no round: base {figures['base']}, "
    said += f"federated {figures['federated']}"
    return said + (f", and after going on for itself {figures['personal']}." if "personal" in figures else ".")


def sentence(s: Mapping[str, Any]) -> str:
    """Say in words whom personal models help, and what they forget. Empty if none was made."""
    p = s["personal"]
    if p is None:
        return ""
    shares, names = p["share_improved"], {"over_federated": "the federated one", "over_local_only": "training alone"}
    beats = [
        f"than {name} on {numbers.percent(100 * shares[key], signed=False)} of devices"
        for key, name in names.items()
        if shares[key] is not None
    ]
    said = f"The personal model is better {', '.join(beats)}." if beats else ""
    other = p["elsewhere"]
    if other is not None and other["change_percent"] is not None:
        own, federated = (numbers.measured_perplexity(other[model]) for model in ("personal", "federated"))
        said += f" On the text of other devices its perplexity is {own}, that of the "
        said += f"federated model {federated} ({numbers.percent(other['change_percent'])})."
    return said.strip()
