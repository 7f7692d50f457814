"""Largest coordinates of the last release and some new ones, the same on all devices of a round."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError, DecodeError
from edgewise.core.keys import Key, Turn, derive, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, keeps
from edgewise.core.vector import Spec
from edgewise.kernels.hashing import choose_by_hash

Positions = NDArray[np.int64]


class _Announced:
    """A support as a key of the cache. Two are equal if their digests are."""

    __slots__ = ("at", "digest")

    def __init__(self, at: Positions) -> None:
        self.at = at
        self.digest = hashlib.blake2b(np.ascontiguousarray(at, "<i8").data, digest_size=32).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Announced) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@lru_cache(maxsize=4)
def _shared_positions(key: Key, dim: int, k: int, announced: _Announced) -> Positions:
    """Choose the announced positions, and k minus their number of the others.

    The draw gives ranks among the positions that are not announced. They are then mapped to positions.
    """
    known = announced.at
    ranks = choose_by_hash(dim - known.size, k - known.size, np.uint64(word(key)))
    others = ranks + np.searchsorted(known - np.arange(known.size), ranks, "right")
    out = np.sort(np.concatenate([known, others]))
    out.setflags(write=False)
    return out


@part
def shared_top_k(
    spec: Spec,
    fraction: Annotated[float, Gt(0), Le(1), Doc("share of the coordinates that travels")],
    explore: Annotated[float, Gt(0), Le(1), Doc("share of them that is drawn at random among the others")] = 0.2,
) -> Stage:
    """Send the largest coordinates of the last release and some new ones, the same on all devices of a round.

    ``k = max(1, round(fraction d))`` public coordinates: ``k - e`` of the largest of the last release
    (``Turn.support``), and ``e = max(1, round(explore k))`` or more of the others, drawn from the round's public key.
    Without exploration the support could never change, because coordinates that do not travel are zero in every
    release. If fewer are announced (none before the first release, and zeros never), more are drawn.

    Algebra: a public coordinate projection, so linear and summable. l2 and linf stay. Biased (use ``feedback``). dim ->
    k. ``moving``. ``Space.announced`` = k - e, the largest number of positions that the server announces.
    Guarantees: devices and server derive the same positions from the same turn, with the sampler of ``random_k``, on
    every platform. Uniform over the others. No positions travel upwards.
    Privacy: under a blind sum, positions say nothing about one device, because they come from data that everyone was
    sent. Under differential privacy they are free post-processing only if every release is itself private. They are
    then paid for with it. A support from a release without noise is a function of the data like any other.
    Edge cases: k = d is the identity and announces nothing. k = 1 always explores.
    Args:
        spec: layout of the update, which must still be whole here.
        explore: share of the k coordinates that is drawn. 1 is ``random_k`` without its factor.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL. E-ORDER if the body is not the whole update, or for a second such stage.
        DecodeError: E-FRAME for announced positions that do not increase inside the update or are too many.
    Source: Ozfatura, Ozfatura, Gunduz 2021, arXiv:2101.08837 (time-correlated sparsification).
    """
    name = f"shared_top_k({fraction:g}, explore {explore:g})"
    k = min(spec.dim, max(1, round(fraction * spec.dim)))
    known = 0 if k == spec.dim else k - max(1, round(explore * k))

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.announced:
            raise CompositionError("E-ORDER", f"{name}: an earlier stage already chose shared positions.", "keep one.")
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER",
                f"{name}: its positions are those of the last release, which has all {spec.dim} coordinates.",
                "put it before every stage that chooses coordinates.",
            )
        return space.but(
            dim=k,
            moving=k < spec.dim,
            announced=known,
            unbiased=space.unbiased and k == spec.dim,
        )

    def positions(turn: Turn) -> Positions:
        support = np.zeros(0, np.int64) if turn.support is None else turn.support
        inside = support.size == 0 or (
            support[0] >= 0 and support[-1] < spec.dim and bool((np.diff(support) > 0).all())
        )
        if support.size > known or not inside:
            raise DecodeError(
                "E-FRAME",
                f"{name}: the server announced {support.size} positions. It may announce up to {known}, which must "
                "increase and lie inside the update.",
            )
        return _shared_positions(derive(turn.public, "shared_top_k", turn.round), spec.dim, k, _Announced(support))

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload if k == spec.dim else payload.but(body=payload.body[positions(turn)]), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if k == spec.dim:
            return payload
        where = positions(turn)
        return payload.but(support=where if payload.support is None else where[payload.support])

    def says(before: Space, after: Space) -> str:
        how = "the largest of the last release and some drawn anew, the same on all devices"
        return f"{keeps(before, after)}, {how if known else 'drawn anew each round, the same on all devices'}"

    return Stage(name, infer, encode, decode, says, takes_support=True)
