"""The result of `edgewise stats` on a terminal: a histogram for each part, with the noise that is on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from edgewise.learn.text import cross_site
from edgewise.learn.text.statistics import STEPS

WIDTH = 30  # characters of the longest bar
DOUBT = 0.05  # probability that noise alone puts any value of a part on the screen
TITLES = {
    "documents": "documents of a device",
    "tokens": "tokens of a device",
    "lengths": "tokens of a document",
    "drift": "distance of a device's later text from its earlier text (0 same, 1 disjoint)",
    "distance": "distance of a device's tokens from those of all devices (0 same, 1 disjoint)",
    "losses": "held-out loss of the model at a site, nats per token",
}


def statistics_lines(found: Mapping[str, Any], names: Mapping[int, str]) -> Iterator[str]:
    """Write the result. ``names``: the text of token ids, where the vocabulary is not hashed."""
    contributed = ", ".join(f"{n} in round {i + 1}" for i, n in enumerate(found["contributed"]))
    yield f"{found['devices']} devices; contributions: {contributed}"
    noise = next(iter(found["parts"].values()))["noise_std"]
    if found["epsilon"] is not None:
        yield f"epsilon {found['epsilon']:.3g} of {found['budget']:g} spent; noise of {noise:.3g} on each value"
        yield "values that noise alone could have made are left out"
    for name, part in found["parts"].items():
        if name == "vocabulary":
            yield from _tokens(part, names)
        elif name == "loss":
            mean, std = part["values"][0] * cross_site.LARGEST, part["noise_std"] * cross_site.LARGEST
            yield f"\nmean held-out loss over sites: {mean:.3f} nats per token{f' +- {std:.2g}' if std else ''}"
        else:
            yield f"\n{TITLES[name]} (share of {part['kind']})"
            yield from _bars(_labels(name, len(part["values"])), part)


def least_told(noise_std: float, size: int) -> float:
    """Return the value that noise alone exceeds anywhere among ``size`` zeros with probability ``DOUBT`` at most."""
    return max(1e-9, noise_std * NormalDist().inv_cdf(1.0 - DOUBT / size))


def _bars(labels: Sequence[str], part: Mapping[str, Any], size: int = 0) -> Iterator[str]:
    least = least_told(part["noise_std"], size or len(labels))
    shown = [(label, v) for label, v in zip(labels, part["values"], strict=True) if v > least]
    if not shown:
        yield "  the noise hides all of it"
        return
    widest, largest = max(len(label) for label, _ in shown), max(v for _, v in shown)
    for label, value in shown:
        yield f"  {label:>{widest}}  {100 * value:5.1f} %  {'#' * max(1, round(WIDTH * value / largest))}"


def _labels(name: str, size: int) -> list[str]:
    if name in ("drift", "distance"):
        return [f"{i / STEPS:.1f} to {(i + 1) / STEPS:.1f}" for i in range(size)]
    if name == "losses":
        return [f"{i * cross_site.STEP:g} to {(i + 1) * cross_site.STEP:g}" for i in range(size)]
    return ["0", "1", *(f"{2 ** (k - 1):,} to {2**k - 1:,}" for k in range(2, size))]


def _tokens(part: Mapping[str, Any], names: Mapping[int, str], most: int = 12) -> Iterator[str]:
    yield f"\nthe most frequent tokens{'' if names else ' (hashed ids)'} (share of {part['kind']})"
    order = sorted(range(len(part["values"])), key=lambda i: -part["values"][i])[:most]
    picked = {**part, "values": [part["values"][i] for i in order]}
    yield from _bars([repr(names[i]) if i in names else f"#{i}" for i in order], picked, len(part["values"]))
