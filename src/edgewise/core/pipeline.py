"""Type check of a chain of parts before any data exists, and its execution: encode, add, release.

``pipeline`` carries a ``Space`` through every ``infer``. A chain that does not compose raises ``CompositionError`` with
the reason and the fix. There is one merge slot, so "secure sum *and* Krum" cannot be written. A blind merge adds
encodings and decodes the sum once. A visible merge decodes each contribution, then merges. For a summable chain the two
agree (a law test).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.decoding import of_kind, undo
from edgewise.core.enforced_bounds import enforce_bounds
from edgewise.core.errors import CompositionError, TrainingError
from edgewise.core.keys import Key, Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space, Total
from edgewise.core.stage import WEIGHT, Aggregate, Combine, Head, Merge, Post, Stage, Sum, placed
from edgewise.core.vector import Vector, finite

PIECE = 1 << 16  # Coordinates decoded at a time while they are added: 256 KiB of float32 fit a second-level cache.


@dataclass(frozen=True)
class Pipeline:
    """A type-checked chain. Build it with ``pipeline``.

    Attributes:
        spaces: ``spaces[i]`` is before stage i, ``spaces[-1]`` after all stages.
        divisor: a fixed divisor of the sum, if the number of contributions is private. None: divide by their number or
            weight.
    """

    stages: tuple[Stage, ...]
    merge: Merge
    posts: tuple[Post, ...]
    spaces: tuple[Space, ...]
    totals: tuple[Total, ...]
    divisor: float | None = None

    @property
    def encoded(self) -> Space:
        """Space of the encoded contribution that travels."""
        return self.spaces[-1]

    @cached_property
    def level(self) -> int:
        """Index of the space that contributions are merged in: 0, or the stage at which a ``ServerHalf`` takes over."""
        return _release_level(self.stages)

    @cached_property
    def served(self) -> int | None:
        """Number of the one stage that has a server half. None if no stage has one."""
        return next((i for i, stage in enumerate(self.stages) if stage.server is not None), None)

    @cached_property
    def released_head(self) -> tuple[str, ...]:
        """Names of the scalars of a decoded sum. A stage may carry some of them inside the body (``joined``)."""
        return _released_head(self.spaces[self.level :])

    @property
    def merged(self) -> Space:
        """Space of the decoded sum."""
        return self.spaces[self.level]

    @property
    def total(self) -> Total:
        """Facts about the total after all posts."""
        return self.totals[-1]

    def init(self) -> Memory:
        """Make the codec memory of a device that has never taken part."""
        memory = Memory()
        for i, (stage, space) in enumerate(zip(self.stages, self.spaces, strict=False)):
            memory = memory.put("stage", i, stage.init(space))
        return memory

    def encode(
        self, x: Vector, head: Mapping[str, float], count: float, memory: Memory, turn: Turn
    ) -> tuple[Payload, Memory]:
        """Encode a raw update for the upload. Runs on the device.

        Args:
            x: float32[d].
            head: the metrics named by the start space (``Metrics.encoded``). They are cut to [0, ``Space.head_bound``].
            count: amount of data (tokens, examples).
            memory: the device's codec memory (``init`` before its first round).
        Returns:
            The payload, and the codec memory after this round.
        Raises:
            As ``checked``.
        """
        values = self.checked(x, head)
        payload, after = Payload(x, np.clip(values, 0.0, self.spaces[0].head_bound), count=count), Memory()
        for i, (stage, space) in enumerate(zip(self.stages, self.spaces, strict=False)):
            result = stage.encode(payload, memory.child("stage", i), space, placed(turn, self.stages, i))
            payload, new = of_kind(tuple, result, f"{stage.name}: encode")
            payload = of_kind(Payload, payload, f"{stage.name}: encode")
            after = after.put("stage", i, new)
        return payload, after

    def checked(self, x: Vector, head: Mapping[str, float]) -> NDArray[np.float64]:
        """Check that an update can be encoded, and return the values of its head.

        Raises:
            TrainingError: E-NAN if x or a head value is not finite.
            ValueError: x has another shape (own misuse).
        """
        start = self.spaces[0]
        if x.shape != (start.dim,):
            raise ValueError(f"update has shape {x.shape}, pipeline starts at ({start.dim},)")
        values = np.array([head[name] for name in start.head], np.float64)
        if not (finite(x) and np.isfinite(values).all()):
            raise TrainingError("E-NAN", "the update holds NaN or infinity.", "lower training.lr or set clip_grad.")
        return values

    def decode(self, payload: Payload, turn: Turn, level: int = 0) -> Payload:
        """Undo the stages in reverse order down to ``spaces[level]``.

        Runs on the server. The body is float32 of its dim.
        """
        return undo(self.stages, self.spaces, payload, turn, level).dense(self.spaces[level].dim)

    def start_memory(self) -> Memory:
        """Make the server's memory for stages and posts before the first round. It is empty for most pipelines."""
        memory = Memory()
        for i, (stage, space) in enumerate(zip(self.stages, self.spaces, strict=False)):
            if stage.server is not None:
                memory = memory.put("stage", i, stage.server.init(space))
        size = self.merged.dim + len(self.released_head)
        for i, (post, total) in enumerate(zip(self.posts, self.totals, strict=False)):
            memory = memory.put("post", i, post.init(total, size))
        return memory

    def start_sum(self) -> Sum:
        """Make an empty total."""
        return Sum(self.merge.init(self.encoded if self.merge.blind else self.merged), 0)

    def add(self, total: Sum, payload: Payload, turn: Turn, scale: float = 1.0) -> Sum:
        """Fold one encoded contribution into the total. The old total must not be used again.

        A visible merge sees each contribution, so it enforces the plan's bounds on it, whether the device is honest or
        not.

        Args:
            scale: in (0, 1], a factor of the decoded body, after its bounds are checked. The head, with the weight by
                which the sum is divided, is not scaled. A blind merge cannot scale a contribution.
        Raises:
            DecodeError: E-RANGE above the plan's norm bounds or for head values that no honest device sends, and all
                refusals of the merge. The total is then unchanged.
        """
        if self.merge.blind:
            if scale != 1.0:
                raise ValueError("a blind merge cannot scale a contribution")
            return Sum(self.merge.add(total.acc, payload, self.encoded), total.n + 1)
        if (
            self.merge.stream
            and payload.support is None
            and payload.body.shape == (self.encoded.dim,)
            and self._is_pointwise
        ):
            return Sum(
                self.merge.stream(total.acc, lambda: self._decoded_pieces(payload, turn, scale), self.merged),
                total.n + 1,
            )
        item = undo(self.stages, self.spaces, payload, turn, self.level)
        enforce_bounds(item, self.encoded, self.released_head)
        acc = self.merge.add(total.acc, _scaled(item, scale), self.merged)
        return Sum(acc if self.merge.signed is None else self.merge.signed(acc, turn.device or ""), total.n + 1)

    @cached_property
    def _is_pointwise(self) -> bool:
        return all(stage.pointwise for stage in self.stages[self.level :])

    def _decoded_pieces(self, payload: Payload, turn: Turn, scale: float) -> Iterator[Payload]:
        """Decode the contribution, some blocks at a time. Refuse it as soon as it exceeds the plan's bounds."""
        space, square = self.encoded, 0.0
        block = space.grid.block or 1
        size = max(1, PIECE // block) * block
        for start in range(0, max(1, space.dim), size):
            first, count = start // block * space.grid.scales, size // block * space.grid.scales
            scales = None if payload.scales is None else payload.scales[first : first + count]
            part = Payload(payload.body[start : start + size], payload.head, None, scales, payload.count)
            item = undo(self.stages, self.spaces, part, turn, self.level)
            square = enforce_bounds(item, self.encoded, self.released_head, square)
            yield _scaled(item, scale)

    def release(self, total: Sum, turn: Turn, entropy: Key, memory: Memory) -> tuple[Aggregate, Memory]:
        """Compute the aggregate of a round from its total.

        Blind merges decode first. Then the posts are applied, and the sum is divided by the summed weight. Last, the
        server half of a stage undoes its part on the mean.

        Args:
            total: the sum of all contributions.
            entropy: fresh randomness for the posts.
            memory: the server's memory for stages and posts (``start_memory`` before the first round).
        Returns:
            The aggregate, and the server's memory after this round.
        Raises:
            ValueError: the total is empty. With a fixed divisor an empty total is allowed, and is the noise of the
                posts.
        Edge cases: a summed weight of zero gives a zero mean (no device had data).
        """
        if total.n == 0 and self.divisor is None:
            raise ValueError("nothing to release: no contribution was added")
        if self.merge.combine is not None and self.merge.parts is not None:
            return self._combined_sums(self.merge.parts(total.acc), self.merge.combine, turn, entropy, memory)
        x, head = self._finished_sum(total.acc, turn)
        if self.posts:  # Body and head are released together, so posts (noise above all) see them as one vector.
            joint = np.concatenate([x.astype(np.float64, copy=False), head])  # The division alone rounds to float32.
            for i, post in enumerate(self.posts):
                fresh, before = derive(entropy, "post", i), memory.child("post", i)
                joint, new = post.apply(joint, self.totals[i], turn.round, fresh, before)
                memory = memory.put("post", i, new)
            x, head = joint[: x.size], joint[x.size :]
        mean, means, weight = self._divided_sum(x, head, total.n)
        mean, memory = self._through_server_stage(mean, total.n, memory, turn, means)
        return Aggregate(mean, means, total.n, weight), memory

    def part_mean(self, acc: Any, n: int, turn: Turn) -> tuple[Vector, dict[str, float], float]:
        """Finish one of the sums that ``Merge.parts`` hands out: (mean, means of the head, weight)."""
        return self._divided_sum(*self._finished_sum(acc, turn), n)

    def _finished_sum(self, acc: Any, turn: Turn) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
        """Finish a sum: its body, decoded to ``merged``, and its head.

        The body is float64 if posts follow and the merge has it, because noise must not be added to a rounded sum.
        Otherwise it is float32.
        """
        payload = self.merge.finish(acc, self.encoded if self.merge.blind else self.merged, bool(self.posts))
        if self.merge.blind:
            payload = self.decode(payload, turn, self.level)
        head = payload.head if payload.head.size else np.zeros(len(self.released_head))  # An empty sum has no head.
        return payload.body if self.posts else payload.body.astype(np.float32, copy=False), head

    def _divided_sum(
        self, x: NDArray[np.floating], head: NDArray[np.float64], n: int
    ) -> tuple[Vector, dict[str, float], float]:
        """Divide a sum of n contributions: (mean, means of the head, weight)."""
        sums = dict(zip(self.released_head, head.tolist(), strict=True))
        weight = sums.pop(WEIGHT, float(n) if self.divisor is None else self.divisor)
        empty = weight <= 0.0
        mean = np.zeros(x.size, np.float32) if empty else (x / np.float32(weight)).astype(np.float32, copy=False)
        return mean, {k: 0.0 if empty else v / weight for k, v in sums.items()}, max(0.0, weight)

    def _combined_sums(
        self, parts: list[tuple[Any, int]], combine: Combine, turn: Turn, entropy: Key, memory: Memory
    ) -> tuple[Aggregate, Memory]:
        """Combine the means of several sums into one."""
        means = [self.part_mean(acc, n, turn) for acc, n in parts]
        bodies = np.stack([mean for mean, *_ in means]).astype(np.float64)
        heads = np.array([list(head.values()) for _, head, _ in means], np.float64).reshape(len(means), -1)
        body, values, state = combine(bodies, heads, memory.child("merge"), derive(entropy, "merge"))
        n, head = sum(n for _, n in parts), dict(zip(means[0][1], values.tolist(), strict=True))
        whole = Aggregate(body.astype(np.float32), head, n, sum(weight for *_, weight in means))
        return whole, memory.put("merge", None, state)  # Stages with a server half are refused beside such a merge.

    def _through_server_stage(
        self, mean: Vector, n: int, memory: Memory, turn: Turn, head: Head
    ) -> tuple[Vector, Memory]:
        """Map the mean from ``spaces[level]`` to ``spaces[0]``, through the one stage that has a server half."""
        if (index := self.served) is None:
            return mean, memory
        server, before = self.stages[index].server, memory.child("stage", index)
        assert server is not None
        mean, after = server.absorb(mean, n, before, self.spaces[index], placed(turn, self.stages, index), head)
        memory = memory.put("stage", index, after)
        rest = undo(self.stages[:index], self.spaces[: index + 1], Payload(mean, np.zeros(0)), turn)
        return rest.dense(self.spaces[0].dim).body, memory


def _scaled(item: Payload, scale: float) -> Payload:
    """Multiply the body of a decoded contribution."""
    return item if scale == 1.0 else item.but(body=item.body * np.float32(scale))


def _release_level(stages: Sequence[Stage]) -> int:
    """Count the stages whose output the server's half of a stage reads."""
    for i, stage in enumerate(stages):
        if stage.server is not None:
            return i + stage.server.encoded
    return 0


def _released_head(spaces: Sequence[Space]) -> tuple[str, ...]:
    """List the names of all head scalars of these spaces, in the order in which they come."""
    return tuple(dict.fromkeys(name for space in spaces for name in space.head))


def pipeline(start: Space, stages: Sequence[Stage], merge: Merge, posts: Sequence[Post] = ()) -> Pipeline:
    """Type-check ``stages``, ``merge`` and ``posts`` by folding the start space through them.

    Args:
        start: facts about the raw update.
        stages: the chain, in the order of encoding.
        merge: the rule that makes one total.
        posts: steps on the total, in order.
    Raises:
        CompositionError: a part cannot stand where it stands. The message names the part, its needs, what it got, and
            the fix.
    """
    spaces = [start]
    for stage in stages:
        spaces.append(of_kind(Space, stage.infer(spaces[-1]), f"{stage.name}: infer"))
    if sum(stage.server is not None for stage in stages) > 1:
        names = " and ".join(stage.name for stage in stages if stage.server is not None)
        raise CompositionError(
            "E-ORDER", f"{names}: each needs memory on the server, and only one stage can have it.", "keep one of them."
        )
    for stage, space in zip(stages, spaces, strict=False):
        if stage.server is not None and not stage.server.encoded and not space.summable:
            raise CompositionError(
                "E-NOT-SUMMABLE",
                f"{stage.name}: the server adds updates in their form before this stage. There each device has "
                "positions or factors of its own, which cannot be added.",
                "leave out the stages before it that choose them (top_k, low_rank, random_k with each).",
            )
    if merge.blind and spaces[-1].rungs:
        raise CompositionError(
            "E-RUNG",
            f"{merge.name}: a blind sum needs one grid for all devices. Here each device chooses its own codec.",
            'fix one codec for all: codec = "stages".',
        )
    # The merge comes first, because its refusals are more specific than those below.
    totals = [merge.infer(spaces[-1])]
    level = _release_level(stages)
    totals[0] = totals[0].but(dim=spaces[level].dim + len(_released_head(spaces[level:])))
    if merge.blind and not spaces[-1].summable:
        raise CompositionError(
            "E-NOT-SUMMABLE", f"{merge.name}: needs a summable encoding.", "use random_k, without each."
        )
    if not merge.blind and spaces[-1].noise.honest:
        raise CompositionError(
            "E-COMBO", f"{merge.name} sees single updates, each with too little noise to hide it.", "use secure_sum."
        )
    if merge.combine is not None and posts:
        raise CompositionError(
            "E-COMBO",
            f"{posts[0].name} behind {merge.name}: a rule between sums does not bound the influence of one device.",
            'let devices add the noise (privacy = "distributed_dp"), or use secure_sum.',
        )
    if merge.combine is not None and (served := [stage.name for stage in stages if stage.server is not None]):
        raise CompositionError(
            "E-COMBO",
            f"{served[0]} with {merge.name}: its server half needs the mean of all updates, not a rule between sums.",
            "leave it out, or use secure_sum.",
        )
    for post in posts:
        totals.append(post.infer(totals[-1]))
    mirrored = [stage.name for stage in stages if stage.server is not None and stage.server.mirrors]
    if mirrored and totals[-1].noise_std > 0.0:
        raise CompositionError(
            "E-ORDER",
            f"{mirrored[0]}: the server keeps what it receives. Noise on it would stay and add up over the rounds.",
            'use feedback with form = "ef14", or leave out the noise.',
        )
    return Pipeline(tuple(stages), merge, tuple(posts), tuple(spaces), tuple(totals))
