"""What one round gives away, as a value: the mechanism, how the cohort came about, and what neighbours are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgewise.core.errors import CompositionError

Sampling = Literal["every", "poisson", "truncated", "fixed"]
Adjacency = Literal["zero_out", "add_remove", "replace_one"]


@dataclass(frozen=True, slots=True)
class Event:
    """One release.

    Attributes:
        kind: "gaussian" (noise of ``z`` times the sensitivity), "zcdp" (``xi``-approximately ``rho``-zCDP), or
            "matrix": all rounds of a run together, correlated noise of ``z`` times the joint sensitivity.
        adjacency: what one device's data may be in the neighbouring world: an update of zeros ("zero_out"), nobody
            ("add_remove"), any other update ("replace_one").
        sampling: "every": a device is in each of its rounds and may be known to be. "poisson": independently with
            probability ``rate``, unknown to who sees the release; "truncated": the same, at most ``cap`` of
            ``population``; "fixed": ``cohort`` of ``population`` without replacement.
        steps: how many such releases one charge stands for (the local steps of record-level privacy).
    """

    kind: Literal["gaussian", "zcdp", "matrix"]
    adjacency: Adjacency
    z: float = 0.0
    rho: float = 0.0
    xi: float = 0.0
    sampling: Sampling = "every"
    rate: float = 1.0
    population: int = 0
    cohort: int = 0
    cap: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        wanted = {"poisson": "add_remove", "truncated": "add_remove", "fixed": "replace_one"}.get(self.sampling)
        if wanted is not None and self.adjacency != wanted:
            raise CompositionError(
                "E-ADJ-MIX",
                f"amplification by {self.sampling} sampling is known for {wanted} neighbours, not {self.adjacency}.",
                "account without amplification, or change the adjacency on both sides.",
            )
        if self.sampling != "every" and self.kind != "gaussian":
            raise CompositionError(
                "E-ADJ-MIX",
                f"amplification is known for Gaussian noise, not for {self.kind}.",
                "account without it.",
            )

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Event:
        """Inverse of ``to_plain``."""
        return Event(**plain)
