"""Blocks that are dealt out anew: none is lost or doubled, and skew is what its word says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.keys import root
from edgewise.learn.text.blocks import Blocks
from edgewise.learn.text.redealt import RedealtStore

DEVICES = ("a", "b", "broken", "c")


class Store:
    """Three devices that each have blocks of two kinds of text, and one that cannot be read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.blocks: dict[str, Blocks] = {}
        for device, n in (("a", 4), ("b", 6), ("c", 2)):
            kinds = np.arange(n + 2)[:, None] % 2 * 20
            rows = (kinds + rng.integers(0, 10, (n + 2, 17))).astype(np.int32)
            rows[:, 0] = ~rows[:, 0]
            self.blocks[device] = Blocks(rows[:n], rows[n:], np.arange(3))

    def open(self, device: str) -> Blocks:
        if device not in self.blocks:
            raise DataError("E-DEVICE-DATA", "no text.", "give it text.")
        return self.blocks[device]


def redealt(skew: Any, seed: int = 1) -> tuple[Store, RedealtStore]:
    store = Store()
    return store, RedealtStore(store, DEVICES, skew, root(seed))  # type: ignore[arg-type]


def ordered(parts: list[np.ndarray]) -> list[bytes]:
    return sorted(row.tobytes() for part in parts for row in part)


@pytest.mark.parametrize("skew", ["own", "iid", "sorted"])
def test_each_block_is_dealt_once_and_held_out_blocks_stay_held_out(skew: str) -> None:
    store, dealt = redealt(skew)
    for part in ("train_NS", "held_NS"):
        before = [getattr(store.open(d), part) for d in "abc"]
        after = [getattr(dealt.open(d), part) for d in "abc"]
        assert [len(x) for x in after] == [len(x) for x in before]
        assert {x.dtype for x in after} == {np.dtype(np.int32)}
        assert ordered(after) == ordered(before)
    with pytest.raises(DataError):
        dealt.open("broken")


def test_own_text_stays_and_even_text_follows_the_key() -> None:
    store, own = redealt("own")
    assert own.open("b").train_NS is store.open("b").train_NS
    one, same, other = (redealt("iid", seed)[1].open("b").train_NS for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_sorted_text_is_of_one_kind() -> None:
    """12 blocks of two kinds, half each, in runs of 4, 6 and 2: the first and the last device have one kind."""
    kinds = [set((redealt("sorted")[1].open(d).train_NS[:, 1] >= 20).tolist()) for d in "abc"]
    assert kinds[0] != kinds[2]
    assert [len(kind) for kind in kinds] == [1, 2, 1]
