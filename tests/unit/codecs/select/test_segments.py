"""Groups of segments that take turns: together they are all matching segments."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs.select.segments import segment_groups, segments
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.vector import Spec

TURN = Turn(0, root(1), root(2))
KINDS = ("attn.q.weight", "attn.o.weight", "mlp.weight", "norm.weight")


def llama(layers: int, hidden: int = 8, head: int = 0) -> Spec:
    shapes = [("model.embed.weight", (head or hidden,), "float32")]
    for i in range(layers):
        shapes += [(f"model.layers.{i}.{kind}", (hidden, 1 + j), "float32") for j, kind in enumerate(KINDS)]
    return Spec.of([*shapes, ("model.norm.weight", (hidden,), "float32")])


def layer(name: str) -> str:
    return ".".join(name.split(".")[:3]) if ".layers." in name else name


@st.composite
def specs(draw: st.DrawFn) -> tuple[Spec, list[str], int]:
    """A layout, patterns that match some of it, and a cycle that it allows."""
    count = draw(st.integers(1, 24))
    names = [f"m.layers.{draw(st.integers(0, 5))}.p{i}" if draw(st.booleans()) else f"other{i}" for i in range(count)]
    spec = Spec.of([(n, (draw(st.integers(1, 500)),), "float32") for n in names])
    patterns = draw(st.sampled_from([["*"], ["m.*", names[0]], [*names[::2]]]))
    matched = sum(any(n == p or p == "*" or (p == "m.*" and n.startswith("m.")) for p in patterns) for n in names)
    patterns = [p for p in patterns if p != "m.*" or any(n.startswith("m.") for n in names)]
    return spec, patterns, draw(st.integers(1, matched))


@given(specs(), st.integers(0, 2**32))
def test_groups_are_a_partition_of_what_matches(case: tuple[Spec, list[str], int], seed: int) -> None:
    spec, names, cycle = case
    (everything,) = segment_groups(spec, names, 1)
    parts = segment_groups(spec, names, cycle)
    assert len(parts) == cycle
    assert all(parts)
    assert [s for part in parts for s in part] == list(everything), "contiguous, disjoint, complete, in order"
    x = np.random.default_rng(seed).standard_normal(spec.dim).astype(np.float32)
    start, whole = Space(spec.dim, Quorum(1, 4)), np.zeros(spec.dim, np.float32)
    for phase in range(cycle):
        stage = segments(spec, names, cycle, phase)
        sent = stage.encode(Payload(x, np.zeros(0)), Memory(), start, TURN)[0]
        after = stage.infer(start)
        assert sent.body.shape == (after.dim,)
        assert after.period == cycle
        whole += stage.decode(sent, start, TURN).body
    alone = segments(spec, names)
    want = alone.decode(alone.encode(Payload(x, np.zeros(0)), Memory(), start, TURN)[0], start, TURN).body
    np.testing.assert_array_equal(whole, want)


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 4000))
def test_no_layer_is_cut_where_there_are_enough(layers: int, cycle: int, head: int) -> None:
    spec = llama(layers, head=head)
    if cycle > layers + 2:  # embedding, layers, norm
        return
    parts = segment_groups(spec, ["*"], cycle)
    owners = Counter(name for part in parts for name in {layer(s.name) for s in part})
    assert set(owners.values()) == {1}


@pytest.mark.parametrize(("layers", "cycle"), [(4, 2), (12, 3), (32, 8)])
def test_equal_layers_make_equal_groups(layers: int, cycle: int) -> None:
    parts = segment_groups(llama(layers), ["model.layers.*"], cycle)
    assert {len({layer(s.name) for s in part}) for part in parts} == {layers // cycle}
    assert len({sum(s.size for s in part) for part in parts}) == 1


def test_with_fewer_layers_than_groups_segments_are_the_units() -> None:
    parts = segment_groups(llama(2), ["model.layers.*"], 3)
    assert [len(part) for part in parts] == [3, 3, 2]
    parts = segment_groups(llama(2), ["model.layers.*"], 8)
    assert [len(part) for part in parts] == [1] * 8


def test_the_place_nearest_to_the_share_wins_and_of_two_the_earlier() -> None:
    spec = Spec.of([(n, (size,), "float32") for n, size in zip("abcd", (1, 2, 2, 1), strict=True)])
    assert [[s.name for s in part] for part in segment_groups(spec, ["*"], 2)] == [["a", "b"], ["c", "d"]]
    spec = Spec.of([(n, (2,), "float32") for n in "abc"])
    assert [[s.name for s in part] for part in segment_groups(spec, ["*"], 2)] == [["a"], ["b", "c"]]
