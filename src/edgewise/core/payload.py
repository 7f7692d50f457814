"""Contributions between the stages of a pipeline, and after the last one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.safe_repr import outline


@dataclass(frozen=True, slots=True)
class Payload:
    """One contribution between two stages.

    Attributes:
        body: float32[m] (REAL). int8[m] up to level_max 127, else int32[m] (INTEGER). uint32[m] (RING).
        head: float64[h], exact scalars in the order of ``Space.head``. Only ``weigh`` changes them.
        support: int64[m], strictly increasing positions of the body. None if positions are public, or all are sent.
        scales: float32[scales ceil(m / block)], bfloat16 values. None if the grid is public.
        count: amount of data behind the contribution. Input of ``weigh``, never sent.
        widths: uint8[parts], bits per coordinate of each part (``codecs.quantize.mixed``). None if all are the same.
        rung: number of the space that this is an encoding of (``codecs.ladder``). None if there is no choice.
    """

    body: NDArray[Any]
    head: NDArray[np.float64]
    support: NDArray[np.int64] | None = None
    scales: NDArray[np.float32] | None = None
    count: float = field(default=1.0, repr=False)
    widths: NDArray[np.uint8] | None = None
    rung: int | None = None

    __repr__ = outline

    def but(self, **changes: object) -> Payload:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def dense(self, dim: int) -> Payload:
        """Spread the body over ``dim`` coordinates. All positions outside ``support`` become zero."""
        if self.support is None:
            return self
        x = np.zeros(dim, self.body.dtype)
        x[self.support] = self.body
        return self.but(body=x, support=None)
