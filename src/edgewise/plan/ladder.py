"""The ladder: ways to send an update, from the most bytes to the fewest. One list, for whoever has to choose a rung."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rung:
    """One way to send an update.

    Attributes:
        name: for people; nothing depends on it.
        stages: the ``[[stage]]`` tables after ``weigh``, outermost first; none = float32. They are written without
            ``feedback``: a rung whose stages are biased (``Space.unbiased`` is false after them) is meant to stand
            inside it, an unbiased one need not.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]


def _largest(fraction: float, bits: int) -> tuple[Mapping[str, Any], ...]:
    return ({"kind": "top_k", "fraction": fraction}, {"kind": "quantize", "bits": bits})


# Strictly fewer bytes from rung to rung, for every vector of 1,000 parameters and more: a test checks it.
RUNGS: tuple[Rung, ...] = (
    Rung("float32", ()),
    Rung("8 bit", ({"kind": "quantize", "bits": 8},)),
    Rung("4 bit", ({"kind": "quantize", "bits": 4},)),
    Rung("top 5 %, 8 bit", _largest(0.05, 8)),
    Rung("top 1 %, 4 bit", _largest(0.01, 4)),
    Rung("top 0.25 %, 4 bit", _largest(0.0025, 4)),
    Rung("top 0.05 %, 4 bit", _largest(0.0005, 4)),
)
