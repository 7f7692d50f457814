"""Layer-wise federation: only the named segments of the update travel."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np

from edgewise.core import demand
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.space import Space
from edgewise.core.stage import Memory, Payload, Stage
from edgewise.core.vector import Spec


def segments(spec: Spec, names: Sequence[str]) -> Stage:
    """Keep the coordinates of the segments that match any of ``names``; the others decode to zero.

    Algebra: a public coordinate projection, so linear and summable; l2 and linf stay; dim is the kept length;
    unbiased only when everything is kept.
    Args:
        spec: layout of the update. names: segment names or shell patterns (``"model.layers.1.*"``).
    Raises:
        CompositionError: E-SEGMENT when a name matches nothing; E-ORDER when the vector is no longer the whole
            update; E-NOT-REAL after a quantizer.
    """
    name = f"segments({', '.join(names)})"
    known = [s.name for s in spec.segments]
    for pattern in names:
        if not any(fnmatchcase(n, pattern) for n in known):
            near = get_close_matches(pattern, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the segments are {', '.join(known[:5])}, ..."
            raise CompositionError("E-SEGMENT", f"{name}: {pattern!r} matches no segment.", hint)
    if not names:
        raise CompositionError("E-SEGMENT", "segments: no names given.", 'name at least one, or "*" for all.')
    kept = [s for s in spec.segments if any(fnmatchcase(s.name, p) for p in names)]
    size = sum(s.size for s in kept)
    stops = np.cumsum([s.size for s in kept])  # of each kept segment, among the kept coordinates
    shift = np.array([s.stop for s in kept]) - stops

    def infer(space: Space) -> Space:
        demand.real(space, name)
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER", f"{name}: needs the whole update of {spec.dim} coordinates.", "put it first."
            )
        return space.but(dim=size, universe=size, unbiased=space.unbiased and size == spec.dim)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=np.concatenate([payload.body[s.start : s.stop] for s in kept])), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if payload.support is not None:
            return payload.but(support=payload.support + shift[np.searchsorted(stops, payload.support, "right")])
        x, at = np.zeros(spec.dim, np.float32), 0
        for s in kept:
            x[s.start : s.stop] = payload.body[at : at + s.size]
            at += s.size
        return payload.but(body=x)

    return Stage(name, infer, encode, decode, sparse=True)
