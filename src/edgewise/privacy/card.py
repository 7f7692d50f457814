"""The privacy card: what is promised, to whom, and on what it rests; the same words in check, report and model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any

from edgewise.privacy import accountant


@dataclass(frozen=True, slots=True)
class Card:
    """What a run promises.

    Attributes:
        word: the recipe's privacy word. summary: one sentence.
        against_server, of_release: epsilon at ``delta`` after all rounds, against who runs the server and against who
            sees the models; None: nothing is promised.
        delta, unit, adjacency: of both. sampling: what is assumed of how devices take part.
        noise: who adds it, and how much. honest: devices per round whose noise is counted on, 0 where none add any.
        rounds_each: rounds that one device is in at most.
        fewer: (honest devices, epsilon against the server of one round) if fewer than ``honest`` are.
        budget: epsilon that is enforced; None without.
    """

    word: str
    summary: str
    against_server: float | None
    of_release: float | None
    delta: float
    unit: str
    adjacency: str
    sampling: str
    noise: str
    honest: int
    rounds_each: int
    fewer: tuple[tuple[int, float], ...]
    budget: float | None

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = asdict(self)
        plain["fewer"] = [list(pair) for pair in self.fewer]
        return plain


def degradation(z: float, honest: int, delta: float) -> tuple[tuple[int, float], ...]:
    """Epsilon of one round if only h of the honest devices are: z_eff = z sqrt(h / honest), exact Gaussian."""
    steps = sorted({honest, max(1, honest * 5 // 7), max(1, honest * 2 // 7), max(1, honest // 14), 1}, reverse=True)
    return tuple((h, round(accountant.gaussian(z * sqrt(h / honest), delta), 3)) for h in steps)


def words(epsilon: float | None, delta: float) -> str:
    """``"epsilon 2.1 at delta 1e-06"``, or that nothing is promised."""
    if epsilon is None or not isfinite(epsilon):
        return "nothing is promised"
    return f"epsilon {epsilon:.3g} at delta {delta:g}"
