"""Deal the blocks of all devices out anew, so that one recipe can be played on other skews of its data.

    own       every device keeps its blocks
    iid       all blocks are shuffled, and dealt out
    sorted    blocks of like text go to one device: they are sorted by their score on the first principal component of
              token frequencies, and cut into runs

A device keeps its number of blocks, for training and held out alike, so weights and steps stay about the same. No
held-out block becomes one of training. For simulations: one process opens the text of all devices.

    store = RedealtStore(BlockStore(corpus, tokens, section, cache), corpus.devices, "sorted", key)
    store.open("device-0").train_NS

Shape suffixes: N = blocks, S = tokens per block, F = frequent tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.keys import Key, derive, generator
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.text.blocks import Blocks, BlockStore
from edgewise.learn.text.marks import unmarked

Skew = Literal["own", "iid", "sorted"]
SKEWS: tuple[Skew, ...] = get_args(Skew)
FREQUENT = 64  # Tokens whose frequencies tell blocks apart.


class _Deal(NamedTuple):
    """The order of all blocks of one kind.

    Attributes:
        stops: int, for each device the number of blocks of it and the devices before it.
        order: int64[n], the old number of the block at each new place.
    """

    stops: tuple[int, ...]
    order: Array

    def __repr__(self) -> str:
        return outline(self)


class RedealtStore:
    """A store of blocks in which devices hold other blocks than their own. It opens as ``BlockStore`` does.

    A device whose text cannot be read keeps its error, and takes no part.
    """

    def __init__(self, inner: BlockStore, devices: Sequence[DeviceId], skew: Skew, key: Key) -> None:
        self._inner, self._devices, self._skew, self._key = inner, tuple(devices), skew, key

    def open(self, device: DeviceId) -> Blocks:
        """Open the blocks that are dealt to one device. Raises as ``BlockStore.open``."""
        own = self._inner.open(device)
        if self._skew == "own":
            return own
        at = self._readable.index(device)
        dealt = [
            self._gathered(part, deal, at) for part, deal in zip(("train_NS", "held_NS"), self._deals, strict=True)
        ]
        return Blocks(dealt[0], dealt[1], own.counts)

    @cached_property
    def _readable(self) -> list[DeviceId]:
        """The devices whose text can be read, in order."""
        found = []
        for device in self._devices:
            try:
                self._inner.open(device)
            except DataError:
                continue
            found.append(device)
        return found

    @cached_property
    def _deals(self) -> tuple[_Deal, _Deal]:
        """The way in which training blocks and held-out blocks are dealt."""
        return self._deal("train_NS"), self._deal("held_NS")

    def _deal(self, part: str) -> _Deal:
        """Deal the blocks of one kind."""
        stops = tuple(accumulate(len(getattr(self._inner.open(d), part)) for d in self._readable))
        n = stops[-1] if stops else 0
        if self._skew == "iid" or n < 2:
            return _Deal(stops, generator(derive(self._key, "skew", part)).permutation(n))
        counts_NF = np.concatenate([self._frequencies(d, part) for d in self._readable])
        return _Deal(stops, np.argsort(_first_component(counts_NF), kind="stable"))

    def _frequencies(self, device: DeviceId, part: str) -> Array:
        """Count the frequent tokens of each block, float64[N, F]."""
        blocks_NS = _plain(getattr(self._inner.open(device), part))
        return np.stack([(blocks_NS == t).sum(1) for t in self._frequent], axis=1).astype(np.float64)

    @cached_property
    def _frequent(self) -> Array:
        """The most frequent tokens of all training text, int64[F]."""
        total = np.zeros(1, np.int64)
        for device in self._readable:
            found = np.bincount(_plain(self._inner.open(device).train_NS).ravel(), minlength=len(total))
            found[: len(total)] += total
            total = found
        return np.argsort(-total, kind="stable")[:FREQUENT]

    def _gathered(self, part: str, deal: _Deal, at: int) -> Array:
        """Gather the blocks of one device, int32[N, S]."""
        rows = deal.order[deal.stops[at - 1] if at else 0 : deal.stops[at]]
        if not len(rows):
            return np.array(getattr(self._inner.open(self._readable[at]), part))
        owners = [bisect_right(deal.stops, int(row)) for row in rows]
        opened = {i: getattr(self._inner.open(self._readable[i]), part) for i in set(owners)}
        return np.stack([
            opened[i][int(row) - (deal.stops[i - 1] if i else 0)] for i, row in zip(owners, rows, strict=True)
        ])  # fmt: skip


def _plain(blocks_NS: Array) -> Array:
    """Return plain token ids, without marks and signs."""
    found = unmarked(np.asarray(blocks_NS))
    return np.where(found < 0, ~found, found)


def _first_component(counts_NF: Array) -> Array:
    """Return each row's score on the first principal component, float64[N]. The sign is fixed by its largest part."""
    centred = counts_NF - counts_NF.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return np.asarray(centred @ (axis * np.sign(axis[np.abs(axis).argmax()])))
