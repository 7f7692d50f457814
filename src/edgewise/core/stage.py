"""Parts of an update pipeline ``Stage* Merge Post*``, as frozen values that hold a few functions.

    pipe = pipeline(Space(1000, Quorum(1, 10)), [clip(1.0), quantize(4)], plain_sum())     # core.pipeline
    payload, memory = pipe.encode(update, head, count, memory, turn)                       # stage by stage, on a device

``infer`` maps the ``Space`` (or ``Total``) before a part to the one after it, without data. ``core.pipeline`` folds the
parts by ``infer``, refuses chains that do not compose, and runs the others.
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

Read = Callable[[int, int], Vector]  # (start, stop) -> those coordinates of a vector that need not be in memory whole
Head = Mapping[str, float]  # scalars beside the body, by name
Rows = NDArray[np.float64]
Rule = Callable[[Rows], Rows]  # [g, m] -> [m]: makes one vector of several
Combine = Callable[[Rows, Rows, Memory, Key], tuple[Rows, Rows, Memory]]  # makes one mean of several (``Merge``)


def _no_stage_memory(_: Space) -> Memory:
    """Start the memory of a stage that keeps none."""
    return Memory()


def _same_space(space: Space) -> Space:
    """Leave the space as it is."""
    return space


def keeps(before: Space, after: Space) -> str:
    """Say which share of the coordinates a stage keeps, for ``Stage.says``: ``"keeps 5 % of the coordinates"``."""
    return f"keeps {percent(before, after)} of the coordinates"


def percent(before: Space, after: Space) -> str:
    """Length after a stage as a percentage of the length before it."""
    return f"{100 * after.dim / max(1, before.dim):.3g} %"


def _no_post_memory(total: Total, size: int) -> Memory:
    """Start the memory of a post that keeps none."""
    return Memory()


@dataclass(frozen=True)
class ServerHalf:
    """The server half of a stage: its memory between rounds, and its effect on the mean of a round.

    Attributes:
        init: Space before the stage -> memory before the first round.
        absorb: (mean, contributions in it, memory, Space before, turn, means of the head) -> (output of the stage,
            float32 of the space before; new memory).
        encoded: True if the mean is a mean of encodings and ``absorb`` replaces ``decode``. False if it is a mean of
            decoded contributions.
        mirrors: True if the memory repeats the vectors that were sent. Noise on them would stay in it and add up over
            the rounds.
    """

    init: Callable[[Space], Memory]
    absorb: Callable[[Vector, int, Memory, Space, Turn, Head], tuple[Vector, Memory]]
    encoded: bool
    mirrors: bool = False


@dataclass(frozen=True)
class Stage:
    """One reversible step of the update pipeline: a codec, a bound, a weight.

    Attributes:
        name: the name in the recipe, with its arguments: ``"clip(1.0)"``.
        infer: Space before -> Space after. Raises CompositionError.
        encode: (payload, memory, Space before, turn) -> (payload, new memory). Runs on the device. It may use
            ``turn.own``, a key that this device alone has.
        decode: (payload, Space before, turn) -> payload. Runs on the server, and inside ``feedback`` on the device. It
            may use public values only. It is linear in the encoding if the stage keeps ``summable``.
        says: (Space before, Space after) -> a sentence on what the stage does to an update, for ``edgewise check``, the
            report and model cards.
        init: Space before -> memory of a device before its first round.
        takes_support: True if ``decode`` takes a payload with a support and returns one. Other stages get a ``dense``
            payload.
        pointwise: True if ``decode`` returns as many coordinates as it gets, and each depends only on its own encoded
            value and on the scales of its block. Decoding some blocks then equals taking those blocks of the decoded
            whole.
        pick: (read, Space before) -> int64[k], the increasing positions that ``encode`` keeps. The body is read in
            parts, float32 = read(start, stop). ``encode`` then only takes those positions, and has no memory.
        server: the server half, for stages that are undone once a round, on the mean.
        inner: the stages inside this one, outermost first.
        opens: Space before -> Space before the first inner stage.
    """

    name: str
    infer: Callable[[Space], Space]
    encode: Callable[[Payload, Memory, Space, Turn], tuple[Payload, Memory]]
    decode: Callable[[Payload, Space, Turn], Payload]
    says: Callable[[Space, Space], str]
    init: Callable[[Space], Memory] = _no_stage_memory
    takes_support: bool = False
    pointwise: bool = False
    pick: Callable[[Read, Space], NDArray[np.int64]] | None = None
    server: ServerHalf | None = None
    inner: tuple[Stage, ...] = ()
    opens: Callable[[Space], Space] = _same_space

    @property
    def kind(self) -> str:
        """The name without arguments."""
        return self.name.split("(")[0].split("[")[0]


def placed(turn: Turn, stages: Sequence[Stage], at: int) -> Turn:
    """Give ``stages[at]`` its own view of the turn, with keys of its own if its kind occurs before it.

    A stage derives its keys from their purpose, and two stages of one kind have the same purpose. With the same keys, a
    second ``random_k`` would choose among the survivors of the first by the same draw, and the mean over supports would
    be biased.

    The first stage of a kind has the turn's own keys. A chain inside a stage also counts the stages before it outside.

    Args:
        turn: the turn as the whole chain has it.
        stages: the chain. at: number of the stage in it.
    """
    kinds = (*turn.before, *(stage.kind for stage in stages[:at]))
    again = kinds.count(stages[at].kind)
    if not again:
        return replace(turn, before=kinds)
    private = None if turn.private is None else turn.own("again", again)
    return replace(turn, before=kinds, public=derive(turn.public, "again", again), private=private)


def fold(space: Space, stages: Sequence[Stage]) -> Space:
    """Infer the space behind ``stages``."""
    for stage in stages:
        space = stage.infer(space)
    return space


@dataclass(frozen=True)
class Merge:
    """A rule that makes one total of all contributions.

    Attributes:
        blind: True if encodings are added and the sum is decoded once. False if each contribution is decoded before it
            is merged.
        says: total -> a sentence on what the merge does.
        infer: Space -> Total. Raises CompositionError.
        init: Space -> accumulator.
        add: (accumulator, payload, Space) -> accumulator. It may reuse the old accumulator, and leaves it unchanged if
            it raises DecodeError. A blind merge gets the space after all stages. A visible one gets ``Pipeline.merged``
            and payloads decoded to it, which may still have a support.
        finish: (accumulator, Space, precise) -> payload of the total. The body of a visible sum is float64 if
            ``precise``, else float32. The body of a blind sum is its residues.
        stream: (accumulator, pieces, Space) -> accumulator. The same as ``add`` of one dense contribution, which is
            decoded piece by piece while it is added. ``pieces()`` starts the sequence of consecutive parts, each with
            the whole head. It may raise DecodeError before any of them. Result and errors are those of ``add``.
        hides: how contributions are hidden from servers. None if they are not.
        parts: accumulator -> [(accumulator, contributions)] of the non-empty sums, for merges with several. Each is
            finished and divided by itself.
        combine: (means float64[g, d], means of the heads [g, h], memory, entropy) -> (mean [d], head [h], new memory).
            Combines the means of several sums into one. The memory is the server's, empty before the first round. The
            entropy is fresh for each round, and no device knows it.
        kept: number of vectors, float32 of the body's length, that ``combine`` keeps in the server's memory.
        signed: (accumulator, device) -> accumulator. Notes whose contribution was added last, for merges that tell
            devices apart.
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
    combine: Combine | None = None
    kept: int = 0
    signed: Callable[[Any, str], Any] | None = None

    @property
    def groups(self) -> int:
        """Number of groups that a cohort is divided into. Each has a sum of its own."""
        return 1 if self.hides is None else self.hides.groups


