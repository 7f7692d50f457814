"""Names and columns of the two factors of LoRA adapters in the layout of a run's vector.

An adapter adds ``scale B A`` to a matrix, with A of shape (rank, inputs) and B of shape (outputs, rank). Column c of B
belongs to row c of A.

>>> from edgewise.core.vector import Spec
>>> factor("layers.0.q_proj.lora_B.weight")
'B'
>>> columns(Spec.of([("q.lora_B.weight", (2, 3), "float32"), ("norm", (2,), "float32")])).tolist()
[0, 1, 2, 0, 1, 2, -1, -1]
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from edgewise.core.vector import Spec

_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.|$)")
_FOLD = re.compile(r"\.fold(\d+)(?:\.|$)")


def factor(name: str) -> str | None:
    """Return ``"A"`` or ``"B"`` for a factor's segment, on a linear layer or an embedding. None for any other name."""
    found = _FACTOR.search(name)
    return found[1] if found else None


def fold(name: str) -> int:
    """Return the number of the adapter that a segment belongs to, where several come one after another (ReFFA).

    >>> fold("q_proj.lora_B.weight"), fold("q_proj.lora_B.fold2.weight")
    (0, 2)
    """
    found = _FOLD.search(name)
    return int(found[1]) if found else 0


def columns(spec: Spec) -> NDArray[np.int32]:
    """Number the column of each coordinate: int32[d].

    A coordinate of a factor B has its column, and one of a factor A its row. All others have -1.
    """
    out = np.full(spec.dim, -1, np.int32)
    for s in spec.segments:
        if kind := factor(s.name):
            rows, width = s.shape
            number = np.repeat(np.arange(rows), width) if kind == "A" else np.tile(np.arange(width), rows)
            out[s.start : s.stop] = number
    return out
