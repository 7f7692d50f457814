"""The clips of a device as batches: its own beside public ones, shifted in time and partly masked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgewise.core.keys import Key, derive, generator
from edgewise.core.vector import Array
from edgewise.learn.row_order import row_order
from edgewise.plan.recipe.sections import TrainingSection

SHIFT, BANDS, FRAMES = 6, 6, 10  # the most frames of a shift, and the most bands and frames that are masked
Batch = tuple[Array, Array]  # spectrograms float32[B, frames, bands] and marks of keywords float32[B, keywords]


class ClipShard:
    """A device's clips, as arrays.

    Half of each batch, or another share, is public clips, so that the device forgets no other keyword.

    Args:
        own: float32[n, frames, bands] and int64[n], spectrograms and labels. public: the same of the public clips.
        keywords: number of keywords.
        rehearsal: share of a batch that is public.
        held: clips of its own that are held back from training.
    """

    def __init__(
        self,
        own: tuple[Array, Array],
        public: tuple[Array, Array],
        keywords: int,
        rehearsal: float,
        held: tuple[Array, Array] | None = None,
    ) -> None:
        self._own, self._public, self._keywords, self._rehearsal = own, public, keywords, rehearsal
        self._held = held
        self.count = float(len(own[1]))

    def apart(self) -> ClipShard:
        """Hold the last fifth of the own clips out, at least one (``TorchTrainer.holding_back``)."""
        first = max(0, self.size - max(1, self.size // 5))
        (x, label), rest = self._own, (self._public, self._keywords, self._rehearsal)
        return ClipShard((x[:first], label[:first]), *rest, held=(x[first:], label[first:]))

    @property
    def size(self) -> int:
        """See ``Shard``."""
        return len(self._own[1])

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[Batch]]:
        """See ``Shard``."""
        public = round(self._rehearsal * training.batch) if len(self._public[1]) else 0
        own = max(1, training.batch - public)
        size = max(1, training.batch // training.accumulate)
        dealt = row_order(self.size, steps, own, derive(key, "own"))
        beside = row_order(len(self._public[1]), steps, public, derive(key, "public")) if public else None
        rng = generator(derive(key, "changes"))
        for rows in dealt:
            x, label = self._own[0][rows], self._own[1][rows]
            if beside is not None:
                more = next(beside)
                x, label = np.concatenate([x, self._public[0][more]]), np.concatenate([label, self._public[1][more]])
            whole = _as_batch(changed(x, rng), label, self._keywords)
            yield [(whole[0][i : i + size], whole[1][i : i + size]) for i in range(0, len(label), size)]

    def records(self, rows: Array) -> list[Batch]:
        """Return these clips, each as a batch of its own, as they are."""
        return [_as_batch(self._own[0][[r]], self._own[1][[r]], self._keywords) for r in rows]

    def held_out(self) -> Iterator[Batch]:
        """Return the clips that are held back. Else keywords are measured on the test (``KeywordTrainer.evaluate``)."""
        return iter(()) if self._held is None else iter([_as_batch(*self._held, self._keywords)])


def changed(x: Array, rng: np.random.Generator) -> Array:
    """Shift each clip in time and mask some bands and frames with 0, the mean of a clip.

    A shift is an eighth of the frames at most, and a mask a quarter of the bands or frames.

    Args:
        x: float32[n, frames, bands]. It is not changed.
    """
    out, (n, frames, bands) = np.zeros_like(x), x.shape
    farthest, widest = min(SHIFT, frames // 8), (min(BANDS, bands // 4), min(FRAMES, frames // 4))
    shifts, widths = rng.integers(-farthest, farthest + 1, n), rng.integers(0, widest, (n, 2), endpoint=True)
    for i, by in enumerate(shifts):
        out[i, max(0, by) : frames + min(0, by)] = x[i, max(0, -by) : frames - max(0, by)]
        first, start = rng.integers(0, bands - widths[i, 0] + 1), rng.integers(0, frames - widths[i, 1] + 1)
        out[i, :, first : first + widths[i, 0]] = 0.0
        out[i, start : start + widths[i, 1]] = 0.0
    return out


def _as_batch(x: Array, label: Array, keywords: int) -> Batch:
    """Make a batch of clips and their labels."""
    marks = np.zeros((len(label), keywords), np.float32)
    marks[np.arange(len(label)), label] = 1.0
    return np.ascontiguousarray(x), marks
