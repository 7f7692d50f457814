"""Privacy events: the mechanism of one round, its sampling and its neighbours, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, get_args

from edgewise.core.errors import CompositionError
from edgewise.core.space import Adjacency

Kind = Literal["gaussian", "zcdp", "matrix", "tree"]
Sampling = Literal["every", "poisson", "truncated", "fixed"]
Unit = Literal["device", "example"]

# The adjacency for which each amplification bound is proved.
_PROVED = {"poisson": "add_remove", "truncated": "add_remove", "fixed": "replace_one"}


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """One release, or ``steps`` equal ones.

    Attributes:
        kind: "gaussian": noise of ``z`` times the sensitivity. "zcdp": Renyi divergence of order a at most
            ``xi + rho a``. "matrix" and "tree": correlated noise, all ``rounds`` of a run together. z of "matrix" is
            the noise over the joint sensitivity, of "tree" the noise of one node over the sensitivity of one round.
        adjacency: one unit's data in the neighbouring world: an update of zeros ("zero_out"), nobody ("add_remove"),
            or any other update ("replace_one": twice the clip, so z is half of noise over clip).
        sampling: "every": a unit is in each of its rounds and may be known to be. "poisson": independently with
            probability ``rate``, unknown to readers of the release. "truncated": the same, at most ``cap`` of
            ``population``. "fixed": ``cohort`` of ``population`` without replacement.
        steps: number of such releases that one charge stands for (the local steps of example-level privacy).
        unit: the protected unit.
        rounds, gap, takes: of "matrix": rounds of the run, least distance of two rounds that a device is in, and most
            rounds that it is in. Of "tree": rounds only, and a device is in one of them.
    Raises: ValueError for impossible values; CompositionError(E-ADJ-MIX) for amplification without a proof.
    """

    kind: Kind
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
    unit: Unit = "device"
    rounds: int = 0
    gap: int = 0
    takes: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", Kind), ("adjacency", Adjacency), ("sampling", Sampling), ("unit", Unit)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        self._check_proofs()
        for name in ("z", "rho", "xi"):
            if not 0.0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not 0.0 <= self.rate <= 1.0 or self.steps < 1:
            raise ValueError(f"rate is {self.rate!r}, steps are {self.steps!r}")
        if self.sampling == "truncated" and not 0 < self.cap <= self.population:
            raise ValueError(f"cap is {self.cap} of {self.population}")
        if self.sampling == "fixed" and not 0 < self.cohort <= self.population:
            raise ValueError(f"cohort is {self.cohort} of {self.population}")

    def _check_proofs(self) -> None:
        wanted = _PROVED.get(self.sampling)
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
        if self.kind == "tree" and self.adjacency != "zero_out":
            raise CompositionError(
                "E-ADJ-MIX", "tree noise is accounted for zero_out neighbours only.", "account for zero_out neighbours."
            )

    @property
    def amplified(self) -> bool:
        """Tell whether the event relies on nobody knowing who is in the cohort."""
        return self.sampling != "every"

    @property
    def seen(self) -> PrivacyEvent:
        """The same release for a reader who sees which devices take part. Nobody sees which records a device draws."""
        if self.unit == "example" or not self.amplified:
            return self
        return replace(self, sampling="every", rate=1.0, population=0, cohort=0, cap=0)

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> PrivacyEvent:
        """Convert from plain JSON types. Missing fields have their defaults. Raises ValueError for other keys and
        types, and as ``PrivacyEvent``."""
        numbers: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
        types = {f.name: numbers.get(str(f.type), (str,)) for f in fields(PrivacyEvent)}
        for key, value in plain.items():
            if key not in types or isinstance(value, bool) or not isinstance(value, types[key]):
                raise ValueError(f"an event has no {key} = {value!r}")
        return PrivacyEvent(**plain)


def gaussian(z: float, adjacency: Adjacency = "zero_out") -> PrivacyEvent:
    """Gaussian release without sampling: noise of ``z`` times the sensitivity of ``adjacency``. Every device may be in
    the cohort, and be known to be."""
    return PrivacyEvent("gaussian", adjacency, z=z)


def discrete_event(rho: float, xi: float = 0.0) -> PrivacyEvent:
    """Release with distributed discrete Gaussian noise: (xi, rho)-zCDP (Bun, Steinke 2016, def. 8.1; 2102.06387)."""
    return PrivacyEvent("zcdp", "zero_out", rho=rho, xi=xi)


def poisson(z: float, rate: float) -> PrivacyEvent:
    """Gaussian release with Poisson sampling: every device with probability ``rate``. z: noise on the sum over clip."""
    return PrivacyEvent("gaussian", "add_remove", z=z, sampling="poisson", rate=rate)


def truncated_poisson_event(z: float, rate: float, population: int, cap: int) -> PrivacyEvent:
    """Gaussian release as ``poisson``, with at most ``cap`` of ``population`` devices (see
    ``accountant.safe_poisson_cap``)."""
    return PrivacyEvent("gaussian", "add_remove", z=z, sampling="truncated", rate=rate, population=population, cap=cap)


def fixed_size_event(z: float, population: int, cohort: int) -> PrivacyEvent:
    """Gaussian release of ``cohort`` of ``population`` devices without replacement. z: noise over the *clip*. Replacing
    a device moves the sum by two clips."""
    return PrivacyEvent("gaussian", "replace_one", z=z / 2.0, sampling="fixed", population=population, cohort=cohort)


def matrix(z: float, rounds: int, gap: int, takes: int) -> PrivacyEvent:
    """Run of ``rounds`` with correlated noise. z: noise over clip times ``matrix.matrix_sensitivity``."""
    if rounds < 1 or gap < 1 or takes < 1:
        raise ValueError("rounds, gap and takes must be at least 1")
    return PrivacyEvent("matrix", "zero_out", z=z, rounds=rounds, gap=gap, takes=takes)


def tree_event(z: float, rounds: int) -> PrivacyEvent:
    """Run of ``rounds`` with tree noise of z per node over the clip, every device in one round (arXiv:2103.00039)."""
    if rounds < 1:
        raise ValueError("rounds must be at least 1")
    return PrivacyEvent("tree", "zero_out", z=z, rounds=rounds)


def local(z: float) -> PrivacyEvent:
    """Release of one device's update under its own noise. z: noise over the *clip*. Any other update is a neighbour."""
    return PrivacyEvent("gaussian", "replace_one", z=z / 2.0)


def record_level(z: float, rate: float, steps: int) -> PrivacyEvent:
    """Release of ``steps`` of DP-SGD in a round, with Poisson batches of records. z: noise over the clip per record."""
    return PrivacyEvent("gaussian", "add_remove", z=z, sampling="poisson", rate=rate, unit="example", steps=steps)
