"""What does not compose soundly is refused with its code, the reason, and the fix, before any data exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan

import pytest

from edgewise.codecs.feedback import feedback
from edgewise.codecs.low_rank import low_rank
from edgewise.codecs.quantize import quantize
from edgewise.codecs.random_k import random_k
from edgewise.codecs.rotate import rotate
from edgewise.codecs.segments import segments
from edgewise.codecs.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.codecs.wrap import wrap
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge, Pipeline, Post, Stage, pipeline
from edgewise.core.vector import Spec
from edgewise.merges.plain import plain_sum, ring_sum
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.strategies.fedopt import fedadam, fedavg, fedavgm
from edgewise.strategies.fedprox import fedprox

SPEC = Spec.of([("layers.0.q_proj", (10, 30), "float32"), ("layers.1.q_proj", (200,), "float32")])


def build(stages: Sequence[Stage], merge: Merge | None = None, posts: Sequence[Post] = ()) -> Pipeline:
    return pipeline(Space(SPEC.dim, Quorum(2, 10), universe=SPEC.dim), stages, merge or plain_sum(), posts)


def ring(bits: int = 8) -> list[Stage]:
    return [clip(1.0), quantize(bits, "shared"), wrap(16)]


COMPOSITIONS: list[tuple[str, str, Callable[[], object]]] = [
    ("E-WEIGHT", "give a cap", lambda: weigh(inf)),
    ("E-WEIGHT", "give a cap", lambda: weigh(nan)),
    ("E-WEIGHT", "give a cap", lambda: weigh(0.0)),
    ("E-WEIGHT", "give a cap", lambda: weigh(-1.0)),
    ("E-WEIGHT", "give a cap", lambda: weigh(1e12)),
    ("E-WEIGHT", "leave out weigh", lambda: build([clip(1.0), weigh(1.0)], posts=[noise(1.0)])),
    ("E-ORDER", "unbiased = false", lambda: build([feedback([random_k(0.1)])])),
    ("E-ORDER", "unbiased = false", lambda: build([feedback([clip(1.0), random_k(0.1), quantize(4)])])),
    ("E-ORDER", "keep one weigh", lambda: build([weigh(1.0), weigh(1.0)])),
    ("E-ORDER", "put weigh before", lambda: build([feedback([weigh(1.0), top_k(0.1)])])),
    ("E-ORDER", "inside feedback", lambda: build([random_k(0.1), feedback([quantize(4)])])),
    ("E-ORDER", "inside feedback", lambda: build([top_k(0.1), feedback([quantize(4)])])),
    ("E-ORDER", "keep one", lambda: build([feedback([feedback([quantize(4)])])])),
    ("E-ORDER", "put it first", lambda: build([random_k(0.1), segments(SPEC, ["*"])])),
    ("E-ORDER", "put it first", lambda: build([top_k(1.0), segments(SPEC, ["*"])])),
    ("E-ORDER", "first", lambda: build([top_k(0.1), random_k(0.1)])),
    ("E-ORDER", "first", lambda: build([top_k(0.1), rotate()])),
    ("E-ORDER", "keep one rotate", lambda: build([rotate(), rotate()])),
    ("E-ORDER", "inside feedback", lambda: build([rotate(), feedback([quantize(4)])])),
    ("E-ORDER", "put it first", lambda: build([rotate(), segments(SPEC, ["*"])])),
    ("E-ORDER", "put rotate before it", lambda: build([quantize(2, "eden")])),
    ("E-ORDER", "put rotate before it", lambda: build([rotate(), top_k(0.1), quantize(2, "eden")])),
    ("E-ORDER", "before rotate", lambda: build([rotate(), random_k(0.1), quantize(2, "eden")])),
    ("E-NO-BOUND", "clamp or clip", lambda: build([quantize(1, "shared")])),
    ("E-NOT-SUMMABLE", "shared", lambda: build([rotate(), quantize(1, "eden"), wrap(16)])),
    ("E-NOT-SUMMABLE", "shared", lambda: build([quantize(1, "sign"), wrap(16)])),
    ("E-ORDER", "before what selects", lambda: build([random_k(0.1), low_rank(SPEC, 1)])),
    ("E-ORDER", "before what selects", lambda: build([rotate(), low_rank(SPEC, 1)])),
    ("E-ORDER", "inside feedback", lambda: build([low_rank(SPEC, 1), feedback([quantize(4)])])),
    ("E-ORDER", "keep one", lambda: build([feedback([clip(1.0), feedback([low_rank(SPEC, 1)])])])),
    ("E-SEGMENT", "layers.1.q_proj", lambda: segments(SPEC, ["layers.1.qproj"])),
    ("E-SEGMENT", "segments are", lambda: segments(SPEC, ["zzz*"])),
    ("E-SEGMENT", "name at least one", lambda: segments(SPEC, [])),
    ("E-SPARSE-TWICE", "keep one", lambda: build([top_k(0.1), top_k(0.1)])),
    ("E-NO-BOUND", "clamp or clip", lambda: build([quantize(8, "shared")])),
    ("E-NO-BOUND", "clamp or clip", lambda: build([clip(1.0), feedback([quantize(8, "shared")])])),
    ("E-NOT-INTEGER", "quantize", lambda: build([clip(1.0), wrap(16)])),
    ("E-NOT-INTEGER", "one wrap", lambda: build([*ring(), wrap(16)])),
    ("E-NOT-INTEGER", "wrap", lambda: build([clip(1.0)], ring_sum())),
    ("E-NOT-INTEGER", "wrap", lambda: build([clip(1.0), quantize(8, "shared")], ring_sum())),
    ("E-NOT-SUMMABLE", "shared", lambda: build([quantize(8), wrap(16)])),
    ("E-TOPK-SECAGG", "random_k", lambda: build([clip(1.0), top_k(0.1), quantize(8, "shared"), wrap(16)])),
    ("E-TOPK-SECAGG", "random_k", lambda: build([top_k(0.1)], ring_sum())),
    ("E-WRAP", "wrap(12)", lambda: build([clip(1.0), quantize(8, "shared"), wrap(11)])),
    ("E-NOISE-NOCLIP", "put clip", lambda: build([], posts=[noise(1.0)])),
    ("E-NOISE-NOCLIP", "put clip", lambda: build([clip(1.0), feedback([top_k(0.1)])], posts=[noise(1.0)])),
    *[
        ("E-NOT-REAL", "before quantize", lambda s=s: build([clip(1.0), quantize(8, "shared"), s]))  # type: ignore[misc]
        for s in (
            clip(1.0),
            clamp(1.0),
            weigh(1.0),
            segments(SPEC, ["*"]),
            rotate(),
            random_k(0.1),
            top_k(0.1),
            low_rank(SPEC, 1),
            quantize(4),
            quantize(4, "shared"),
            *(quantize(bits, grid) for bits, grid in ((1, "sign"), (4, "nf4"), (2, "pair"), (2, "eden"))),
            feedback([top_k(0.1)]),
        )
    ],
]

VALUES: list[Callable[[], object]] = [
    lambda: clip(0.0),
    lambda: clip(inf),
    lambda: clip(nan),
    lambda: clamp(-1.0),
    lambda: rotate(100),
    lambda: rotate(32),
    lambda: rotate(2**21),
    lambda: random_k(0.0),
    lambda: random_k(1.5),
    lambda: top_k(nan),
    lambda: top_k(0.1, chunk=1),
    lambda: top_k(0.1, chunk=2**25),
    lambda: quantize(0),
    lambda: quantize(9),
    lambda: quantize(17, "shared"),
    lambda: quantize(5, "eden"),
    lambda: quantize(2, "sign"),
    lambda: quantize(3, "nf4"),
    lambda: quantize(4, "pair"),
    lambda: quantize(4, "other"),
    lambda: quantize(4, block=1),
    lambda: low_rank(SPEC, 0),
    lambda: low_rank(SPEC, 8),
    lambda: low_rank(SPEC, 2, "other"),
    lambda: wrap(1),
    lambda: wrap(33),
    lambda: feedback([]),
    lambda: feedback([top_k(0.1)], decay=0.0),
    lambda: feedback([top_k(0.1)], forget_after=0),
    lambda: noise(0.0),
    lambda: noise(inf),
    lambda: fedavg(0.0),
    lambda: fedavgm(1.0, momentum=1.5),
    lambda: fedadam(tau=0.0),
    lambda: fedadam(beta2=2.0),
    lambda: fedprox(0.0),
]


@pytest.mark.parametrize(
    ("code", "fix", "make"), COMPOSITIONS, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(COMPOSITIONS)]
)
def test_refused(code: str, fix: str, make: Callable[[], object]) -> None:
    with pytest.raises(CompositionError) as caught:
        make()
    assert caught.value.code == code
    assert fix in caught.value.fix
    assert str(caught.value).startswith(f"{code}: ")


@pytest.mark.parametrize("make", VALUES, ids=range(len(VALUES)))
def test_values_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert caught.value.code == "E-VALUE"
    assert caught.value.fix


def test_bits_that_a_grid_lacks_are_answered_with_those_there_are() -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(8, "sign")
    for has in ("block: 1 to 8", "shared: 1 to 16", "eden: 1 to 4", "sign: 1;", "nf4: 4", "pair: 2"):
        assert has in caught.value.fix


def test_the_smallest_ring_that_is_offered_is_accepted() -> None:
    assert build([clip(1.0), quantize(8, "shared"), wrap(12)], ring_sum()).encoded.modulus == 4096


def test_noise_behind_a_clip_inside_feedback_is_accepted() -> None:
    pipe = build([feedback([clip(2.0), random_k(0.1, unbiased=False)])], posts=[noise(0.5)])
    assert pipe.total.noise_std == pytest.approx(1.0)
