"""The ladder: ways to send an update, from the most bytes to the fewest. One list, for whoever has to choose a rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from edgewise.core.vector import Spec


@dataclass(frozen=True)
class Rung:
    """One way to send an update.

    Attributes:
        name: for people, and for ``adaptive.ladder`` in recipes.
        stages: the ``[[stage]]`` tables after ``weigh``, outermost first; none = float32. They are written without
            ``feedback``: a rung whose stages are biased (``Space.unbiased`` is false after them) is meant to stand
            inside it, an unbiased one need not, and one that stretches what it keeps is not remembered there.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]


def _eden(bits: int) -> tuple[Mapping[str, Any], ...]:
    return ({"kind": "rotate"}, {"kind": "quantize", "grid": "eden", "bits": bits})


def _largest(percent: float) -> tuple[Mapping[str, Any], ...]:
    pair = {"kind": "quantize", "grid": "pair", "bits": 2, "block": 256}
    return ({"kind": "top_k", "fraction": percent / 100}, pair)


def _random(percent: float) -> tuple[Mapping[str, Any], ...]:
    return ({"kind": "random_k", "fraction": percent / 100, "each": True}, *_eden(1))


# Strictly fewer bytes from rung to rung, for every vector of 100,000 parameters and more: a test checks it.
RUNGS: tuple[Rung, ...] = (
    Rung("float32", ()),
    Rung("8 bit", ({"kind": "quantize", "bits": 8},)),
    Rung("4 bit", ({"kind": "quantize", "bits": 4},)),
    Rung("mixed 3 bit", ({"kind": "mixed", "bits": 3.0},)),
    Rung("eden 2 bit", _eden(2)),
    Rung("eden 1 bit", _eden(1)),
    *(Rung(f"random {percent:g} %, 1 bit", _random(percent)) for percent in (50, 30, 20, 10)),
    *(Rung(f"top {percent:g} %, 2 bit", _largest(percent)) for percent in (0.5, 0.25, 0.1, 0.05, 0.02)),
)


@dataclass(frozen=True)
class MaskedRung:
    """One way to send an update into a masked sum, which needs integers on a grid that all share.

    The bounds are the recipe's clip's. ``bits``: of the grid. ``keep``: the share of coordinates that travels, drawn
    anew in each round and alike for the group.
    """

    name: str
    bits: int
    keep: float = 1.0


# A coordinate costs log2 of the cohort's size above its bits, so few bits save little.
MASKED_RUNGS: tuple[MaskedRung, ...] = (
    *(MaskedRung(f"masked {bits} bit", bits) for bits in (8, 6, 4)),
    *(MaskedRung(f"masked {percent:g} %, 8 bit", 8, percent / 100) for percent in (50, 25, 10, 5, 2, 1, 0.5)),
)


def remaining(spec: Spec, tables: Sequence[Mapping[str, Any]]) -> Spec:
    """The layout of what is left of the update behind the stages of a recipe: fewer segments where ``segments`` stands
    among them. Patterns that match nothing are that stage's own to refuse."""
    for table in tables:
        if table.get("kind") == "segments":
            patterns = table.get("names", ["*"])
            kept = [s for s in spec.segments if any(fnmatchcase(s.name, p) for p in patterns)]
            spec = Spec.of([(s.name, s.shape, s.dtype) for s in kept])
    return spec
