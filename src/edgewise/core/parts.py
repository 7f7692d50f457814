"""Two parts of a trained vector: the shared part, which travels, and the own part, which stays on its device.

>>> import numpy as np
>>> from edgewise.core.vector import Spec
>>> parts = ModelParts(Spec.of([("body", (2,), "float32"), ("head", (1,), "float32")]), ("head",))
>>> parts.shared.dim, parts.own.dim
(2, 1)
>>> shared, own = parts.split(np.array([1, 2, 3], np.float32))
>>> parts.join(shared, own).tolist()
[1.0, 2.0, 3.0]
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np

from edgewise.core.vector import Segment, Spec, Vector


class ModelParts:
    """A layout and its two parts, each in the order of the whole.

    Args:
        whole: the layout of all trained parameters, d coordinates.
        names: names of the segments of the own part. Names of other segments are ignored.
    Attributes:
        shared: the layout of the segments that travel.
        own: the layout of the segments that stay.
    """

    def __init__(self, whole: Spec, names: Collection[str]) -> None:
        self.whole = whole
        self._own = frozenset(names)
        self.shared = Spec.of([(s.name, s.shape, s.dtype) for s in whole.segments if s.name not in self._own])
        self.own = Spec.of([(s.name, s.shape, s.dtype) for s in whole.segments if s.name in self._own])

    def split(self, x: Vector) -> tuple[Vector, Vector]:
        """Split float32[d] into copies of the shared and of the own part."""
        return self._taken(x, self._shared_runs), self._taken(x, self._own_runs)

    def join(self, shared: Vector, own: Vector) -> Vector:
        """Join both parts to a new float32[d]. Inverse of ``split``. Raises ValueError for parts of other lengths."""
        if shared.shape != (self.shared.dim,) or own.shape != (self.own.dim,):
            what = f"parts of {shared.shape} and {own.shape}, needed ({self.shared.dim},) and ({self.own.dim},)"
            raise ValueError(what)
        x = np.empty(self.whole.dim, np.float32)
        for part, runs in ((shared, self._shared_runs), (own, self._own_runs)):
            at = 0
            for start, stop in runs:
                x[start:stop] = part[at : at + stop - start]
                at += stop - start
        return x

    @cached_property
    def _shared_runs(self) -> list[tuple[int, int]]:
        return _runs([s for s in self.whole.segments if s.name not in self._own])

    @cached_property
    def _own_runs(self) -> list[tuple[int, int]]:
        return _runs([s for s in self.whole.segments if s.name in self._own])

    @staticmethod
    def _taken(x: Vector, runs: list[tuple[int, int]]) -> Vector:
        return np.concatenate([x[start:stop] for start, stop in runs] or [np.zeros(0, np.float32)])


def _runs(segments: list[Segment]) -> list[tuple[int, int]]:
    """Return (start, stop) of the segments, with neighbours in one piece."""
    out: list[tuple[int, int]] = []
    for s in segments:
        if out and out[-1][1] == s.start:
            out[-1] = out[-1][0], s.stop
        else:
            out.append((s.start, s.stop))
    return out
