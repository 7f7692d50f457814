"""Low-rank compression: matrices of the update as products of two thin factors."""

from __future__ import annotations

from math import inf, prod
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError, TrainingError
from edgewise.core.keys import Turn, derive, generator, root
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, percent
from edgewise.core.vector import Segment, Spec, Vector

_MOST = float(np.finfo(np.float32).max)
Matrix = NDArray[np.float32]


class _Part(NamedTuple):
    """A run of the update: a matrix of m rows and n columns, or (m = 0) coordinates that are sent unchanged."""

    start: int
    stop: int
    m: int
    n: int


def _matrices_of(spec: Spec, rank: int) -> list[_Part]:
    """List the matrices of a layout that two factors make smaller."""
    return [_matrix_of(s, rank) for s in spec.segments]


def _matrix_of(s: Segment, rank: int) -> _Part:
    """Find the place and shape of one segment's matrix. A segment that stays whole has none."""
    m, n = (s.shape[0], prod(s.shape[1:])) if len(s.shape) > 1 else (0, 0)
    return _Part(s.start, s.stop, m, n) if rank * (m + n) < m * n else _Part(s.start, s.stop, 0, 0)


def _subspace_step(matrix: Matrix, q: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Do one step of subspace iteration from ``q`` (n, r).

    P Q^T = U U^T M for an orthonormal U. The columns of P and Q have equal lengths.

    Returns:
        P (m, r), Q (n, r), and the start of the next step (n, r).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        image = (matrix @ q).astype(np.float64)
    if not np.isfinite(image).all():
        return image.astype(np.float32), q, q
    p = np.linalg.qr(image)[0].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        factor = matrix.T @ p
    length = np.sqrt(np.square(factor, dtype=np.float64).sum(axis=0))
    usable = (length > 0.0) & np.isfinite(length)  # A column without a direction keeps its old start.
    start = np.where(usable, factor / np.where(usable, length, 1.0), q).astype(np.float32)
    even = np.where(usable, np.sqrt(length), 1.0)  # Both factors get one size, so that one grid suits both.
    return (p * even).astype(np.float32), (factor / even).astype(np.float32), start


def _truncated_svd(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Compute the best factors of a rank."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    half = np.sqrt(s[:rank])
    return (u[:, :rank] * half).astype(np.float32), (vt[:rank].T * half).astype(np.float32)


@part
def low_rank(
    spec: Spec,
    rank: Annotated[int, Ge(1), Doc("columns of each factor")] = 4,
    method: Annotated[
        Literal["power", "svd"],
        Doc("power: one step per round, continued from the last (inside feedback); svd: the best factors"),
    ] = "power",
) -> Stage:
    """Send matrices as products of two thin factors.

    Each matrix M (m, n) of the update travels as P (m, r) and Q (n, r), decoded to P Q^T. Everything else travels
    unchanged. A segment of two or more dimensions is a matrix with its first dimension as rows. Matrices that factors
    would not make smaller, r (m + n) >= m n, stay unchanged.

    ``"power"`` (PowerSGD): P = orthonormal basis of M Q_last, Q = M^T P, both scaled to equal lengths. The device
    remembers the columns of Q, normalised, as the next start (first start: normal numbers of a fixed key). One step
    costs 4 m n r operations. It finds the leading directions over rounds, so it is meant to stand inside ``feedback``.

    ``"svd"``: the best approximation, U sqrt(S) and V sqrt(S). It costs min(m, n) m n operations and needs no memory.

    Algebra: biased. Not summable (every device has its own factors). P Q^T with exact factors is a projection of M and
    no longer than it, but later changes of the factors are multiplied: an error of e in P moves the product by up to e
    ||Q||. So l2 = linf = inf after it is the honest bound. No later stage may keep memory per position (``moving``).
    Memory: ``start`` float32[sum n r], personal data like a residual.
    Edge cases: a zero matrix decodes to zero and leaves the start unchanged. Products beyond float32's range are cut to
    it on decoding.
    Args:
        spec: layout of the update.
        rank: r.
        method: "power" or "svd".
    Raises:
        RecipeError: E-VALUE, also if no matrix would become smaller.
        CompositionError: E-ORDER if the vector is no longer the whole update. E-NOT-REAL after a quantizer.
        TrainingError: E-RANGE on float32 overflow.
    Source: Vogels, Karimireddy, Jaggi 2019 (PowerSGD), arXiv:1905.13727, algorithm 1 and section 4.2 (warm start).
    Eckart and Young 1936 (svd).
    """
    name = f"low_rank({rank}, {method})"
    parts = _matrices_of(spec, rank)
    if not any(p.m for p in parts):
        raise RecipeError("E-VALUE", f"{name}: it would make no matrix smaller.", "lower rank, or leave it out.")
    size = sum(rank * (p.m + p.n) if p.m else p.stop - p.start for p in parts)

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER",
                f"{name}: needs the whole update of {spec.dim} coordinates.",
                "put it before stages that choose or mix coordinates.",
            )
        return space.but(
            dim=size,
            l2=inf,
            linf=inf,
            summable=False,
            unbiased=False,
            memory=space.memory or method == "power",
            moving=True,
            rank=rank,
        )

    def init(space: Space) -> Memory:
        if method == "svd":
            return Memory()
        n = rank * sum(p.n for p in parts)
        start = generator(derive(root(0), "low_rank")).standard_normal(n).astype(np.float32)
        return Memory({"start": start})

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        body, starts, at = [], [], 0
        for p in parts:
            x: Vector = payload.body[p.start : p.stop]
            if not p.m:
                body.append(x)
                continue
            matrix = x.reshape(p.m, p.n)
            if method == "svd":
                left, right = _truncated_svd(matrix, rank)
            else:
                last = memory["start"][at : at + rank * p.n].reshape(p.n, rank)
                left, right, start = _subspace_step(matrix, last)
                starts.append(start.ravel())
                at += rank * p.n
            body += [left.ravel(), right.ravel()]
        sent = np.concatenate(body)
        if not np.isfinite(sent).all():
            raise TrainingError("E-RANGE", f"{name}: a factor overflows float32.", "clip before it.")
        return payload.but(body=sent), Memory({"start": np.concatenate(starts)} if starts else {})

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        out, at = np.empty(spec.dim, np.float32), 0
        for p in parts:
            if not p.m:
                out[p.start : p.stop] = payload.body[at : at + p.stop - p.start]
                at += p.stop - p.start
                continue
            left = payload.body[at : at + rank * p.m].reshape(p.m, rank)
            at += rank * p.m
            right = payload.body[at : at + rank * p.n].reshape(p.n, rank)
            at += rank * p.n
            product = left.astype(np.float64) @ right.T.astype(np.float64)
            out[p.start : p.stop] = np.clip(product, -_MOST, _MOST).ravel()
        return payload.but(body=out)

    def says(before: Space, after: Space) -> str:
        start = "; the device remembers the start of the next step" if method == "power" else ""
        return f"sends matrices as factors of rank {rank}, {percent(before, after)} of the numbers{start}"

    return Stage(name, infer, encode, decode, says, init)
