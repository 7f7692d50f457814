"""The two parts of a model that is cut: the device's part travels in the first rounds, and the rest in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from edgewise.codecs.select.segments import keep_segments
from edgewise.core import require
from edgewise.core.blocks import block_of
from edgewise.core.errors import CompositionError
from edgewise.core.part import Doc, part
from edgewise.core.stage import Stage
from edgewise.core.vector import Segment, Spec

LOCAL_HEAD = "local_head."  # Names of the small head of a device's own begin so.


@part(turns=lambda keys, spec: _cut_groups(spec, **keys))
def cut_parts(
    spec: Spec, cut: Annotated[int, Ge(1), Doc("blocks of the device's part, after the embedding")], phase: int = 0
) -> Stage:
    """Send and train the device's part of a model and its small head, and in later rounds the rest (local-loss split).

    Algebra as ``segments``. A part whose rounds are over stays as it is.

    Raises:
        CompositionError: E-SEGMENT if a part has no trained parameter. Others as ``segments``.
    Source: Belilovsky et al. 2019, arXiv:1812.11446 (greedy layer-wise training); Han et al. 2021, arXiv:2106.03337.
    """
    require.between("cut_parts: phase", phase, 0, 1)
    which = ("the part of the devices with its own head", "the rest, behind the cut")[phase]
    return keep_segments(
        spec, _cut_groups(spec, cut)[phase], f"cut_parts({cut}; {'device' if phase == 0 else 'rest'})", 1, which
    )


def _cut_groups(spec: Spec, cut: int) -> tuple[tuple[Segment, ...], ...]:
    """List the segments of the device's part, and those of the rest. Raises as ``cut_parts``."""
    rest = set(names_behind_cut([s.name for s in spec.segments], cut, True))
    found = tuple(tuple(s for s in spec.segments if (s.name in rest) is late) for late in (False, True))
    if not all(found):
        side = "the device's part" if not found[0] else "the rest"
        what = f"cut_parts: with a cut behind {cut} blocks {side} has no trained parameter."
        raise CompositionError("E-SEGMENT", what, "take another cut, or train more of the model.")
    return found


def names_behind_cut(names: Sequence[str], cut: int, head: bool) -> list[str]:
    """List the names of parameters behind ``cut`` blocks.

    Args:
        head: what follows the last block is behind the cut too.
    """
    numbers = {name: number for name in names if (number := block_of(name)) is not None}
    end = max((i for i, name in enumerate(names) if name in numbers), default=-1)
    rest = [name for name in names if numbers.get(name, 0) >= cut]
    top = [n for i, n in enumerate(names) if n not in numbers and i > end and not n.startswith(LOCAL_HEAD)]
    return rest + (top if head else [])
