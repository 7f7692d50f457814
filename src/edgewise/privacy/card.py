"""The privacy card: what is promised, to whom, and on what it rests; the same words in check, report and model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any, Literal

from edgewise.privacy import accountant
from edgewise.privacy.spend import Event


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


NoiseBy = Literal["server", "devices", "device"]
UNIT = {"device": "device: all text that it holds, in all rounds", "record": "record: one text on one device"}
NEIGHBOURS = {
    "zero_out": "one {0}'s updates are all zero or not; who takes part is public",
    "add_remove": "one {0} is in the population or not",
    "replace_one": "one {0} has other text",
}
# What each way of taking part asks one to believe.
ASSUMED = {
    "every": "none: every device may be in all of its rounds, and be known to be",
    "poisson": "each round every {0} is in independently with probability {1.rate:.4g}, and nobody learns who",
    "truncated": "each round every {0} is in independently with probability {1.rate:.4g}, at most {1.cap} of "
    "{1.population}, and nobody learns who",
    "fixed": "each round {1.cohort} of {1.population} {0}s without replacement, and nobody learns who; not Poisson",
}
CORRELATED = (
    "none of who is in a round; at least {1.gap} rounds lie between two of one {0}, which is in at most {1.takes}"
)
ONE_EPOCH = "none of who is in a round; every {0} is in at most one"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The two numbers of a run, and all that they rest on.

    Attributes:
        against_server, of_release: epsilon at ``delta``; None: nothing is promised.
        unit, adjacency: what is protected, and what the neighbouring world is. sampling: assumed for ``of_release``;
            ``against_server`` never rests on the sampling of devices.
        honest: devices whose noise is counted on; ``fewer``: see ``degradation``.
    """

    against_server: float | None
    of_release: float
    delta: float
    unit: str
    adjacency: str
    sampling: str
    honest: int = 0
    fewer: tuple[tuple[int, float], ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON types; an epsilon that is not finite is null."""
        plain = asdict(self)
        for name in ("against_server", "of_release"):
            plain[name] = plain[name] if plain[name] is not None and isfinite(plain[name]) else None
        plain["fewer"] = [list(pair) for pair in self.fewer]
        return plain


def guarantee(
    events: Mapping[Event, int], delta: float, noise_by: NoiseBy, honest: int = 0, z: float = 0.0
) -> Guarantee:
    """What events promise, to whom.

    Args:
        events: event -> rounds that one unit may be in, at least one. noise_by: the "server" (it is trusted: nothing is
            promised against it), the "devices" together, or each "device" alone.
        honest, z: of "devices": how many are counted on, and the noise of a round over the clip if all of them are.
    Raises: ValueError without events; CompositionError(E-ADJ-MIX).
    """
    if not events:
        raise ValueError("a guarantee is about at least one event")
    event = next(iter(events))
    seen: dict[Event, int] = {}
    for e, n in events.items():
        seen[e.seen] = seen.get(e.seen, 0) + n
    return Guarantee(
        against_server=None if noise_by == "server" else accountant.epsilon(seen, delta, against="server"),
        of_release=accountant.epsilon(events, delta),
        delta=delta,
        unit=UNIT[event.unit],
        adjacency=NEIGHBOURS[event.adjacency].format(event.unit),
        sampling=" and ".join(dict.fromkeys(_assumed(e) for e in events)),
        honest=honest,
        fewer=degradation(z, honest, delta) if honest and z > 0.0 else (),
    )


def _assumed(event: Event) -> str:
    words = {"matrix": CORRELATED, "tree": ONE_EPOCH}.get(event.kind, ASSUMED[event.sampling])
    return words.format(event.unit, event)
