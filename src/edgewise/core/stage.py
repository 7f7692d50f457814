"""The typed pipeline ``Stage* Merge Post*`` and the fold that type-checks it before any data exists.

A stage is four functions in a frozen value; so are merges and posts. ``pipeline`` carries a ``Space`` through every
``infer``; what does not compose raises ``CompositionError`` with the reason and the fix. There is one merge slot, so
"secure sum *and* Krum" cannot be written. A blind merge adds encodings and decodes the sum once; a visible merge
decodes each contribution, then merges; for a summable chain the two agree (a law test).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError, DecodeError, TrainingError
from edgewise.core.keys import Key, Turn, derive
from edgewise.core.space import Space, Total
from edgewise.core.vector import Array, Vector

Memory = Mapping[str, Array]  # what a device keeps between rounds for its codec; empty for most stages


@dataclass(frozen=True, slots=True)
class Payload:
    """One contribution between two stages.

    Attributes:
        body: float32[m] (REAL), int32[m] (INTEGER) or uint64[m] (RING).
        head: float64[h], exact scalars in the order of ``Space.head``; only ``weigh`` touches them.
        support: int64[m], strictly increasing positions of the body; None where positions are public or all.
        scales: float32[ceil(m / block)], bfloat16 values; None where the grid is public.
        count: amount of data behind the contribution; input of ``weigh``, never sent.
    """

    body: NDArray[Any]
    head: NDArray[np.float64]
    support: NDArray[np.int64] | None = None
    scales: NDArray[np.float32] | None = None
    count: float = field(default=1.0, repr=False)

    def but(self, **changes: object) -> Payload:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _stateless(_: Space) -> Memory:
    return {}


@dataclass(frozen=True)
class Stage:
    """One reversible step on the way of an update.

    Attributes:
        name: as in the recipe, with its arguments, for traces: ``"clip(1.0)"``.
        infer: the algebra: Space before -> Space after; raises CompositionError.
        encode: (payload, memory, space before, turn) -> (payload, new memory). On the device; may use turn.private.
        decode: (payload, space before, turn) -> payload. On the server (and inside ``feedback``); public values only.
        init: Space before -> memory of a device that has never taken part.
    """

    name: str
    infer: Callable[[Space], Space]
    encode: Callable[[Payload, Memory, Space, Turn], tuple[Payload, Memory]]
    decode: Callable[[Payload, Space, Turn], Payload]
    init: Callable[[Space], Memory] = _stateless


@dataclass(frozen=True)
class Merge:
    """How contributions become one total.

    ``init(space) -> acc``, ``add(acc, payload, space) -> acc`` (may reuse acc), ``finish(acc, space) -> payload``.
    A blind merge is given encodings and the space after all stages; a visible one decoded payloads and the space
    before all stages.
    """

    name: str
    blind: bool
    infer: Callable[[Space], Total]
    init: Callable[[Space], Any]
    add: Callable[[Any, Payload, Space], Any]
    finish: Callable[[Any, Space], Payload]


@dataclass(frozen=True)
class Post:
    """A step on the decoded total, in model units, before the division: ``apply(x, total, entropy) -> x``.

    ``x`` is body and head in one vector, float32[d + h]; ``entropy`` is fresh for each post.
    """

    name: str
    infer: Callable[[Total], Total]
    apply: Callable[[Vector, Total, Key], Vector]


@dataclass(frozen=True)
class Aggregate:
    """What a round gives: the weighted mean update and the weighted means of the head scalars.

    Attributes:
        mean: float32[d].
        head: name -> weighted mean of that scalar over the contributions.
        n: contributions.
        weight: sum of weights (n where nothing weighs).
    """

    mean: Vector
    head: Mapping[str, float]
    n: int
    weight: float


@dataclass(frozen=True)
class Sum:
    """A running merge: the merge's accumulator and how many contributions it holds. Memory O(d), not O(n d)."""

    acc: Any
    n: int


WEIGHT = "weight"
HEAD = ("loss_first", "loss_last")  # metrics that may travel with an update: mean train loss, nats per token
HEAD_BOUND = 20.0  # every head value is cut to [0, this] on the device, so that one device cannot move the mean freely


