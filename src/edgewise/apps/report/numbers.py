"""Formatted numbers for the terminal, the plots and the report. The module imports nothing slow.

size(730_000)      # "730 kB"
percent(-71.2)     # "−71 %"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, inf, isfinite
from typing import Any

MODELS = {
    "base": "base",
    "local_only": "local only",
    "local_personal": "local, then personal",
    "federated": "federated",
    "personal": "federated, then personal",
    "centralised": "centralised",
}
DRAWN = tuple(model for model in MODELS if model != "local_personal")  # More models in one chart cannot be told apart.
MEANS = {
    "base": "the model before training",
    "local_only": "each device alone, same steps",
    "local_personal": "each device alone, steps of rounds and personal model",
    "federated": "devices together, text stays apart",
    "personal": "each device goes on for itself",
    "centralised": "all text in one place, same steps",
}
LOST = {
    "dropped": "dropped out",
    "late": "late: the round had closed (virtual time)",
    "deadline": "missed the deadline (virtual time)",
}
NOTHING = "–"
_BARS = "▁▂▃▄▅▆▇█"


def size(n_bytes: float | None) -> str:
    """Format bytes in decimal units with three significant digits: ``0.73 MB``, ``5.51 MB``, ``812 B``."""
    if n_bytes is None:
        return NOTHING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n_bytes) >= 0.9995 * scale or (unit == "MB" and abs(n_bytes) >= 1e5):
            return f"{figures(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} B"


def figures(x: float | None, digits: int = 3) -> str:
    """Format ``x`` with three significant digits (more before the point): 634, 6.35, 0.0635, 1,314."""
    if x is None:
        return NOTHING
    if x == 0:
        return "0"
    if abs(x) >= 10 ** (digits - 1):
        return f"{x:,.0f}"
    text = f"{x:.{digits}g}"
    if "e" in text:
        return text
    whole = text.lstrip("-").split(".")[0].lstrip("0")
    places = max(0, digits - len(whole)) if whole else None
    return text if places is None else f"{x:.{places}f}"


def perplexity(x: float | None) -> str:
    """Format a perplexity: one decimal below 1000, none above, ``too large`` if it is not finite."""
    if x is None:
        return NOTHING
    if not isfinite(x):
        return "too large"
    return f"{x:,.1f}" if x < 1000 else f"{x:,.0f}"


def measured_perplexity(x: float | None) -> str:
    """Format the perplexity of a measured model. A summary's null means that no float can hold it."""
    return perplexity(inf if x is None else x)


def figure(q: Mapping[str, Any], key: str) -> str:
    """Format a model's figure over devices. A dash if only their mean is known."""
    return NOTHING if key != "weighted_mean" and not q["devices"] else measured_perplexity(q[key])


def percent(x: float | None, signed: bool = True) -> str:
    """Format a percentage with a true minus: ``−71 %``; one decimal below ten and just below 100 (``99.9 %``)."""
    if x is None:
        return NOTHING
    text = f"{abs(x):.0f}" if abs(x) >= 9.95 or x == 0 else f"{abs(x):.1f}"
    if text == "100" and abs(x) < 100:
        text = f"{floor(10 * abs(x)) / 10:.1f}"
    sign = "−" if x < 0 else "+" if signed and x > 0 else ""
    return f"{sign}{text} %"


