"""The ladder: the ways to send an update, from the most bytes to the fewest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from edgewise.core.vector import Spec


@dataclass(frozen=True)
class PlannedRung:
    """One way to send an update.

    Attributes:
        name: name in reports and in ``adaptive.ladder``.
        stages: the ``[[stage]]`` tables after ``weigh``, outermost first; none = float32. They are written without
            ``feedback``. A biased rung (``Space.unbiased`` is false after its stages) needs error feedback around it.
            An unbiased rung does not. A rung that stretches its coordinates leaves nothing in the feedback's memory.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]


def _eden_stages(bits: int) -> tuple[Mapping[str, Any], ...]:
    """Stages of a rung that rotates and rounds to the EDEN grid."""
    return ({"kind": "rotate"}, {"kind": "quantize", "grid": "eden", "bits": bits})


def _largest_stages(percent: float) -> tuple[Mapping[str, Any], ...]:
    """Stages of a rung that sends the largest coordinates."""
    pair = {"kind": "quantize", "grid": "pair", "bits": 2, "block": 256}
    return ({"kind": "top_k", "fraction": percent / 100}, pair)


def _random_stages(percent: float) -> tuple[Mapping[str, Any], ...]:
    """Stages of a rung that sends random coordinates with one bit each."""
    return ({"kind": "random_k", "fraction": percent / 100, "each": True}, *_eden_stages(1))


# Each rung takes strictly fewer bytes than the one before, for every vector of 100,000 parameters and more.
RUNGS: tuple[PlannedRung, ...] = (
    PlannedRung("float32", ()),
    PlannedRung("8 bit", ({"kind": "quantize", "bits": 8},)),
    PlannedRung("4 bit", ({"kind": "quantize", "bits": 4},)),
    PlannedRung("mixed 3 bit", ({"kind": "mixed", "bits": 3.0},)),
    PlannedRung("eden 2 bit", _eden_stages(2)),
    PlannedRung("eden 1 bit", _eden_stages(1)),
    *(PlannedRung(f"random {percent:g} %, 1 bit", _random_stages(percent)) for percent in (50, 30, 20, 10)),
    *(PlannedRung(f"top {percent:g} %, 2 bit", _largest_stages(percent)) for percent in (0.5, 0.25, 0.1, 0.05, 0.02)),
)


@dataclass(frozen=True)
class PlannedMaskedRung:
    """One way to send an update into a masked sum, which needs integers on a grid that all devices share.

    The bounds come from the recipe's clip.

    Attributes:
        name: name in reports and in ``adaptive.ladder``.
        bits: bits of the grid.
        keep: share of the coordinates that travels. A group draws the same ones, anew in each round.
    """

    name: str
    bits: int
    keep: float = 1.0


# A coordinate costs log2 of the cohort's size in addition to its bits, so fewer bits save little.
MASKED_RUNGS: tuple[PlannedMaskedRung, ...] = (
    *(PlannedMaskedRung(f"masked {bits} bit", bits) for bits in (8, 6, 4)),
    *(PlannedMaskedRung(f"masked {percent:g} %, 8 bit", 8, percent / 100) for percent in (50, 25, 10, 5, 2, 1, 0.5)),
)


def layout_after_recipe(spec: Spec, tables: Sequence[Mapping[str, Any]]) -> Spec:
    """Return the layout of the update after the stages of a recipe: fewer segments after ``segments``.

    Edge cases: the stage itself refuses patterns that match nothing.
    """
    for table in tables:
        if table.get("kind") == "segments":
            patterns = table.get("names", ["*"])
            chosen = [s for s in spec.segments if any(fnmatchcase(s.name, p) for p in patterns)]
            spec = Spec.of([(s.name, s.shape, s.dtype) for s in chosen])
    return spec
