"""Error feedback by mirrors: the device compresses the change since its last message to the server."""

from __future__ import annotations

import numpy as np

from edgewise.codecs.feedback.inner import InnerChain
from edgewise.codecs.feedback.residual import WithResidual
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import WEIGHT, Head, ServerHalf, Stage
from edgewise.core.vector import Vector


def ef21(inner: InnerChain, eta: float | None) -> Stage:
    """Send ``c = inner(v - g_i)`` and keep ``g_i += decode(c)`` on device i. The server releases ``g``.

    ``v = x`` (eta None: EF21), or ``v = (1 - eta) v + eta x``, with ``v = x`` at the device's first time (EF21-SGDM).
    Server: ``g += (n / N) mean_c``, with n contributions in the round and N = ``Space.population``. An absent device
    keeps g_i, and so does its share of g (EF21-PP).

    Guarantees: without weights g is the mean of all g_i, those of devices that never took part being 0. A contribution
    that the server did not use changes neither side. A device that loses its memory leaves its old g_i in g for good.
    Algebra: as the inner stages. The bounds are those of one message, not of g. Biased. Memory on both sides.
    Memory: device ``residual`` = g_i float32[dim]. EF21-SGDM also ``v`` float32[dim] and ``begun`` int64[1]. Server
    ``g`` float32[dim]. Mirrors are exact, so they are never rounded to fewer bits, decayed or forgotten.
    Args:
        inner: the compressor.
        eta: above 0, at most 1 (``feedback`` checks it).
    Raises:
        CompositionError: E-COMBO without a population or after weigh, and as ``InnerChain.infer``.
        TrainingError: E-RANGE on float32 overflow.
    Source: Richtárik et al. 2021, arXiv:2106.05203, algorithm 2. Fatkhullin et al. 2021, arXiv:2110.03294, algorithm 2
    (partial participation). Fatkhullin et al. 2023, arXiv:2305.15155, algorithm 1.
    """

    def infer(space: Space) -> Space:
        if space.population is None:
            raise CompositionError(
                "E-COMBO",
                f"{inner.name}: the server's mirror is a mean over all devices, and their number is unknown.",
                "give the start space its population.",
            )
        if WEIGHT in space.head:
            raise CompositionError(
                "E-COMBO",
                f"{inner.name}: the mirrors are averaged over all devices, whatever their weights in a round, so "
                "weights would apply to the wrong mean.",
                "leave out weigh. All devices then count the same.",
            )
        return inner.infer(space)

    def init(space: Space) -> Memory:
        memory = inner.init(space).plus({"residual": np.zeros(space.dim, np.float32)})
        if eta is not None:
            memory = memory.plus({"v": np.zeros(space.dim, np.float32), "begun": np.zeros(1, np.int64)})
        return memory

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        v: Vector = payload.body
        if eta is not None and memory["begun"][0]:
            v = np.float32(1.0 - eta) * memory["v"] + np.float32(eta) * v
        change = WithResidual(inner.name, v, Memory({"residual": memory["residual"]}), np.float32(-1.0))
        message, sent, after = inner.encode(payload, change, memory, space, turn)
        mirror: Vector = memory["residual"].copy()
        if sent.support is None:
            mirror += sent.body
        else:
            mirror[sent.support] += sent.body
        after = after.plus({"residual": mirror})
        if eta is not None:
            after = after.plus({"v": np.array(v), "begun": np.ones(1, np.int64)})
        return message, after

    def start(space: Space) -> Memory:
        return Memory({"g": np.zeros(space.dim, np.float32)})

    def absorb(mean: Vector, n: int, memory: Memory, space: Space, turn: Turn, head: Head) -> tuple[Vector, Memory]:
        assert space.population is not None  # ``infer`` refuses it.
        g: Vector = memory["g"] + np.float32(n / space.population) * mean
        return g, Memory({"g": g})

    def says(before: Space, after: Space) -> str:
        return "the stages inside send what changed; device and server keep mirrors, and the server's is released"

    server = ServerHalf(start, absorb, encoded=False, mirrors=True)
    return inner.stage(infer=infer, encode=encode, says=says, init=init, server=server)
