"""The memory of pipeline parts between rounds: a small tree of named arrays, the same on devices and on the server.

    phase.0                      the stages of a schedule take turns; most plans have this one phase
    ├── stage.1                  of the pipeline's second stage, on a device or on the server: "residual", "last"
    │   └── stage.0              of the first stage inside it
    ├── strategy                 on a device: what the strategy's client half keeps, by its own names
    ├── post.0                   on the server: of the first post
    └── release                  on the server: the positions of the last release

A part sees its own arrays and hands new ones back; whoever holds a tree puts each part's memory in its place. Only a
store makes one flat mapping of it (``flat``), and reads it back (``tree``).

>>> import numpy as np
>>> memory = Memory().put("stage", 1, Memory({"last": np.array([3])}))
>>> memory.child("stage", 1)["last"].tolist(), bool(memory.child("stage", 0))
([3], False)
>>> list(flat(memory))
['stage.1/last']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.core.safe_repr import outline
from edgewise.core.vector import Array

Place = tuple[str, int | None]  # of a child: what it belongs to, and its number where there may be several


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Arrays by name, and the memories of parts inside. False where it holds nothing.

    A memory never changes: ``put`` and ``plus`` give new ones, which share what stayed as it was. Raises ValueError for
    a name with a slash, which a store could not read back.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    children: Mapping[Place, Memory] = field(default_factory=dict)

    __repr__ = outline

    def __post_init__(self) -> None:
        for name in (*self.arrays, *(kind for kind, _ in self.children)):
            if "/" in name:
                raise ValueError(f"{name!r} names a part of a memory and holds a slash")

    def __bool__(self) -> bool:
        return bool(self.arrays or self.children)

    def __getitem__(self, name: str) -> Array:
        """An array of its own. Raises KeyError where there is none."""
        return self.arrays[name]

    def get(self, name: str) -> Array | None:
        """An array of its own; None where there is none."""
        return self.arrays.get(name)

    def child(self, kind: str, number: int | None = None) -> Memory:
        """The memory of a part inside; empty where it has none."""
        return self.children.get((kind, number)) or Memory()

    def put(self, kind: str, number: int | None, memory: Memory) -> Memory:
        """This memory with another one for a part inside; an empty one leaves no trace."""
        others = {place: child for place, child in self.children.items() if place != (kind, number)}
        return Memory(self.arrays, {**others, (kind, number): memory} if memory else others)

    def plus(self, arrays: Mapping[str, Array]) -> Memory:
        """This memory with more arrays of its own, or with others under their names."""
        return Memory({**self.arrays, **arrays}, self.children)


def flat(memory: Memory) -> dict[str, Array]:
    """All arrays of a tree by their paths, for a store: ``"stage.1/last"``."""
    out = dict(memory.arrays)
    for (kind, number), child in memory.children.items():
        place = kind if number is None else f"{kind}.{number}"
        out.update({f"{place}/{path}": x for path, x in flat(child).items()})
    return out


def tree(arrays: Mapping[str, Array]) -> Memory:
    """Inverse of ``flat``. Raises ValueError for paths that ``flat`` does not give."""
    own: dict[str, Array] = {}
    inside: dict[Place, dict[str, Array]] = {}
    for path, x in arrays.items():
        place, slash, rest = path.partition("/")
        if not slash:
            own[path] = x
            continue
        kind, dot, number = place.partition(".")
        inside.setdefault((kind, int(number) if dot else None), {})[rest] = x
    return Memory(own, {place: tree(child) for place, child in inside.items()})