@dataclass(frozen=True)
class Post:
    """A step on the decoded total, in model units, before the division.

    Attributes:
        says: (Total before, Total after) -> a sentence on what the post does.
        infer: Total before -> Total after. Raises CompositionError.
        apply: (x, Total before, round, entropy, memory) -> (x, new memory). ``x`` is body and head, float64[d + h].
            ``entropy`` is fresh for each post and round.
        init: (Total before, d + h) -> memory of the post on the server before the first round. Empty for most.
    """

    name: str
    says: Callable[[Total, Total], str]
    infer: Callable[[Total], Total]
    apply: Callable[[NDArray[np.float64], Total, int, Key, Memory], tuple[NDArray[np.float64], Memory]]
    init: Callable[[Total, int], Memory] = _no_post_memory


@dataclass(frozen=True)
class Aggregate:
    """The result of a round: the weighted mean update, and the weighted means of the head scalars.

    Attributes:
        mean: float32[d].
        head: name -> weighted mean of that scalar over the contributions.
        n: number of contributions.
        weight: sum of the weights. Equals n if no stage weighs.
        beside: name -> weighted mean of a vector that the strategy sends beside the update, float32[d] each.
    """

    mean: Vector
    head: Mapping[str, float]
    n: int
    weight: float
    beside: Mapping[str, Vector] = field(default_factory=dict)

    __repr__ = outline


@dataclass(frozen=True)
class Sum:
    """A running merge: the accumulator, and the number of contributions in it. Memory is O(d), not O(n d)."""

    acc: Any
    n: int

    __repr__ = outline


def together(parts: Sequence[Aggregate]) -> Aggregate:
    """Compute the mean of all contributions from the means of several sums. Each counts by its weight.

    n and weights add up. A single part is returned unchanged.

    Raises:
        ValueError: there are no parts (own misuse).
    """
    if not parts:
        raise ValueError("there is no part")
    if len(parts) == 1:
        return parts[0]
    weight = sum(part.weight for part in parts)
    shares = [part.weight / weight if weight > 0.0 else 0.0 for part in parts]
    mean = sum(share * part.mean.astype(np.float64) for share, part in zip(shares, parts, strict=True))
    head = {k: sum(s * part.head[k] for s, part in zip(shares, parts, strict=True)) for k in parts[0].head}
    return Aggregate(np.asarray(mean).astype(np.float32), head, sum(part.n for part in parts), weight)


WEIGHT = "weight"
BELOW = "below"  # Head scalar of an adaptive clip. It says, around zero, if the update was below the clip.
