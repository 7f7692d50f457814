"""Layer-wise federation: only the named segments of the update travel, all of them or a different group each round."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate, groupby, pairwise
from typing import Annotated

import numpy as np
from annotated_types import Ge, MinLen

from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.factors import factor, fold
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, keeps
from edgewise.core.vector import Segment, Spec

Names = Annotated[Sequence[str], MinLen(1), Doc("name patterns of trainable tensors")]
Cycle = Annotated[int, Ge(1), Doc("groups of about equal size; round r moves and trains group r mod cycle")]


@part(turns=lambda keys, spec: segment_groups(spec, **keys))
def segments(spec: Spec, names: Names = ("*",), cycle: Cycle = 1, phase: int = 0) -> Stage:
    """Send only some layers. With a cycle, send and train them in turn.

    Keeps the coordinates of group ``phase`` of the segments that match any of ``names``. The others decode to zero.
    Round r moves group r mod ``cycle`` (``Plan.at``). With cycle 1 the one group is everything that matches.

    Algebra: a public coordinate projection, so linear and summable. l2 and linf stay. dim is the kept length. Unbiased
    only if everything is kept. period is ``cycle``: memory per position is used again after that many rounds.
    Args:
        spec: layout of the update.
        names: segment names or shell patterns (``"model.layers.1.*"``).
        cycle: number of groups.
        phase: number of the group that this stage keeps, from 0.
    Raises:
        RecipeError, CompositionError: as ``segment_groups``. E-VALUE for a phase outside the cycle. E-ORDER if the
            vector is no longer the whole update. E-NOT-REAL after a quantizer.
    """
    require.between("segments: phase", phase, 0, cycle - 1)
    chosen = segment_groups(spec, names, cycle)[phase]
    name = f"segments({', '.join(names)}{f'; group {phase} of cycle {cycle}' if cycle > 1 else ''})"
    return keep_segments(spec, chosen, name, cycle)


@part(turns=lambda keys, spec: factor_groups(spec))
def factors(spec: Spec, phase: int = 0) -> Stage:
    """Send and train the factors of LoRA in turn, all B in even rounds and all A in odd ones (RoLoRA).

    The other factors keep their values. The mean of products that share one factor is the product of the mean: with A
    fixed, mean(B_i) A = mean(B_i A). This does not hold if both move. Algebra as ``segments`` with a cycle of 2.

    Raises:
        CompositionError: E-SEGMENT if the update has no such factors. Others as ``segments``.
    Source: Chen et al. 2024, arXiv:2409.02346 (RoLoRA).
    """
    require.between("factors: phase", phase, 0, 1)
    return keep_segments(spec, factor_groups(spec)[phase], f"factors({'BA'[phase]})", 2)


@part(turns=lambda keys, spec: _fold_groups(spec))
def folds(spec: Spec, phase: int = 0) -> Stage:
    """Send and train the adapters of ReFFA one after another. An adapter whose rounds are over stays as it is.

    Each has its own fixed A, so W = W_0 + scale sum_j B_j A_j is linear in all B_j, and the mean over devices is exact.
    A frozen adapter is the same as one that is folded into the weights, without a change to them. Algebra as
    ``segments``.

    Raises:
        CompositionError: as ``segments``.
    Source: FFA-LoRA (Sun et al. 2024, arXiv:2403.12313), begun anew every few rounds.
    """
    by_fold = _fold_groups(spec)
    require.between("folds: phase", phase, 0, len(by_fold) - 1)
    return keep_segments(
        spec, by_fold[phase], f"folds({phase + 1} of {len(by_fold)})", 1, "the adapter of these rounds"
    )


def _fold_groups(spec: Spec) -> tuple[tuple[Segment, ...], ...]:
    """List the segments of each adapter of ReFFA, the first one first."""
    count = 1 + max(fold(s.name) for s in spec.segments)
    return tuple(tuple(s for s in spec.segments if fold(s.name) == i) for i in range(count))


def factor_groups(spec: Spec) -> tuple[tuple[Segment, ...], ...]:
    """List the segments of all B, and those of all A. Raises as ``factors``."""
    by_factor = tuple(tuple(s for s in spec.segments if factor(s.name) == letter) for letter in "BA")
    if not all(by_factor) or sum(map(len, by_factor)) != len(spec.segments):
        raise CompositionError(
            "E-SEGMENT",
            "factors: the update is not made of the two factors of LoRA.",
            'train them: trainable.kind = "lora", and trainable.rule = "rolora".',
        )
    return by_factor


def keep_segments(spec: Spec, chosen: Sequence[Segment], name: str, cycle: int, which: str | None = None) -> Stage:
    """Make the stage that keeps these segments, of a cycle of that many rounds. ``which`` describes them."""
    which = which if which is not None else ("the same on all devices" if cycle > 1 else "fixed for the run")
    size = sum(s.size for s in chosen)
    stops = np.cumsum([s.size for s in chosen])  # The end of each kept segment among the kept coordinates.
    shift = np.array([s.stop for s in chosen]) - stops

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER", f"{name}: needs the whole update of {spec.dim} coordinates.", "put it first."
            )
        return space.but(dim=size, unbiased=space.unbiased and size == spec.dim, period=cycle)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=np.concatenate([payload.body[s.start : s.stop] for s in chosen])), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if payload.support is not None:
            return payload.but(support=payload.support + shift[np.searchsorted(stops, payload.support, "right")])
        x, start = np.zeros(spec.dim, np.float32), 0
        for s in chosen:
            x[s.start : s.stop] = payload.body[start : start + s.size]
            start += s.size
        return payload.but(body=x)

    def says(before: Space, after: Space) -> str:
        return f"{keeps(before, after)}, {which}"

    return Stage(name, infer, encode, decode, says, takes_support=True)


def segment_groups(spec: Spec, names: Sequence[str], cycle: int) -> tuple[tuple[Segment, ...], ...]:
    """Cut the segments that match any of ``names`` into ``cycle`` contiguous groups of about equal size.

    Rule: in the order of ``spec``, neighbours of one numbered layer (equal names up to the first number:
    ``model.layers.3.``) form one unit. Every other segment is a unit by itself. Cut j of 1..cycle-1 is made where the
    coordinates so far are nearest to j / cycle of all (the earlier place of two), so that each group has something. A
    layer is cut only if there are fewer units than groups.

    Guarantees: a partition of the matching segments, without an empty group. The same on every machine.
    Raises:
        CompositionError: E-SEGMENT if a name matches nothing.
        RecipeError: E-VALUE for a cycle below 1, or above the number of segments (a segment is never cut).
    """
    matched = _matched_segments(spec, names)
    if cycle > len(matched):
        raise RecipeError(
            "E-VALUE",
            f"segments: cycle = {cycle}, but only {len(matched)} segments match.",
            "give a cycle of at most that.",
        )
    units = [tuple(unit) for _, unit in groupby(matched, _layer_name)]
    if len(units) < cycle:
        units = [(s,) for s in matched]
    so_far = list(accumulate(sum(s.size for s in unit) for unit in units))
    cuts = [0]
    for j in range(1, cycle):
        places = range(cuts[-1] + 1, len(units) - (cycle - j) + 1)
        cuts.append(min(places, key=lambda i: abs(so_far[i - 1] * cycle - j * so_far[-1])))
    cuts.append(len(units))
    return tuple(tuple(s for unit in units[a:b] for s in unit) for a, b in pairwise(cuts))


def _layer_name(segment: Segment) -> tuple[str, ...]:
    """Name the unit of a segment: its name up to the first number, or the whole name if it has none."""
    parts = segment.name.split(".")
    return tuple(parts[: next((i for i, p in enumerate(parts) if p.isdecimal()), len(parts)) + 1])


def _matched_segments(spec: Spec, names: Sequence[str]) -> list[Segment]:
    """Find the segments whose names match. Raises for a pattern that matches none."""
    known = [s.name for s in spec.segments]
    for pattern in names:
        if not any(fnmatchcase(n, pattern) for n in known):
            near = get_close_matches(pattern, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the segments are {', '.join(known[:5])}, ..."
            raise CompositionError("E-SEGMENT", f"segments: {pattern!r} matches no segment.", hint)
    return [s for s in spec.segments if any(fnmatchcase(s.name, p) for p in names)]
