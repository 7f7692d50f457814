"""The parts of a pipeline ``Stage* Merge Post*``. Each is a frozen value that holds a few functions.

    pipe = pipeline(Space(1000, Quorum(1, 10)), [clip(1.0), quantize(4)], plain_sum())     # core.pipeline
    payload, memory = pipe.encode(update, head, count, memory, turn)                       # stage by stage, on a device

``infer`` computes what a part makes of the ``Space`` (or ``Total``) before it, without data. ``core.pipeline`` folds
the parts by it, refuses what does not compose, and runs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.keys import Key, Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import Hiding, Space, Total
from edgewise.core.vector import Vector

Read = Callable[[int, int], Vector]  # coordinates start to stop of a vector that need not be there as a whole
Head = Mapping[str, float]  # scalars beside the body, by name
Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [g, m] -> [m]: one mean for several


def _stateless(_: Space) -> Memory:
    return Memory()


def _same(space: Space) -> Space:
    return space


def keeps(before: Space, after: Space) -> str:
    """How many of the coordinates are left, for ``Stage.says``: ``"keeps 5 % of the coordinates"``."""
    return f"keeps {percent(before, after)} of the coordinates"


def percent(before: Space, after: Space) -> str:
    """The length after a stage as a share of the length before it."""
    return f"{100 * after.dim / max(1, before.dim):.3g} %"


def _nothing(total: Total, size: int) -> Memory:
    return Memory()


@dataclass(frozen=True)
class Server:
    """A stage's other half: what the server keeps for it between rounds, and how a round's mean passes through it.

    Attributes:
        init: Space before the stage -> memory before the first round.
        absorb: (mean, contributions in it, memory, Space before, turn, means of the head) -> (what leaves the stage,
            float32 of the space before; new memory).
        encoded: the mean is one of encodings and ``absorb`` takes the place of ``decode``; else of what is decoded.
        mirrors: the memory keeps what was sent, so noise on it would stay and add up over the rounds.
    """

    init: Callable[[Space], Memory]
    absorb: Callable[[Vector, int, Memory, Space, Turn, Head], tuple[Vector, Memory]]
    encoded: bool
    mirrors: bool = False


@dataclass(frozen=True)
class Stage:
    """One reversible step of the update pipeline: a codec, a bound, a weight.

    Attributes:
        name: as in the recipe, with its arguments: ``"clip(1.0)"``.
        infer: Space before -> Space after. Raises CompositionError.
        encode: (payload, memory, Space before, turn) -> (payload, new memory). Runs on the device and may use
            ``turn.own``, a key that this device alone has.
        decode: (payload, Space before, turn) -> payload. Runs on the server, and inside ``feedback`` on the device. It
            may use public values only. It is linear in the encoding where the stage keeps ``summable``.
        says: (Space before, Space after) -> what the stage does to an update, in words, for ``edgewise check``, the
            report and model cards.
        init: Space before -> memory of a device before its first round.
        takes_support: ``decode`` takes a payload with a support and passes one on. Other stages are given it ``dense``.
        pointwise: ``decode`` leaves as many coordinates as it is given, and each depends on its own encoded value and
            its block's scales only. Decoding some blocks then equals taking those blocks of the decoded whole.
        pick: (read, Space before) -> int64[k], the increasing positions that ``encode`` keeps. The body is read in
            parts, float32 = read(start, stop). ``encode`` then does nothing but take them, and has no memory.
        server: the server's half, for stages that are undone once a round, on the mean.
        inner: the stages inside this one, outermost first.
        opens: Space before -> Space before the first inner stage.
    """

    name: str
    infer: Callable[[Space], Space]
    encode: Callable[[Payload, Memory, Space, Turn], tuple[Payload, Memory]]
    decode: Callable[[Payload, Space, Turn], Payload]
    says: Callable[[Space, Space], str]
    init: Callable[[Space], Memory] = _stateless
    takes_support: bool = False
    pointwise: bool = False
    pick: Callable[[Read, Space], NDArray[np.int64]] | None = None
    server: Server | None = None
    inner: tuple[Stage, ...] = ()
    opens: Callable[[Space], Space] = _same

    @property
    def kind(self) -> str:
        """The name without arguments."""
        return self.name.split("(")[0].split("[")[0]


def placed(turn: Turn, stages: Sequence[Stage], at: int) -> Turn:
    """The turn as ``stages[at]`` has it: keys of its own for a stage of a kind that stands before it too.

    A stage derives its keys by what they are for, and two of one kind are for the same: with the same keys the second
    ``random_k`` would choose among the survivors of its own choice, and no mean over supports would be right.
    The first of a kind has the turn's own keys. A chain inside a stage counts the stages before it outside.
    """
    kinds = (*turn.before, *(stage.kind for stage in stages[:at]))
    again = kinds.count(stages[at].kind)
    if not again:
        return replace(turn, before=kinds)
    private = None if turn.private is None else turn.own("again", again)
    return replace(turn, before=kinds, public=derive(turn.public, "again", again), private=private)


def fold(space: Space, stages: Sequence[Stage]) -> Space:
    """The space behind ``stages``."""
    for stage in stages:
        space = stage.infer(space)
    return space


@dataclass(frozen=True)
class Merge:
    """How contributions become one total.

    Attributes:
        blind: encodings are added and the sum is decoded once; else each contribution is decoded and then merged.
        says: total -> what the merge does, in words.
        infer: Space -> Total. Raises CompositionError.
        init: Space -> accumulator. add: (accumulator, payload, Space) -> accumulator; it may reuse the old one, and
            leaves it unchanged where it raises DecodeError. A blind merge is given the space after all stages. A
            visible one is given ``Pipeline.merged`` and payloads decoded to it, which may still have a support.
        finish: (accumulator, Space, precise) -> payload of the total. The body of a visible sum is float64 if
            ``precise``, else float32; a blind one has its residues.
        stream: (accumulator, pieces, Space) -> accumulator: ``add`` of one dense contribution that is decoded while it
            is added and never as a whole. ``pieces()`` starts the sequence of its consecutive parts, each with the
            whole head; it may raise DecodeError before any of them. Result and errors are those of ``add``.
        hides: how the contributions are hidden from servers; None where they are not.
        parts: accumulator -> [(accumulator, contributions)] of the sums that are not empty, where there are several.
            Each is finished and divided by itself.
        combine: rows float64[g, m] -> [m]: one mean of the means of several sums.
    """

    name: str
    blind: bool
    says: Callable[[Total], str]
    infer: Callable[[Space], Total]
    init: Callable[[Space], Any]
    add: Callable[[Any, Payload, Space], Any]
    finish: Callable[[Any, Space, bool], Payload]
    stream: Callable[[Any, Callable[[], Iterator[Payload]], Space], Any] | None = None
    hides: Hiding | None = None
    parts: Callable[[Any], list[tuple[Any, int]]] | None = None
    combine: Rule | None = None

    @property
    def groups(self) -> int:
        """How many sums a cohort is dealt into."""
        return 1 if self.hides is None else self.hides.groups


@dataclass(frozen=True)
class Post:
    """A step on the decoded total, in model units, before the division.

    Attributes:
        says: (Total before, Total after) -> what the post does, in words.
        infer: Total before -> Total after. Raises CompositionError.
        apply: (x, Total before, round, entropy, memory) -> (x, new memory). ``x`` is body and head, float64[d + h];
            ``entropy`` is fresh for each post and round.
        init: (Total before, d + h) -> what the post keeps on the server before the first round; empty for most.
    """

    name: str
    says: Callable[[Total, Total], str]
    infer: Callable[[Total], Total]
    apply: Callable[[NDArray[np.float64], Total, int, Key, Memory], tuple[NDArray[np.float64], Memory]]
    init: Callable[[Total, int], Memory] = _nothing


@dataclass(frozen=True)
class Aggregate:
    """What a round gives: the weighted mean update and the weighted means of the head scalars.

    Attributes:
        mean: float32[d].
        head: name -> weighted mean of that scalar over the contributions.
        n: contributions.
        weight: sum of weights (n where nothing weighs).
        beside: name -> weighted mean of what the strategy sends beside the update, float32[d] each.
    """

    mean: Vector
    head: Mapping[str, float]
    n: int
    weight: float
    beside: Mapping[str, Vector] = field(default_factory=dict)

    __repr__ = outline


@dataclass(frozen=True)
class Sum:
    """A running merge: the merge's accumulator and how many contributions it holds. Memory O(d), not O(n d)."""

    acc: Any
    n: int

    __repr__ = outline


WEIGHT = "weight"
BELOW = "below"  # of an adaptive clip: whether the update was below it, as a number around zero
