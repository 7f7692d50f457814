"""Privacy card: the promises of a run, their readers and their assumptions, in the same words wherever it appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any, Literal

from edgewise.privacy import accountant

Plain = Mapping[str, Any]  # ``Card.to_plain``, as a run records it
OUTSIDE = "no epsilon covers perplexities, losses, counts of devices, bytes, times and participants, which are exact"
ADD_UP = "epsilons of several runs over the same devices add up, because each run counts only its own rounds"
REPEATED = "A server that lies can send one model twice, to cohorts that differ by one device, and subtract the sums."
NOT_COVERED = "Computed from devices' text without noise: not covered by epsilon."
FEWER = ("If fewer of them add their noise", "honest devices", "epsilon of one round")  # caption and heads of a table


@dataclass(frozen=True, slots=True)
class PrivacyCard:
    """Privacy promises of a run.

    Attributes:
        word: the recipe's privacy word. summary: one sentence.
        against_server, of_release: epsilon at ``delta`` after all rounds that the budget allows, against whoever runs
            the server and against whoever sees the models. None: nothing is promised.
        delta, unit, adjacency: of both. below: the bound that delta was compared with.
        sampling: assumption on the participation of devices. noise: its source and its size.
        honest: devices per round whose noise is counted on, 0 where none add any.
        rounds_each: largest number of rounds that one device is in.
        fewer: (honest devices, epsilon against the server of one round) if fewer than ``honest`` are.
        budget: the enforced epsilon. None without.
        continuous: where devices add discrete shares, epsilon of continuous noise of that size after all rounds. 0
            elsewhere.
        z: noise multiplier. None in runs that did not record it.
        distilled: what a distillation between the rounds reads. None where there is none.
        derived: "epsilon" or "noise_multiplier", whichever follows from the other, which the recipe gives.
    """

    word: str
    summary: str
    against_server: float | None
    of_release: float | None
    delta: float
    below: str
    unit: str
    adjacency: str
    sampling: str
    noise: str
    honest: int
    rounds_each: int
    fewer: tuple[tuple[int, float], ...]
    budget: float | None
    continuous: float = 0.0
    z: float | None = None
    distilled: str | None = None
    derived: Literal["epsilon", "noise_multiplier"] = "noise_multiplier"

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        plain = asdict(self)
        plain["fewer"] = [list(pair) for pair in self.fewer]
        return plain


def epsilon_degradation(z: float, honest: int, delta: float) -> tuple[tuple[int, float], ...]:
    """Compute the epsilon of one round if only h devices are honest: z_eff = z sqrt(h / honest), exact Gaussian."""
    steps = sorted({honest, max(1, honest * 5 // 7), max(1, honest * 2 // 7), max(1, honest // 14), 1}, reverse=True)
    return tuple((h, round(accountant.gaussian_epsilon(z * sqrt(h / honest), delta), 3)) for h in steps)


def card_promises(c: Plain) -> list[tuple[str, str]]:
    """List the promises of a card after all rounds, as names and sentences."""
    budget = []
    if c["budget"] is not None:
        given = ", derived from dp.noise_multiplier" if c.get("derived") == "epsilon" else ""
        budget = [("budget", privacy_budget_words(c["budget"], given))]
    return [
        ("against the server", promise_words(c["against_server"], c["delta"])),
        ("of the released models", promise_words(c["of_release"], c["delta"])),
        *budget,
    ]


def card_assumptions(c: Plain) -> list[tuple[str, str]]:
    """List the assumptions of the promises, as names and sentences: unit, delta, neighbours, sampling, rounds of a
    device, noise and its multiplier, honest devices, the effect of other runs, and values that are not covered."""
    each = f"{c['rounds_each']:,} round{'s' * (c['rounds_each'] != 1)}"
    honest = [("honest devices", f"{c['honest']:,} are counted on in every round")] if c["honest"] else []
    if continuous := c.get("continuous"):
        counted = (
            "as zCDP, which holds for sums of discrete, rounded shares, where continuous noise of this size would take "
        )
        honest.append(("counted", f"{counted}epsilon {continuous:.3g} after all rounds"))
    multiplier = []
    if (z := c.get("z")) is not None:
        given = ", derived from dp.epsilon" if c["derived"] == "noise_multiplier" else ""
        multiplier = [("noise multiplier", f"{z:.4g}{given}")]
    return [
        ("unit", c["unit"]),
        ("delta", f"{c['delta']:g}, {c['below']}"),
        ("neighbours", c["adjacency"]),
        ("taking part", c["sampling"]),
        ("rounds of a device", f"at most {each}"),
        ("noise", c["noise"]),
        *multiplier,
        *honest,
        *([("distillation", c["distilled"])] if c.get("distilled") else []),
        ("other runs", ADD_UP),
        ("not covered", OUTSIDE),
    ]


def fewer_honest_rows(c: Plain) -> list[tuple[str, str]]:
    """List the rows of ``FEWER``. None where no devices' noise is counted on."""
    return [(f"{honest:,}", f"{epsilon:.3g}") for honest, epsilon in c["fewer"]]


def no_epsilon_sentence(servers: int) -> str:
    """Say in place of a card that there is no epsilon. ``servers``: number of servers that hide updates, 0 = none."""
    seen, more = ("Individual updates are hidden.", f" {REPEATED}") if servers else ("The server sees each update.", "")
    return f"{seen} No epsilon is claimed.{more}"


def privacy_budget_words(epsilon: float, given: str = "") -> str:
    """Describe a budget in words. ``given``: its origin."""
    return f"epsilon {epsilon:.6g}{given}, and the round that would exceed it is not played"


def promise_words(epsilon: float | None, delta: float) -> str:
    """Format a promise: ``"epsilon 2.1 at delta 1e-06"``, or that nothing is promised."""
    if epsilon is None or not isfinite(epsilon):
        return "nothing is promised"
    return f"epsilon {epsilon:.3g} at delta {delta:g}"
