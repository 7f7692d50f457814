"""Error feedback: the part that the compressor left out this round is added before it compresses the next update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from edgewise.codecs.feedback import residual as residuals
from edgewise.codecs.feedback.ef21 import ef21
from edgewise.codecs.feedback.inner import InnerChain, is_rescaled_sample
from edgewise.core.errors import RecipeError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector


@part
def feedback(
    inner: Sequence[Stage],
    decay: Annotated[float, Gt(0), Le(1), Doc("factor on the memory per absent round (ef14)")] = 1.0,
    forget_after: Annotated[
        int | None,
        Ge(1),
        Doc("absent rounds after which the memory is dropped (ef14; default 10)"),
    ] = None,
    residual: Annotated[
        Literal["bfloat16", "int8", "float32"] | None,
        Doc("type in which the memory is stored (ef14: default bfloat16; the others: float32)"),
    ] = None,
    form: Annotated[
        Literal["ef14", "ef21", "ef21_sgdm"],
        Doc("residual on the device, or mirrors on device and server, without or with momentum"),
    ] = "ef14",
    eta: Annotated[float | None, Gt(0), Le(1), Doc("momentum of ef21_sgdm (default 0.1)")] = None,
) -> Stage:
    """Remember the part that the stages after this one leave out, and add it next time. Error feedback has three forms.

    ``"ef14"``: ``a = x + f e``, send ``m = inner(a)``, keep ``e' = a - decode(m)``. f = ``decay ** absent``, where
    absent counts the rounds since the device last took part. From ``forget_after`` absent rounds on the residual is
    dropped (f = 0), because it is too stale to help. If positions take turns (``Space.period`` p > 1), only the rounds
    that visit them count: absent = (round - last) / p - 1. With decay 1 and no absence the decoded messages telescope:
    sum of decode(m) = sum of x - e, as exactly as e is stored. e' = 0 after a rung of a ``ladder`` that is a rescaled
    random sample of a (``codecs.feedback.inner.is_rescaled_sample``).

    ``"ef21"``, ``"ef21_sgdm"``: see ``ef21``. Device and server keep mirrors instead of an error.

    Algebra: the compressed vector has no bound, so the inner stages see l2 = linf = inf. Put a clip *inside* if a bound
    is needed. The part that it cuts is sent next round. Biased in one round. Memory. Otherwise as ``inner``.
    ``segments`` belongs before it: coordinates that never travel would only pile up in the residual.
    Memory (ef14): ``residual`` of ``dim`` coordinates, in the units at this point of the pipeline: bfloat16 as uint16,
    int8 with ``residual_scale`` float32 per 256, or float32. ``last`` int64[1], -1 = never. The child ``stage`` i of
    inner stage i. The residual is personal data, and stays on the device.
    Cost: if the first stage inside picks positions (``top_k``), no second float32 copy of the update is made.
    Args:
        inner: the stages whose error is fed back, outermost first.
        residual: storage type. "ef21" and "ef21_sgdm" allow "float32" only.
    Raises:
        RecipeError: E-VALUE. E-COMBO for a setting that the form cannot have.
        CompositionError: E-ORDER for a weigh or feedback inside, for positions before it that change every round, or
            for positions that take turns inside. E-NOT-REAL. E-COMBO if ef21 does not know the population, or if a
            quantizer inside does not contract. All errors of ``inner``.
        TrainingError: E-RANGE on float32 overflow.
    Source: Seide et al. 2014. Karimireddy et al. 2019, arXiv:1901.09847, algorithm 2 ("EF14").
    """
    stages = tuple(inner)
    label = "feedback" if form == "ef14" else f"feedback[{form}]"
    nest = InnerChain(f"{label}({', '.join(s.name for s in stages)})", stages, forgets=form == "ef14")
    name = nest.name
    if eta is not None and form != "ef21_sgdm":
        what = f"feedback: eta is the momentum of ef21_sgdm, and the form is {form}."
        raise RecipeError("E-COMBO", what, "remove eta.")
    if not stages:
        what = "feedback: it has no stages inside."
        raise RecipeError("E-VALUE", what, "name the stages whose error it feeds back.")
    if form != "ef14":
        if residual in ("bfloat16", "int8") or decay < 1.0 or forget_after is not None:
            raise RecipeError(
                "E-COMBO",
                f"feedback: {form} keeps mirrors on device and server that must stay equal, so they are never rounded, "
                "decayed or forgotten.",
                'remove residual, decay and forget_after, or use form = "ef14".',
            )
        return ef21(nest, None if form == "ef21" else 0.1 if eta is None else eta)
    kind, limit = residual or "bfloat16", 10 if forget_after is None else forget_after

    def init(space: Space) -> Memory:
        return nest.init(space).plus({**residuals.zero_residual(kind, space.dim), "last": np.full(1, -1, np.int64)})

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        absent = max(0, (turn.round - int(memory["last"][0])) // space.period - 1)
        a = residuals.WithResidual(name, payload.body, memory, np.float32(decay**absent if absent < limit else 0.0))
        message, sent, after = nest.encode(payload, a, memory, space, turn)

        def remainder(start: int, stop: int) -> Vector:
            part = a.read(start, stop)
            if sent.support is None:
                part -= sent.body[start:stop]
                return part
            low, high = np.searchsorted(sent.support, (start, stop))
            part[sent.support[low:high] - start] -= sent.body[low:high]
            return part

        if message.rung is not None and is_rescaled_sample(space, nest.spaces(space)[-1].rungs[message.rung]):
            stored = residuals.zero_residual(kind, space.dim)
        else:
            stored = residuals.store_residual(kind, space.dim, remainder, turn.own("residual", turn.round))
        return message, after.plus({**stored, "last": np.full(1, turn.round, np.int64)})

    def says(before: Space, after: Space) -> str:
        stretched = " (but not after a rescaled random choice)" if after.rungs else ""
        return f"remembers on the device the part that the stages inside leave out{stretched}, and adds it next time"

    return nest.stage(infer=nest.infer, encode=encode, says=says, init=init)