@dataclass(frozen=True)
class Pipeline:
    """A type-checked chain; build with ``pipeline``. ``spaces[i]`` is before stage i, ``spaces[-1]`` after all."""

    stages: tuple[Stage, ...]
    merge: Merge
    posts: tuple[Post, ...]
    spaces: tuple[Space, ...]
    totals: tuple[Total, ...]

    @property
    def encoded(self) -> Space:
        """The space of what travels."""
        return self.spaces[-1]

    @property
    def total(self) -> Total:
        """What is known of the total after all posts."""
        return self.totals[-1]

    def init(self) -> Memory:
        """The codec memory of a device that has never taken part."""
        memory: dict[str, Array] = {}
        for i, (stage, space) in enumerate(zip(self.stages, self.spaces, strict=False)):
            memory.update({f"{i}.{k}": v for k, v in stage.init(space).items()})
        return memory

    def encode(
        self, x: Vector, head: Mapping[str, float], count: float, memory: Memory, turn: Turn
    ) -> tuple[Payload, Memory]:
        """Device side: a raw update becomes what travels.

        Args:
            x: float32[d]. count: amount of data (tokens, examples).
            head: the metrics named by the start space; cut to [0, HEAD_BOUND].
        Raises:
            TrainingError(E-NAN): x or a head value is not finite.
        """
        start = self.spaces[0]
        if x.shape != (start.dim,):
            raise ValueError(f"update has shape {x.shape}, pipeline starts at ({start.dim},)")
        values = np.array([head[name] for name in start.head], np.float64)
        if not (np.isfinite(x).all() and np.isfinite(values).all()):
            raise TrainingError("E-NAN", "the update holds NaN or infinity.", "lower training.lr or set clip_grad.")
        payload, after = Payload(x, np.clip(values, 0.0, HEAD_BOUND), count=count), dict[str, Array]()
        for i, (stage, space) in enumerate(zip(self.stages, self.spaces, strict=False)):
            mine = {k.removeprefix(f"{i}."): v for k, v in memory.items() if k.startswith(f"{i}.")}
            payload, new = stage.encode(payload, mine, space, turn)
            after.update({f"{i}.{k}": v for k, v in new.items()})
        return payload, after

    def decode(self, payload: Payload, turn: Turn) -> Payload:
        """Server side: undo the stages in reverse order; the body is float32[d] again."""
        for stage, space in zip(reversed(self.stages), reversed(self.spaces[:-1]), strict=True):
            payload = stage.decode(payload, space, turn)
        return payload

    def start_sum(self) -> Sum:
        """An empty total."""
        return Sum(self.merge.init(self.encoded if self.merge.blind else self.spaces[0]), 0)

    def add(self, total: Sum, payload: Payload, turn: Turn) -> Sum:
        """Fold one encoded contribution into the total (the old total must not be used again).

        A visible merge sees each contribution, so it enforces what the plan claims of it, honest device or not.

        Raises:
            DecodeError: E-RANGE above the plan's norm bounds or with head values that no honest device sends;
                whatever the merge refuses. The total is unchanged then.
        """
        space = self.encoded if self.merge.blind else self.spaces[0]
        item = payload if self.merge.blind else self.decode(payload, turn)
        if not self.merge.blind:
            self._enforce(item)
        return Sum(self.merge.add(total.acc, item, space), total.n + 1)

    def _enforce(self, item: Payload) -> None:
        bounds, slack = self.encoded, 1.0 + 1e-5  # float32 rounding of an honest encoder
        if isfinite(bounds.l2) and float(np.linalg.norm(item.body)) > bounds.l2 * slack:
            raise DecodeError("E-RANGE", f"an update is longer than its bound of {bounds.l2:g}.")
        if isfinite(bounds.linf) and item.body.size and float(np.abs(item.body).max()) > bounds.linf * slack:
            raise DecodeError("E-RANGE", f"a coordinate is above its bound of {bounds.linf:g}.")
        head = dict(zip(bounds.head, item.head.tolist(), strict=True))
        weight = head.pop(WEIGHT, 1.0)
        if not (0.0 <= weight <= 1.0 and all(0.0 <= v <= HEAD_BOUND * weight * slack for v in head.values())):
            raise DecodeError("E-RANGE", "a weight or a metric is outside its bounds.")

    def release(self, total: Sum, turn: Turn, entropy: Key) -> Aggregate:
        """Decode (blind merges), apply the posts in model units, divide by the summed weight as the very last step.

        Raises ValueError on an empty total. A summed weight of zero gives a zero mean (nobody had anything to say).
        """
        if total.n == 0:
            raise ValueError("nothing to release: no contribution was added")
        payload = self.merge.finish(total.acc, self.encoded if self.merge.blind else self.spaces[0])
        if self.merge.blind:
            payload = self.decode(payload, turn)
        x: Vector = payload.body
        head = payload.head
        if self.posts:  # body and head leave together, so posts (noise above all) see them as one vector
            joint: Vector = np.concatenate([x, head.astype(np.float32)])
            for i, post in enumerate(self.posts):
                joint = post.apply(joint, self.totals[i], derive(entropy, "post", i))
            x, head = joint[: x.size], joint[x.size :].astype(np.float64)
        names = self.encoded.head
        sums = dict(zip(names, head.tolist(), strict=True))
        weight = sums.pop(WEIGHT, float(total.n))
        if weight <= 0.0:
            return Aggregate(np.zeros_like(x), dict.fromkeys(sums, 0.0), total.n, 0.0)
        return Aggregate(
            (x / np.float32(weight)).astype(np.float32), {k: v / weight for k, v in sums.items()}, total.n, weight
        )


def pipeline(start: Space, stages: Sequence[Stage], merge: Merge, posts: Sequence[Post] = ()) -> Pipeline:
    """Type-check ``stages``, ``merge`` and ``posts`` by folding the start space through them.

    Raises:
        CompositionError: some part cannot stand where it stands; the message names the part, what it needs, what it
            got, and the fix.
    """
    spaces = [start]
    for stage in stages:
        spaces.append(stage.infer(spaces[-1]))
    totals = [merge.infer(spaces[-1])]  # first, because the merge knows the better reason
    if merge.blind and not spaces[-1].summable:
        raise CompositionError("E-NOT-SUMMABLE", f"{merge.name}: needs a summable encoding.", "use random_k.")
    for post in posts:
        totals.append(post.infer(totals[-1]))
    return Pipeline(tuple(stages), merge, tuple(posts), tuple(spaces), tuple(totals))
