"""The privacy card: what is promised, to whom, and on what it rests; the same words in check, report and model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any, Literal

from edgewise.privacy import accountant

Plain = Mapping[str, Any]  # of ``Card.to_plain``, as a run records it
OUTSIDE = (
    "perplexities, losses, counts of devices, bytes, times and who took part are told exactly: no epsilon is about them"
)
ADD_UP = "epsilons of several runs over the same devices add up: each run counts its own rounds only"
REPEATED = "A server that lies can send one model twice, to cohorts that differ by one device, and subtract the sums."
NOT_COVERED = "Computed from devices' text without noise: not covered by epsilon."
FEWER = ("If fewer of them add their noise", "honest devices", "epsilon of one round")  # a table's caption and heads


@dataclass(frozen=True, slots=True)
class Card:
    """What a run promises.

    Attributes:
        word: the recipe's privacy word. summary: one sentence.
        against_server, of_release: epsilon at ``delta`` after all rounds that the budget allows, against who runs the
            server and against who sees the models; None: nothing is promised.
        delta, unit, adjacency: of both. below: with what delta was compared.
        sampling: what is assumed of how devices take part. noise: who adds it, and how much.
        honest: devices per round whose noise is counted on, 0 where none add any.
        rounds_each: rounds that one device is in at most.
        fewer: (honest devices, epsilon against the server of one round) if fewer than ``honest`` are.
        budget: epsilon that is enforced; None without.
        continuous: where devices add discrete shares, epsilon of continuous noise of that size after all rounds; 0
            elsewhere.
        z: noise multiplier; None in runs that did not record it.
        derived: which of epsilon and noise multiplier follows from the other, which the recipe gives.
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
    derived: Literal["epsilon", "noise_multiplier"] = "noise_multiplier"

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = asdict(self)
        plain["fewer"] = [list(pair) for pair in self.fewer]
        return plain


def degradation(z: float, honest: int, delta: float) -> tuple[tuple[int, float], ...]:
    """Epsilon of one round if only h of the honest devices are: z_eff = z sqrt(h / honest), exact Gaussian."""
    steps = sorted({honest, max(1, honest * 5 // 7), max(1, honest * 2 // 7), max(1, honest // 14), 1}, reverse=True)
    return tuple((h, round(accountant.gaussian(z * sqrt(h / honest), delta), 3)) for h in steps)


def promises(c: Plain) -> list[tuple[str, str]]:
    """What a card promises after all rounds, as names and sentences."""
    budget = []
    if c["budget"] is not None:
        given = ", derived from dp.noise_multiplier" if c.get("derived") == "epsilon" else ""
        budget = [("budget", limit(c["budget"], given))]
    return [
        ("against the server", words(c["against_server"], c["delta"])),
        ("of the released models", words(c["of_release"], c["delta"])),
        *budget,
    ]


def rests_on(c: Plain) -> list[tuple[str, str]]:
    """What those promises rest on, as names and sentences: unit, delta, neighbours, sampling, rounds of a device,
    noise and its multiplier, honest devices; what other runs add, and what is not covered."""
    each = f"{c['rounds_each']:,} round{'s' * (c['rounds_each'] != 1)}"
    honest = [("honest devices", f"{c['honest']:,} are counted on in every round")] if c["honest"] else []
    if continuous := c.get("continuous"):
        counted = "as zCDP, which holds for sums of discrete, rounded shares; continuous noise of this size would take "
        honest.append(("counted", f"{counted}epsilon {continuous:.3g} after all rounds"))
    multiplier = []
    if (z := c.get("z")) is not None:
        given = ", derived from dp.epsilon" if c["derived"] == "noise_multiplier" else ""
        multiplier = [("noise multiplier", f"{z:.4g}{given}")]
    return [
        ("unit", c["unit"]),
        ("delta", f"{c['delta']:g}, {c['below']}"),
        ("neighbours", c["adjacency"]),
        ("taking part", f"{c['sampling']}; a device is in at most {each}"),
        ("noise", c["noise"]),
        *multiplier,
        *honest,
        ("other runs", ADD_UP),
        ("not covered", OUTSIDE),
    ]


def fewer(c: Plain) -> list[tuple[str, str]]:
    """The rows of ``FEWER``; none where no devices' noise is counted on."""
    return [(f"{honest:,}", f"{epsilon:.3g}") for honest, epsilon in c["fewer"]]


def without(servers: int) -> str:
    """What is said in a card's place where there is no epsilon; ``servers``: how many hide updates, 0 = none."""
    seen, more = ("Individual updates are hidden.", f" {REPEATED}") if servers else ("The server sees each update.", "")
    return f"{seen} No epsilon is claimed.{more}"


def limit(epsilon: float, given: str = "") -> str:
    """What a budget means. ``given``: where it comes from."""
    return f"epsilon {epsilon:.6g}{given}; the round that would exceed it is not played"


def words(epsilon: float | None, delta: float) -> str:
    """``"epsilon 2.1 at delta 1e-06"``, or that nothing is promised."""
    if epsilon is None or not isfinite(epsilon):
        return "nothing is promised"
    return f"epsilon {epsilon:.3g} at delta {delta:g}"