def duration(seconds: float | None) -> str:
    """Format a duration: ``0.41 s``, ``12.3 s``, ``3:07``, ``1:02:05``."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    return as_on_a_clock(seconds)


def about_seconds(seconds: float) -> str:
    """Format a rounded forecast: ``5 s``, ``50 s``, ``4 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_on_a_clock(seconds: float) -> str:
    """Format seconds as on a clock: ``0:07``, ``3:07``, ``1:02:05``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, remainder = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"


def count(n: float | None) -> str:
    """Format a whole number with separators."""
    return NOTHING if n is None else f"{n:,.0f}"


def devices(n: int) -> str:
    """Format a number of devices: ``1 device``, ``1,024 devices``."""
    return f"{count(n)} device{'s' * (n != 1)}"


def ratio_in_words(ratio: float | None) -> str:
    """Format a ratio: ``7.5×``."""
    return NOTHING if ratio is None else f"{figures(ratio, 2)}×"


def smaller_in_words(ratio: float | None) -> str:
    """Format a ratio of sizes: ``7.5× smaller``, ``same size``, ``1.2× larger``."""
    if ratio is None:
        return NOTHING
    if 0.95 < ratio < 1.05:
        return "same size"
    return f"{ratio_in_words(ratio)} smaller" if ratio > 1 else f"{ratio_in_words(1 / ratio)} larger"


def against(model: float | None, update: float | None = None) -> str:
    """Compare a size with the model and the update in float32.

    ``12× smaller than the whole model in float32, 7.5× smaller than the float32 update``. Equal ratios are told once.
    """
    if model is None:
        return "the model's size is not known"
    ratios = [compared_size(model, "the whole model in float32")]
    if update is not None and smaller_in_words(update) != smaller_in_words(model):
        ratios.append(compared_size(update, "the float32 update"))
    return ", ".join(ratios)


def compared_size(ratio: float, what: str) -> str:
    """Compare a size: ``7.5× smaller than WHAT``, ``1.2× larger than WHAT``, ``same size as WHAT``."""
    factor = smaller_in_words(ratio)
    return f"{factor} as {what}" if factor == "same size" else f"{factor} than {what}"


def plain(x: object) -> str:
    """Format a setting: ``true``, ``0.4``, ``8``, or its text."""
    if isinstance(x, bool):
        return str(x).lower()
    return f"{x:g}" if isinstance(x, float) else str(x)


def local_work(steps: int, epochs: float) -> str:
    """Format a device's work in a round: ``8 local steps``, ``1 local step``, ``0.5 local epochs``."""
    n, unit = (epochs, "epoch") if epochs else (float(steps), "step")
    return f"{n:,.10g} local {unit}{'s' * (n != 1)}"


def early_end_reason(played: int, planned: int, evaluations: int, kept: int) -> str:
    """Explain why a run ended before its last round, and which model counts."""
    waited = "1 evaluation" if evaluations == 1 else f"{evaluations} evaluations in a row"
    sentence = f"ended after {played} of {planned} rounds: no lower held-out loss in {waited}"
    return sentence if kept == played else f"{sentence}; {counts(kept)}"


def counts(kept: int) -> str:
    """Say which model of a run counts if it is not the last one."""
    return f"the model after {'1 round' if kept == 1 else f'{kept} rounds'} counts" if kept else "the base counts"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw the last ``width`` values as block characters."""
    shown = [v for v in values[-width:] if isfinite(v)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return _BARS[3] * len(shown)
    return "".join(_BARS[round((v - low) / (high - low) * (len(_BARS) - 1))] for v in shown)


def unfinished(s: Mapping[str, Any]) -> str:
    """Say how many rounds of an unfinished run are played, and which measurements are missing."""
    r, wanted = s["rounds"], s["recipe"].get("compare", {})
    if "personal" not in s["recipe"]:
        wanted = {**wanted, "personal": False}
    wanted = {**wanted, "local_personal": False}  # It is measured with local_only.
    missing = [MODELS[m] for m, q in s["perplexity"].items() if m in MODELS and q is None and wanted.get(m, True)]
    sentence = f"{r['played']} of {r['planned']} rounds are played"
    if missing:
        sentence += f"; not measured: {', '.join(missing)}"
    never = [MODELS[m] for m in ("local_only", "centralised") if s["perplexity"][m] is None and wanted.get(m)]
    if never and r["played"] == r["planned"]:
        sentence += " (if the trainer cannot measure it, switch it off in [compare])"
    return sentence


def shown(s: Mapping[str, Any]) -> list[str]:
    """List the models of a summary that a table has a row for. ``local_personal`` has one only if it was measured."""
    return [m for m in MODELS if m != "local_personal" or s["perplexity"][m]]


def result(s: Mapping[str, Any]) -> str:
    """Name the model that a run is for: the personal ones where they were made, otherwise the federated one."""
    return "personal" if s["perplexity"]["personal"] else "federated"


def loss_reason(code: str) -> str:
    """Explain a lost contribution in words: a known outcome, or the title of an error code."""
    from edgewise.core.errors import REGISTRY

    if code in LOST:
        return LOST[code]
    return REGISTRY[code].title if code in REGISTRY else code
