"""Immutable mapping that grows by one entry at a time, for the states of pure machines.

A machine that handles one message of each of n devices keeps a mapping of its facts on them. ``{**old, k: v}`` copies
the mapping for every message, which is O(n^2) in all. ``AppendMap.plus`` takes constant time.

>>> state = AppendMap()
>>> after = state.plus("d1", b"key")
>>> len(state), len(after)
(0, 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class AppendMap(Mapping[K, V]):
    """A mapping in the order of insertion. Versions share their entries, and each knows how many are its own.

    Guarantees: a version never changes, whatever is made from it. ``plus`` takes O(1) on the newest version. On an
    older one it first copies that version's entries, O(n). All look-ups take O(1).
    Edge cases: versions of one mapping must stay in one thread. Entries live as long as any version does.
    """

    __slots__ = ("_at", "_items", "_n")

    def __init__(self, items: Iterable[tuple[K, V]] = ()) -> None:
        """Make a mapping of ``items``.

        Raises:
            ValueError: a key occurs twice.
        """
        self._items = list(items)
        self._at = {key: i for i, (key, _) in enumerate(self._items)}
        self._n = len(self._items)
        if len(self._at) < self._n:
            raise ValueError("a key occurs twice")

    def plus(self, key: K, value: V) -> AppendMap[K, V]:
        """Return a mapping with one entry more.

        Raises:
            ValueError: the mapping has the key already.
        """
        if key in self:
            raise ValueError("the mapping has the key already")
        # A newer version may have appended to the shared entries. This version then needs a copy of its own.
        base = self if len(self._items) == self._n else AppendMap(self.items())
        base._at[key] = self._n
        base._items.append((key, value))
        after: AppendMap[K, V] = AppendMap.__new__(AppendMap)
        after._items, after._at, after._n = base._items, base._at, self._n + 1
        return after

    def __getitem__(self, key: K) -> V:
        at = self._at[key]
        if at >= self._n:
            raise KeyError(key)
        return self._items[at][1]

    def __contains__(self, key: object) -> bool:
        return self._at.get(key, self._n) < self._n  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[K]:
        return (key for key, _ in islice(self._items, self._n))

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"AppendMap(<{self._n} entries>)"
