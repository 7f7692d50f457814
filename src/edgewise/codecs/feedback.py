"""What the compressor left out this round is added before it compresses the next one."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from edgewise.core import demand
from edgewise.core.errors import CompositionError, RecipeError, TrainingError
from edgewise.core.keys import Turn
from edgewise.core.space import Space
from edgewise.core.stage import Memory, Payload, Stage, undo
from edgewise.core.vector import Array


def feedback(inner: Sequence[Stage], decay: float = 1.0, forget_after: int = 10) -> Stage:
    """Error feedback over ``inner``: ``a = x + f e``, send ``m = inner(a)``, keep ``e' = a - decode(m)``.

    ``f = decay ** absent``, where absent counts the rounds since the device last took part; from ``forget_after``
    absent rounds on f = 0: the residual is too stale to help. With decay 1 and no absence the decoded messages
    telescope: sum of decode(m) = sum of x - e.
    Algebra: the residual has no bound, so the inner stages see l2 = linf = inf (put a clip *inside* where a bound is
    needed; what it cuts comes back next round); biased in one round; memory. Otherwise as ``inner``.
    ``segments`` belongs before it: what never travels would only pile up in the residual.
    Memory: ``residual`` float32[dim], in the units at this point of the pipeline; ``last`` int64[1], -1 = never;
    ``<i>.<key>`` of inner stage i. The residual is personal data: it stays on the device.
    Args:
        inner: the stages whose error is fed back, outermost first. decay: 0 (exclusive) to 1. forget_after: >= 1.
    Raises:
        RecipeError(E-VALUE); CompositionError: E-ORDER for a weigh or feedback inside, or when positions before it are
            not the same every round; E-NOT-REAL; whatever ``inner`` raises; TrainingError(E-RANGE) on float32 overflow.
    Source: Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847, algorithm 2 ("EF14").
    """
    stages = tuple(inner)
    name = f"feedback({', '.join(s.name for s in stages)})"
    demand.positive("feedback: decay", decay, 1.0)
    demand.between("feedback: forget_after", forget_after, 1, inf)
    if not stages:
        raise RecipeError("E-VALUE", "feedback: there is nothing inside.", "name the stages whose error it feeds back.")

    def fold(space: Space) -> list[Space]:
        spaces = [space.but(l2=inf, linf=inf)]
        for stage in stages:
            spaces.append(stage.infer(spaces[-1]))
        return spaces

    def infer(space: Space) -> Space:
        demand.real(space, name)
        if space.sparse or space.moving:
            raise CompositionError(
                "E-ORDER",
                f"{name}: the positions before it change every round, so a residual would come back elsewhere.",
                "put the stage that chooses positions inside feedback.",
            )
        if any(stage.server is not None for stage in stages):
            raise CompositionError(
                "E-ORDER", f"{name}: a stage inside has its own memory on the server.", "use it without feedback."
            )
        out = fold(space)[-1]
        if space.residual or out.residual:
            raise CompositionError("E-ORDER", f"{name}: two feedbacks would count an error twice.", "keep one.")
        if out.gain > space.gain:
            raise CompositionError(
                "E-ORDER",
                f"{name}: a stage inside stretches what it keeps {out.gain / space.gain:.3g} times: the residual grows",
                "set unbiased = false for random_k inside feedback.",
            )
        if out.head != space.head:
            raise CompositionError(
                "E-ORDER", f"{name}: a weight is no compression error.", "put weigh before feedback."
            )
        return out.but(unbiased=False, memory=True, residual=True)

    def init(space: Space) -> Memory:
        memory: dict[str, Array] = {"residual": np.zeros(space.dim, np.float32), "last": np.full(1, -1, np.int64)}
        for i, (stage, before) in enumerate(zip(stages, fold(space), strict=False)):
            memory.update({f"{i}.{k}": v for k, v in stage.init(before).items()})
        return memory

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        absent = max(0, turn.round - int(memory["last"][0]) - 1)
        factor = np.float32(decay**absent if absent < forget_after else 0.0)
        with np.errstate(over="ignore"):
            a = payload.body + factor * memory["residual"]
        if not np.isfinite(a).all():
            raise TrainingError("E-RANGE", f"{name}: update and residual overflow float32.", "lower training.lr.")
        spaces = fold(space)
        after: dict[str, Array] = {}
        message = payload.but(body=a)
        for i, (stage, before) in enumerate(zip(stages, spaces, strict=False)):
            mine = {k.removeprefix(f"{i}."): v for k, v in memory.items() if k.startswith(f"{i}.")}
            message, new = stage.encode(message, mine, before, turn)
            after.update({f"{i}.{k}": v for k, v in new.items()})
        sent = undo(stages, spaces, message, turn)
        if sent.support is None:
            after["residual"] = a - sent.body
        else:
            after["residual"] = a
            a[sent.support] -= sent.body
        after["last"] = np.full(1, turn.round, np.int64)
        return message, after

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return undo(stages, fold(space), payload, turn)

    return Stage(name, infer, encode, decode, init, sparse=True)
