"""Memory tree of pipeline parts: parts stay separate, and a store reads back everything it wrote."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core import memory as module
from edgewise.core.memory import Memory, flat, tree

NAMES = st.sampled_from(["residual", "last", "g"])
LEAVES = st.builds(Memory, st.dictionaries(NAMES, st.integers(0, 9).map(np.full(1, 0).__add__), max_size=2))
PLACES = st.tuples(st.sampled_from(["stage", "post", "release"]), st.none() | st.integers(0, 12))


def planted(children: dict[module.Place, Memory]) -> Memory:
    memory = Memory()
    for (kind, number), child in children.items():
        memory = memory.put(kind, number, child)
    return memory


TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(PLACES, inner, max_size=3).map(planted), max_leaves=6)


def plain(memory: Memory) -> object:
    return (
        {k: x.tolist() for k, x in memory.arrays.items()},
        {place: plain(child) for place, child in memory.children.items()},
    )


@given(TREES)
def test_a_store_gives_back_the_same_tree(memory: Memory) -> None:
    assert plain(tree(flat(memory))) == plain(memory)
    assert bool(flat(memory)) == bool(memory)


@given(TREES, PLACES, LEAVES)
def test_a_part_sees_its_own_and_changes_no_other(memory: Memory, place: module.Place, new: Memory) -> None:
    before = plain(memory)
    after = memory.put(*place, new)
    assert plain(memory) == before, "a memory never changes"
    assert plain(after.child(*place)) == plain(new)
    assert all(after.child(*p) is child for p, child in memory.children.items() if p != place), "nothing is copied"
    assert after.arrays is memory.arrays


def test_the_page_is_true() -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
