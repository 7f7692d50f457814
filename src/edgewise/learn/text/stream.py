"""Text that arrives over time (``data.stream``): windows of each device, and replay of earlier ones.

Window v of a run holds the rows whose time t has floor((t - window_start) / window) = v. Round r trains window
r // window_rounds. A device without text in it goes on with its latest window before. So a device that is silent for a
while answers as it did, and no refusal tells of it.

Replay. Each step takes b_old = round(replay_share batch) blocks of earlier windows, and batch - b_old of the current
one. The blocks of earlier windows are ``replay`` in a round at most, drawn anew in each from the device's own secret.
They are read where the device keeps its text. Nothing is copied, so memory does not grow with the stream.

Shape suffixes: N = blocks, S = tokens per block, V = windows with text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from torch import Tensor

from edgewise.core.errors import DataError
from edgewise.core.keys import Key, derive, generator
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.row_order import row_order
from edgewise.learn.text.blocks import Blocks, BlockStore, build
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.shards import TextShard, micro_batches
from edgewise.plan.recipe.recipe import DataSection
from edgewise.plan.recipe.sections import TrainingSection


class StreamStore(BlockStore):
    """The blocks of each device, window by window. No block has text of two windows, and each has its own hold-out."""

    def _layout(self) -> dict[str, tuple[type, int, int]]:
        return {**super()._layout(), "windows_V3": (np.int64, 3, 2)}

    def _build_blocks(self, device: DeviceId) -> Blocks:
        """Cut each window's documents into blocks, in the order of time."""
        parts: list[tuple[int, Blocks]] = []
        for window, documents in groupby(self._corpus.documents(device), lambda document: document.window):
            assert window is not None, "the index of a stream numbers the windows"
            made = build(documents, self._tokens, self._section, self._corpus.cut_each, self._apart)
            if len(made.train_NS) or len(made.held_NS):
                parts.append((window, made))
        return _joined_windows(parts, self._section.sequence_len + 1)


def _joined_windows(parts: list[tuple[int, Blocks]], width: int) -> Blocks:
    """Put the blocks of windows one after the other."""
    none_NS, total = np.zeros((0, width), np.int32), Counts()
    for _, made in parts:
        total += Counts(*map(int, made.counts))
    stops = [np.cumsum([len(made[i]) for _, made in parts], dtype=np.int64) for i in (0, 1)]
    train_NS, held_NS = (np.concatenate([none_NS, *(made[i] for _, made in parts)]) for i in (0, 1))
    numbers = np.array([window for window, _ in parts], np.int64)
    return Blocks(train_NS, held_NS, total.array(), np.stack([numbers, *stops], 1))


class StreamShard(TextShard):
    """One device's windows. It is measured on the hold-outs of all of them, each with an equal share of the tokens."""

    def __init__(self, blocks: Blocks, eval_tokens: int, pass_tokens: int, section: DataSection) -> None:
        super().__init__(blocks, eval_tokens, pass_tokens)
        self._section = section

    def at(self, device: DeviceId, round: int, secret: Key) -> WindowShard:
        """Return the text that a round trains on.

        Args:
            secret: decides what is replayed.
        Raises:
            DataError: E-DEVICE-DATA where the device has no text yet.
        """
        window = round // self._section.window_rounds
        stops = self.blocks.windows_V3[:, 1].tolist()
        latest = bisect_right(self.blocks.windows_V3[:, 0].tolist(), window)
        while latest and stops[latest - 1] == (stops[latest - 2] if latest > 1 else 0):
            latest -= 1  # All text of this window is held out.
        if not latest:
            what = f"device {device!r:.60} has no text up to window {window} of its stream."
            raise DataError("E-DEVICE-DATA", what, "it takes part once it has text; or choose an earlier window_start.")
        first = stops[latest - 2] if latest > 1 else 0
        number = int(self.blocks.windows_V3[latest - 1, 0])
        return WindowShard(self, number, slice(first, stops[latest - 1]), self._section, secret)

    def window(self, number: int) -> TextShard:
        """Return one window by itself, as a shard of its training and held-out blocks. It may have no rows."""
        numbers = self.blocks.windows_V3[:, 0].tolist()
        parts = []
        for column, rows_NS in ((1, self.blocks.train_NS), (2, self.blocks.held_NS)):
            stops = [0, *self.blocks.windows_V3[:, column].tolist()]
            i = numbers.index(number) if number in numbers else None
            parts.append(rows_NS[:0] if i is None else rows_NS[stops[i] : stops[i + 1]])
        return TextShard(Blocks(*parts, self.blocks.counts), self._eval_tokens, self._pass_tokens)

    def held_blocks(self, rows: Array) -> Iterator[tuple[Tensor, int]]:
        """Iterate over batches of these held-out blocks, int64[n], of any windows."""
        held_NS = self.blocks.held_NS[rows]
        return TextShard(self.blocks._replace(held_NS=held_NS), held_NS.size, self._pass_tokens).held_out()

    def held_out(self) -> Iterator[tuple[Tensor, int]]:
        """Iterate over batches of the first held-out predictions of each window."""
        windows = self.blocks.windows_V3[:, 0].tolist()
        for number in windows:
            part = self.window(number)
            yield from TextShard(part.blocks, -(-self._eval_tokens // len(windows)), self._pass_tokens).held_out()


class WindowShard:
    """A window's training blocks, with blocks of earlier windows to replay (``learn.shards.Shard``).

    Args:
        number: number of the window.
        rows: the rows of the window. All before them are of earlier windows.
    """

    def __init__(self, whole: StreamShard, number: int, rows: slice, section: DataSection, secret: Key) -> None:
        self.number = number
        self._whole, self._section, self._secret = whole, section, secret
        self._first, self.size = rows.start, rows.stop - rows.start
        self._train_NS = whole.blocks.train_NS
        self.count = float(TextShard(Blocks(self._train_NS[rows], *whole.blocks[1:]), 0, 1).count)

    def replayed(self) -> Array:
        """Draw the blocks of earlier windows for this round: at most ``data.replay`` row numbers, each once."""
        n = min(self._section.replay, self._first)
        return generator(derive(self._secret, "blocks")).choice(self._first, n, replace=False) if n else np.arange(0)

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[tuple[Tensor, int]]]:
        """Iterate over the micro-batches of each step, from the window and from replayed blocks."""
        old = self.replayed()
        share = round(self._section.replay_share * training.batch) if len(old) else 0
        new_rows = row_order(self.size, steps, training.batch - share, key)
        old_rows = row_order(len(old), steps, share, derive(self._secret, "order"))
        mixed = (np.concatenate([self._first + new, old[again]]) for new, again in zip(new_rows, old_rows, strict=True))
        return micro_batches(self._train_NS.__getitem__, mixed, training)

    def held_out(self) -> Iterator[tuple[Tensor, int]]:
        """See ``StreamShard``."""
        return self._whole.held_out()

    def records(self, rows: Array) -> list[tuple[Tensor, int]]:
        """Return these blocks of the window, each as a batch of its own."""
        return self._whole.records(rows + self._first)


def unreached(section: DataSection, rounds: int, last: int | None) -> tuple[str, ...]:
    """Return a sentence where a run and its stream do not end together. ``last``: number of the last window."""
    if not section.stream or last is None:
        return ()
    reached = (rounds - 1) // section.window_rounds
    if reached < last:
        return (f"The run ends in window {reached}, and the text goes on to window {last}: later text never trains.",)
    if reached > last:
        first = (last + 1) * section.window_rounds
        return (f"The text ends in window {last}: from round {first + 1} on, devices go on with their latest window.",)
    return ()
