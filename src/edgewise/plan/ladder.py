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
            inside it, an unbiased one need not.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]


def _largest(fraction: float, bits: int) -> tuple[Mapping[str, Any], ...]:
    return ({"kind": "top_k", "fraction": fraction}, {"kind": "quantize", "bits": bits})


# Strictly fewer bytes from rung to rung, for every vector of 100,000 parameters and more: a test checks it.
# Not here: quantize with 2 bits. In blocks of 64 its error is larger than what it encodes (NMSE 1.09 on normals, 1.7 on
# Student's t with 3 degrees of freedom), so feedback would not contract. In blocks of 8 it would (0.5), at 4 bits per
# coordinate, where 3 bits in blocks of 64 take 3.25 and leave 0.13 to 0.32. Nor mixed with 2: on heavy tails it takes
# more bytes than the largest 10 % and leaves more (0.54 against 0.38 on Student's t with 4 degrees of freedom).
RUNGS: tuple[Rung, ...] = (
    Rung("float32", ()),
    Rung("8 bit", ({"kind": "quantize", "bits": 8},)),
    Rung("4 bit", ({"kind": "quantize", "bits": 4},)),
    Rung("mixed 3 bit", ({"kind": "mixed", "bits": 3.0},)),
    Rung("top 10 %, 8 bit", _largest(0.1, 8)),
    Rung("top 5 %, 8 bit", _largest(0.05, 8)),
    Rung("top 2 %, 4 bit", _largest(0.02, 4)),
    Rung("top 1 %, 4 bit", _largest(0.01, 4)),
    Rung("top 0.5 %, 4 bit", _largest(0.005, 4)),
    Rung("top 0.25 %, 4 bit", _largest(0.0025, 4)),
    Rung("top 0.1 %, 4 bit", _largest(0.001, 4)),
    Rung("top 0.05 %, 4 bit", _largest(0.0005, 4)),
    Rung("top 0.02 %, 4 bit", _largest(0.0002, 4)),
)


def remaining(spec: Spec, tables: Sequence[Mapping[str, Any]]) -> Spec:
    """The layout of what is left of the update behind the stages of a recipe: fewer segments where ``segments`` stands
    among them. Patterns that match nothing are that stage's own to refuse."""
    for table in tables:
        if table.get("kind") == "segments":
            kept = [s for s in spec.segments if any(fnmatchcase(s.name, p) for p in table.get("names", ()))]
            spec = Spec.of([(s.name, s.shape, s.dtype) for s in kept])
    return spec
