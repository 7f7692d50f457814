"""Memory of pipeline parts between rounds: a small tree of named arrays, the same on devices and on the server.

    phase.0                      stages of a schedule take turns; most plans have this one phase
    ├── stage.1                  second stage of the pipeline, on a device or on the server: "residual", "last"
    │   └── stage.0              first stage inside it
    ├── strategy                 on a device: arrays of the strategy's client half, by its own names
    ├── private                  on a device: vectors that never leave it (``core.training.Update.personal``)
    ├── merge                    on the server: memory of a merge that combines means
    ├── post.0                   on the server: memory of the first post
    └── release                  on the server: positions of the last release

A part sees its own arrays and returns new ones. The holder of a tree puts the memory of each part in its place. Only a
store flattens the tree to one mapping (``flat``) and reads it back (``tree``).

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

Place = tuple[str, int | None]  # Of a child: the kind of its owner, and a number if there may be several.


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Arrays by name, and the memories of the parts inside. An empty memory is False.

    A memory never changes. ``put`` and ``plus`` return new ones, which share the unchanged entries.

    Raises:
        ValueError: a name holds a slash, which a store could not read back.
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
        """Return an array of its own. Raises KeyError if there is none."""
        return self.arrays[name]

    def get(self, name: str) -> Array | None:
        """Return an array of its own, or None."""
        return self.arrays.get(name)

    def child(self, kind: str, number: int | None = None) -> Memory:
        """Return the memory of a part inside. It is empty if the part has none."""
        return self.children.get((kind, number)) or Memory()

    def put(self, kind: str, number: int | None, memory: Memory) -> Memory:
        """Replace the memory of a part inside. An empty memory leaves no trace."""
        others = {place: child for place, child in self.children.items() if place != (kind, number)}
        return Memory(self.arrays, {**others, (kind, number): memory} if memory else others)

    def plus(self, arrays: Mapping[str, Array]) -> Memory:
        """Add arrays of its own, or replace those of the same names."""
        return Memory({**self.arrays, **arrays}, self.children)


def flat(memory: Memory) -> dict[str, Array]:
    """List all arrays of a tree by their paths, for a store: ``"stage.1/last"``."""
    out = dict(memory.arrays)
    for (kind, number), child in memory.children.items():
        place = kind if number is None else f"{kind}.{number}"
        out.update({f"{place}/{path}": x for path, x in flat(child).items()})
    return out


def tree(arrays: Mapping[str, Array]) -> Memory:
    """Rebuild a tree from paths. Inverse of ``flat``.

    Raises:
        ValueError: a path that ``flat`` does not write.
    """
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
