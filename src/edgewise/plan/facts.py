"""What identifies a run: the facts from which both sides of the wire compile the same plan.

    run = SHA-256(canonical JSON of the facts)

A device and a server with equal run ids have compiled the same bounds, thresholds, noise and layout. All of these
follow from the recipe, the model's layout and the population, so a side that was told another population has another
run id, and masks of its sessions cancel with nobody's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from edgewise.core import frame
from edgewise.plan.recipe import Recipe, digest
from edgewise.secagg import messages


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """The facts that decide a run's model and protocol.

    Attributes:
        recipe: SHA-256 of the recipe without its sections [simulation], [compare], [eval] and [report].
        spec: digest of the trainable vector's layout.
        population: number of devices that exist. Smallest sums, thresholds and noise shares are sized by it.
        secagg: name and version of the protocol for secure aggregation.
        wire: version of frames and of the payloads in them.
    """

    recipe: str
    spec: str
    population: int
    secagg: str
    wire: int

    def digest(self) -> str:
        """The run id, 64 hexadecimal digits."""
        plain = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()


def facts(recipe: Recipe, spec: str, population: int) -> PlanFacts:
    """The facts of a recipe for a layout (its digest) and a population, in the versions of this program."""
    decisive = {k: v for k, v in recipe.resolved().items() if k not in ("simulation", "compare", "eval", "report")}
    return PlanFacts(digest(decisive), spec, population, messages.PROTOCOL.decode(), frame.VERSION)
