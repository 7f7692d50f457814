"""Comparison of the federated model with training alone: a report's first sentence, and a chart of longer training.

against_alone   over the devices measured under both models: perplexities (weighted means) of the federated model and
                of each device alone, and the numbers of devices on which the federated one is better, worse or equal
longer          over the devices that trained alone for ``times`` as many steps: perplexities (weighted means) of the
                base, of training alone for the same and for more steps, and of the federated model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgewise.apps.report import numbers, svg
from edgewise.apps.report.html import panel
from edgewise.plan.recipe.personal import PARTED

Measures = Mapping[str, tuple[float, int]]  # device -> (nll, tokens)
LONGER = "longer"  # Name of the model in measures and events.
NOTES = {  # Properties of a data source that explain the comparison.
    "python-stdlib": (
        "Each package of the library has names that no other uses. Such vocabularies favour training alone. "
        "The federated model is one model for all packages."
    )
}


def share_improved(new: Measures, old: Measures) -> float | None:
    """Compute the share of common devices whose perplexity is lower under ``new``. None without common devices."""
    common = new.keys() & old.keys()
    if not common:
        return None
    return sum(loss_in_nats(new[d]) < loss_in_nats(old[d]) for d in common) / len(common)


def against_alone(federated: Measures, alone: Measures) -> dict[str, Any] | None:
    """Compute ``against_alone`` (see the module). None if no device was measured under both models."""
    common = sorted(federated.keys() & alone.keys())
    if not common:
        return None
    better = sum(loss_in_nats(federated[d]) < loss_in_nats(alone[d]) for d in common)
    worse = sum(loss_in_nats(federated[d]) > loss_in_nats(alone[d]) for d in common)
    together, apart = (_mean_perplexity({d: m[d] for d in common}) for m in (federated, alone))
    return {
        "devices": len(common),
        "better": better,
        "worse": worse,
        "equal": len(common) - better - worse,
        "federated": together,
        "local_only": apart,
        "change_percent": 100.0 * (together / apart - 1.0) if together < math.inf and apart < math.inf else None,
    }


def longer_alone_figures(times: int, measures: Mapping[str, Measures], going_on: Measures) -> dict[str, Any] | None:
    """Compute ``longer`` (see the module). None if the comparison was not run."""
    if not going_on:
        return None
    names = ("base", "local_only", "federated")
    same = {name: {d: m for d, m in measures[name].items() if d in going_on} for name in names}
    means = {name: _mean_perplexity(m) if len(m) == len(going_on) else None for name, m in same.items()}
    return {"times": times, "devices": len(going_on), "perplexity": _mean_perplexity(going_on), **means}


def loss_in_nats(measure: tuple[float, int]) -> float:
    """Return the loss in nats per token."""
    nll, tokens = measure
    return nll / tokens if tokens else math.inf


def _mean_perplexity(measures: Measures) -> float:
    """Compute the perplexity over all tokens."""
    try:
        return math.exp(sum(nll for nll, _ in measures.values()) / sum(tokens for _, tokens in measures.values()))
    except (OverflowError, ZeroDivisionError):
        return math.inf


def sentence(s: Mapping[str, Any], mark: Callable[[str], str] = str) -> str:
    """Compare the federated model with training alone in words. ``mark`` formats the figures.

    Where a part of the model stays on each device, no device uses the federated model, so their personal models are
    compared.
    """
    if s["recipe"].get("personal", {}).get("method") in PARTED:
        return _parted_sentence(s, mark)
    c = s["against_alone"]
    if c is None:
        if not s["recipe"]["compare"]["local_only"]:
            return "Training together was not compared with training alone: compare.local_only is false."
        return "Training together is not compared with training alone yet: no device was measured both ways."
    on = f"It is better on {numbers.count(c['better'])} of {numbers.count(c['devices'])} devices"
    on += f", and equal on {numbers.count(c['equal'])}." if c["equal"] else "."
    together, apart = numbers.measured_perplexity(c["federated"]), numbers.measured_perplexity(c["local_only"])
    if together == apart:
        return f"Training together did as well as training alone: held-out perplexity {mark(together)} both ways. {on}"
    if c["change_percent"] is None:
        verdict = "worse" if c["federated"] is None else "better"
        change = ""
    else:
        verdict = "better" if c["change_percent"] < 0 else "worse"
        change = f" ({numbers.percent(c['change_percent'])})"
    figures = f"held-out perplexity {mark(together)} against {mark(apart)}{change}"
    return f"Training together did {verdict} than training alone: {figures}. {on}"


def _parted_sentence(s: Mapping[str, Any], mark: Callable[[str], str]) -> str:
    """Compare personal models, made of a shared and an own part, with training alone for as many steps."""
    models = (s["perplexity"].get("personal"), s["perplexity"].get("local_personal"))
    if None in models:
        return "Training together was not compared with training alone: personal models were not measured beside it."
    together, apart = (model["weighted_mean"] for model in models)
    words = "did worse than" if together is None else "did better than" if apart is None else ""
    if together is not None and apart is not None:
        words = "did better than" if together < apart else "did worse than" if together > apart else "did as well as"
    figures = f"{mark(numbers.measured_perplexity(together))} against {mark(numbers.measured_perplexity(apart))}"
    said = f"Training a shared part together {words} training alone for as many steps: held-out perplexity of the "
    said += f"personal models {figures}."
    share = s["personal"]["share_improved"]["over_local_personal"]
    return (
        said if share is None else f"{said} They are better on {numbers.percent(100 * share, signed=False)} of devices."
    )


def alone_won_reason(s: Mapping[str, Any]) -> str:
    """Explain why training alone did better, if the data source is known to favour it; else empty."""
    data, c, facts = s["recipe"]["data"], s["against_alone"], s["facts"]
    if c is None or (c["change_percent"] or 0.0) <= 0.0:
        return ""
    if (
        facts.get("extensions") or "objects" in facts
    ) and "precision" not in facts:  # The text trainer reports its precision. Other trainers read other data.
        return ""
    return NOTES.get(data["source"], "") if data["partition"] == "owner" else ""


def going_on(s: Mapping[str, Any]) -> str:
    """Summarise training alone for longer in one sentence. Empty if it was not run."""
    g = s["longer"]
    if g is None:
        return ""
    sentence = f"{numbers.devices(g['devices'])} alone, {g['times']} times the steps: "
    sentence += numbers.measured_perplexity(g["perplexity"])
    if g["local_only"] is not None:
        sentence += f", for the same steps {numbers.measured_perplexity(g['local_only'])}"
    if g["federated"] is not None:
        sentence += f"; federated, on the same: {numbers.measured_perplexity(g['federated'])}"
    return sentence


def longer_alone_panel(s: Mapping[str, Any]) -> str:
    """Draw the panel on training alone for longer. Empty if it was not run."""
    g = s["longer"]
    if g is None or None in (g["perplexity"], g["base"]):
        return ""
    points = [(0.0, g["base"])]
    if g["local_only"] is not None:
        points.append((1.0, g["local_only"]))
    points.append((float(g["times"]), g["perplexity"]))
    series = [svg.Series("alone", "local_only", points, dots=True)]
    if g["federated"] is not None:
        ends = [(0.0, g["federated"]), (float(g["times"]), g["federated"])]
        series.insert(0, svg.Series("federated", "federated", ends, dashed=True))
    name = "multiples of the federation's steps"
    chart = svg.lines("Perplexity of training alone for longer", series, x_name=name, unit=numbers.perplexity)
    of = f"{numbers.count(g['devices'])} of {numbers.count(s['population'] or g['devices'])} devices, spread evenly"
    hint = f"{of}. The learning-rate schedule is stretched over the steps."
    if g["local_only"] is not None and g["perplexity"] > g["local_only"]:
        hint += " A device soon overfits its little text, and its held-out perplexity rises."
    return panel("Training alone for longer", hint, chart)
