"""Chain of stages inside error feedback, folded, run and undone as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from edgewise.codecs.feedback.residual import WithResidual
from edgewise.core import require
from edgewise.core.decoding import undo
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import ServerHalf, Stage, placed


def is_rescaled_sample(before: Space, after: Space) -> bool:
    """Return True if a stage chose coordinates at random and stretched them by as much as it left out.

    The result is then right in the mean, and there is nothing to remember.
    """
    return after.gain > before.gain and after.gain * after.dim >= before.gain * before.dim * 0.999


def _unbounded(space: Space) -> Space:
    """Remove the bounds for the stages inside, because the sum of update and residual has none."""
    return space.but(l2=inf, linf=inf)


@dataclass(frozen=True)
class InnerChain:
    """Stages inside the combinator ``name``, outermost first. There is at least one."""

    name: str
    stages: tuple[Stage, ...]
    forgets: bool = False  # True if nothing is remembered after a rung that ``is_rescaled_sample``.

    def spaces(self, space: Space) -> list[Space]:
        """List the spaces before each stage, and the one after all."""
        spaces = [_unbounded(space)]
        for stage in self.stages:
            spaces.append(stage.infer(spaces[-1]))
        return spaces

    def infer(self, space: Space) -> Space:
        """Infer the space after all stages. Raises as ``feedback`` says."""
        name = self.name
        require.real(space, name)
        fix = "put the stage that chooses positions inside feedback."
        require.still(space, name, "a residual would be added at other positions", fix)
        if any(stage.server is not None for stage in self.stages):
            raise CompositionError(
                "E-ORDER", f"{name}: a stage inside has its own memory on the server.", "use it without feedback."
            )
        out = self.spaces(space)[-1]
        if out.period != space.period:
            raise CompositionError(
                "E-ORDER",
                f"{name}: the segments inside take turns, and the residual does not.",
                "put segments before it.",
            )
        # A support is chosen by size, and other projections are drawn anew. A fixed choice would never send the rest.
        if any(s.universe < space.dim and not s.moving for s in self.spaces(space)):
            raise CompositionError(
                "E-ORDER",
                f"{name}: a stage inside always leaves out the same coordinates, which would only pile up.",
                "put segments before feedback.",
            )
        if out.noise.std > space.noise.std:
            raise CompositionError(
                "E-ORDER",
                f"{name}: it would take the noise for an error of the codec, and undo it in the next round.",
                "put noise after feedback.",
            )
        if space.residual or out.residual:
            raise CompositionError("E-ORDER", f"{name}: two feedbacks would count an error twice.", "keep one.")
        stretched = [r for r in out.rungs or (out,) if r.gain > space.gain]
        if stretched and not (self.forgets and out.rungs and all(is_rescaled_sample(space, r) for r in stretched)):
            raise CompositionError(
                "E-ORDER",
                f"{name}: a stage inside stretches coordinates {out.gain / space.gain:.3g} times. The residual grows.",
                "set unbiased = false for random_k inside feedback.",
            )
        require.contracting(out, name)
        if out.head != space.head:
            raise CompositionError(
                "E-ORDER", f"{name}: a weight is no compression error.", "put weigh before feedback."
            )
        return out.but(unbiased=False, memory=True, residual=True)

    def init(self, space: Space) -> Memory:
        """Make the memories of the stages, each as the child ``stage`` i."""
        memory = Memory()
        for i, (stage, before) in enumerate(zip(self.stages, self.spaces(space), strict=False)):
            memory = memory.put("stage", i, stage.init(before))
        return memory

    def encode(
        self, payload: Payload, body: WithResidual, memory: Memory, space: Space, turn: Turn
    ) -> tuple[Payload, Payload, Memory]:
        """Encode ``body`` with the head of ``payload``.

        If the first stage can pick positions from parts, the body is never in memory as a whole.

        Returns:
            The message, its decoded form, and the memories of the stages.
        """
        spaces, after = self.spaces(space), Memory()
        pick, first = self.stages[0].pick, 0
        if pick is None:
            message = payload.but(body=body.whole())
        else:
            where = pick(body.read, spaces[0])
            message, first = payload.but(body=body.at(where), support=where), 1
        for i in range(first, len(self.stages)):
            before = memory.child("stage", i)
            message, new = self.stages[i].encode(message, before, spaces[i], placed(turn, self.stages, i))
            after = after.put("stage", i, new)
        return message, undo(self.stages, spaces, message, turn), after

    def decode(self, payload: Payload, space: Space, turn: Turn) -> Payload:
        """Undo all stages."""
        return undo(self.stages, self.spaces(space), payload, turn)

    def stage(
        self,
        infer: Callable[[Space], Space],
        encode: Callable[[Payload, Memory, Space, Turn], tuple[Payload, Memory]],
        says: Callable[[Space, Space], str],
        init: Callable[[Space], Memory],
        server: ServerHalf | None = None,
    ) -> Stage:
        """Make the combinator a stage."""
        local = all(stage.pointwise for stage in self.stages)
        return Stage(
            self.name, infer, encode, self.decode, says, init, takes_support=True, pointwise=local, server=server,
            inner=self.stages, opens=_unbounded,
        )  # fmt: skip
