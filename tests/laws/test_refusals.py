"""Refusals of chains that do not compose soundly: each has its code, the reason and the fix, before any data exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan

import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.ladder import ladder
from edgewise.codecs.project.low_rank import low_rank
from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.project.sketch import sketch
from edgewise.codecs.quantize.mixed import mixed
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.segments import segments
from edgewise.codecs.select.shared_top_k import shared_top_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge, Post, Stage
from edgewise.core.vector import Spec
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.strategies.fedopt import fedadam, fedavg, fedavgm
from edgewise.strategies.fedprox import fedprox
from edgewise.strategies.zeroth_order import zeroth_order

SPEC = Spec.of([("layers.0.q_proj", (10, 30), "float32"), ("layers.1.q_proj", (200,), "float32")])


def build(stages: Sequence[Stage], merge: Merge | None = None, posts: Sequence[Post] = ()) -> Pipeline:
    return pipeline(Space(SPEC.dim, Quorum(2, 10)), stages, merge or plain_sum(), posts)


def mirrored(stages: Sequence[Stage], posts: Sequence[Post] = ()) -> Pipeline:
    return pipeline(Space(SPEC.dim, Quorum(2, 10), population=10), stages, plain_sum(), posts)


def ring(bits: int = 8) -> list[Stage]:
    return [clip(1.0), quantize(bits, "shared"), wrap(16)]


def grown(inner: Sequence[Stage], form: str) -> Space:
    start = Space(SPEC.dim, Quorum(2, 10), population=10)
    return feedback(inner, form=form).infer(start)


COMPOSITIONS: list[tuple[str, str, Callable[[], object]]] = [
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
    ("E-ORDER", "before it", lambda: build([feedback([segments(SPEC, ["*"], cycle=2), top_k(0.1)])])),
    ("E-COMBO", "population", lambda: build([feedback([top_k(0.1)], form="ef21")])),
    ("E-COMBO", "leave out weigh", lambda: mirrored([weigh(1.0), feedback([top_k(0.1)], form="ef21")])),
    (
        "E-ORDER",
        "leave out the noise",
        lambda: mirrored([feedback([clip(1.0), top_k(0.1)], form="ef21")], [noise(1.0)]),
    ),
    ("E-ORDER", "put segments before", lambda: build([feedback([segments(SPEC, ["layers.0.*"]), top_k(0.1)])])),
    ("E-ORDER", "before low_rank", lambda: build([low_rank(SPEC, 1), clip(1.0)])),
    ("E-ORDER", "before low_rank", lambda: build([low_rank(SPEC, 1), clamp(1.0)])),
    ("E-ORDER", "first", lambda: build([top_k(0.1), rotate()])),
    ("E-ORDER", "keep one rotate", lambda: build([rotate(), rotate()])),
    ("E-ORDER", "inside feedback", lambda: build([rotate(), feedback([quantize(4)])])),
    ("E-ORDER", "put it first", lambda: build([rotate(), segments(SPEC, ["*"])])),
    ("E-ORDER", "put rotate before it", lambda: build([quantize(2, "eden")])),
    *[
        ("E-ORDER", fix, lambda s=s: build(s))  # type: ignore[misc]
        for s in ([rotate(), top_k(0.1), quantize(2, "eden")], [top_k(0.1), rotate(), quantize(2, "eden")])
        for fix in ('grid = "pair"', "random_k or shared_top_k")
    ],
    *[
        ("E-COMBO", "3 bits or more", lambda s=s, f=f: grown(s, f))  # type: ignore[misc]
        for f in ("ef14", "ef21", "ef21_sgdm")
        for s in (
            [quantize(1)],
            [quantize(2)],
            [random_k(0.1, unbiased=False), quantize(2)],
            [top_k(0.01), quantize(1)],
            [top_k(0.5), quantize(2, block=256)],
            [ladder([[quantize(8)], [quantize(2)]])],
        )
    ],
    ("E-ORDER", "before rotate", lambda: build([rotate(), random_k(0.1), quantize(2, "eden")])),
    ("E-NO-BOUND", "clamp or clip", lambda: build([quantize(1, "shared")])),
    ("E-NOT-SUMMABLE", "shared", lambda: build([rotate(), quantize(1, "eden"), wrap(16)])),
    ("E-NOT-SUMMABLE", "shared", lambda: build([quantize(1, "sign"), wrap(16)])),
    ("E-ORDER", "before stages that choose", lambda: build([random_k(0.1), low_rank(SPEC, 1)])),
    ("E-ORDER", "before stages that choose", lambda: build([rotate(), low_rank(SPEC, 1)])),
    ("E-ORDER", "inside feedback", lambda: build([low_rank(SPEC, 1), feedback([quantize(4)])])),
    ("E-ORDER", "keep one", lambda: build([feedback([clip(1.0), feedback([low_rank(SPEC, 1)])])])),
    ("E-SEGMENT", "layers.1.q_proj", lambda: segments(SPEC, ["layers.1.qproj"])),
    ("E-SEGMENT", "segments are", lambda: segments(SPEC, ["zzz*"])),
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
    ("E-RUNG", 'codec = "stages"', lambda: build([ladder([[quantize(8)], [quantize(4)]])], ring_sum())),
    ("E-RUNG", 'codec = "stages"', lambda: build([feedback([ladder([ring(), ring(4)])])], ring_sum())),
    ("E-RUNG", "one codec", lambda: build([clip(1.0), ladder([ring()[1:2]]), wrap(16)], ring_sum())),
    ("E-ORDER", "before the ladder", lambda: build([ladder([[]]), clip(1.0)])),
    ("E-ORDER", "before the ladder", lambda: build([ladder([[]]), feedback([top_k(0.1)])])),
    ("E-ORDER", "before the ladder", lambda: build([ladder([[]]), ladder([[]])])),
    ("E-ORDER", "weigh before", lambda: build([ladder([[], [weigh(1.0)]])])),
    ("E-ORDER", "feedback around", lambda: build([ladder([[feedback([top_k(0.1)])], []])])),
    ("E-ORDER", "before stages that choose", lambda: build([top_k(0.1), mixed(SPEC, 3.0)])),
    ("E-ORDER", "before stages that choose", lambda: build([random_k(0.5), mixed(SPEC, 3.0)])),
    ("E-ORDER", "before stages that choose", lambda: build([segments(SPEC, ["layers.1*"]), mixed(SPEC, 3.0)])),
    ("E-WRAP", "wrap(12)", lambda: build([clip(1.0), quantize(8, "shared"), wrap(11)])),
    ("E-NOISE-NOCLIP", "put clip", lambda: build([], posts=[noise(1.0)])),
    ("E-NORM-AFTER", "put clip", lambda: build([clip(1.0), feedback([top_k(0.1)])], posts=[noise(1.0)])),
    ("E-ORDER", "before every stage", lambda: build([random_k(1 / 2), shared_top_k(SPEC, 0.1)])),
    ("E-ORDER", "before every stage", lambda: build([top_k(1.0), shared_top_k(SPEC, 0.1)])),
    ("E-ORDER", "before every stage", lambda: build([sketch(4.0), shared_top_k(SPEC, 0.1)])),
    ("E-ORDER", "before every stage", lambda: build([segments(SPEC, ["layers.1*"]), shared_top_k(SPEC, 0.1)])),
    ("E-ORDER", "keep one", lambda: build([shared_top_k(SPEC, 0.1), shared_top_k(SPEC, 0.1)])),
    ("E-ORDER", "inside feedback", lambda: build([shared_top_k(SPEC, 0.1), feedback([quantize(4)])])),
    ("E-ORDER", "leave out", lambda: build([shared_top_k(SPEC, 0.5), sketch(4.0)])),
    ("E-ORDER", "without feedback", lambda: build([feedback([sketch(4.0)])])),
    ("E-ORDER", "leave out", lambda: build([random_k(0.5), sketch(4.0)])),
    ("E-ORDER", "leave out", lambda: build([top_k(0.5), sketch(4.0)])),
    ("E-ORDER", "keep one", lambda: build([sketch(4.0), sketch(4.0)])),
    ("E-ORDER", "put it first", lambda: build([sketch(4.0), segments(SPEC, ["*"])])),
    ("E-NO-BOUND", "clamp or clip", lambda: build([clip(1.0), sketch(4.0), quantize(8, "shared"), wrap(16)])),
    ("E-NORM-AFTER", "put clip", lambda: build([clip(1.0), sketch(4.0)], posts=[noise(1.0)])),
    ("E-VALUE", "larger updates", lambda: pipeline(Space(5, Quorum(1, 1)), [sketch(2.0)], plain_sum())),
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
            shared_top_k(SPEC, 0.1),
            sketch(4.0),
            low_rank(SPEC, 1),
            quantize(4),
            quantize(4, "shared"),
            *(quantize(bits, grid) for bits, grid in ((1, "sign"), (4, "nf4"), (2, "pair"), (2, "eden"))),
            feedback([top_k(0.1)]),
            mixed(SPEC, 3.0),
            ladder([[]]),
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
    lambda: shared_top_k(SPEC, 0.0),
    lambda: shared_top_k(SPEC, 1.5),
    lambda: shared_top_k(SPEC, 0.1, explore=0.0),
    lambda: shared_top_k(SPEC, 0.1, explore=1.1),
    lambda: weigh(inf),
    lambda: weigh(nan),
    lambda: weigh(0.0),
    lambda: weigh(-1.0),
    lambda: weigh(1e12),
    lambda: segments(SPEC, []),
    lambda: sketch(1.0),
    lambda: sketch(inf),
    lambda: sketch(4.0, rows=2),
    lambda: sketch(4.0, rows=17),
    lambda: sketch(4.0, keep=0.0),
    lambda: sketch(4.0, momentum=1.0),
    lambda: sketch(4.0, floor=nan),
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
    lambda: mixed(SPEC, 0.0),
    lambda: mixed(SPEC, 9.0),
    lambda: mixed(SPEC, nan),
    lambda: ladder([]),
    lambda: feedback([]),
    lambda: feedback([top_k(0.1)], decay=0.0),
    lambda: feedback([top_k(0.1)], forget_after=0),
    lambda: segments(SPEC, ["*"], cycle=0),
    lambda: segments(SPEC, ["*"], cycle=3),
    lambda: segments(SPEC, ["layers.0.*"], cycle=2),
    lambda: segments(SPEC, ["*"], cycle=2, phase=2),
    lambda: segments(SPEC, ["*"], phase=-1),
    lambda: feedback([top_k(0.1)], residual="float16"),
    lambda: feedback([top_k(0.1)], form="ef22"),
    lambda: feedback([top_k(0.1)], form="ef21_sgdm", eta=0.0),
    lambda: noise(0.0),
    lambda: noise(inf),
    lambda: fedavg(0.0),
    lambda: fedavgm(1.0, momentum=1.5),
    lambda: fedadam(tau=0.0),
    lambda: fedadam(beta2=2.0),
    lambda: fedprox(0.0),
    lambda: zeroth_order(15),
    lambda: zeroth_order(65537),
    lambda: zeroth_order(eps=0.0),
    lambda: zeroth_order(lr=nan),
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


@pytest.mark.quick(sample=30)
@pytest.mark.parametrize("make", VALUES, ids=range(len(VALUES)))
def test_values_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert caught.value.code == "E-VALUE"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("bits", "grid", "has"), [(8, "sign", "bits are 1."), (9, "block", "are 1 to 8."), (5, "eden", "are 1 to 4.")]
)
def test_bits_that_a_grid_lacks_are_answered_with_its_own(bits: int, grid: str, has: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(bits, grid)
    assert caught.value.fix.endswith(has)


@pytest.mark.parametrize("grid", ["eden", "shared"])
def test_a_block_that_a_grid_does_not_use(grid: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(4, grid, block=64)
    assert (caught.value.code, caught.value.fix) == ("E-COMBO", "remove block.")


def test_eden_is_told_its_bits() -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(grid="eden")
    assert (caught.value.code, caught.value.fix) == ("E-MISSING", "choose 1 to 4.")


@pytest.mark.parametrize(("grid", "bits"), [("block", 8), ("shared", 8), ("sign", 1), ("pair", 2), ("nf4", 4)])
def test_the_bits_of_a_grid_are_its_own(grid: str, bits: int) -> None:
    assert build([clip(1.0), quantize(grid=grid)]).encoded.grid.bits == bits


def test_a_limit_is_said_with_the_key_and_the_value() -> None:
    with pytest.raises(RecipeError, match=r"E-VALUE: top_k: fraction is 1\.5, must be above 0 and at most 1\."):
        top_k(1.5)


def test_the_smallest_ring_that_is_offered_is_accepted() -> None:
    assert build([clip(1.0), quantize(8, "shared"), wrap(12)], ring_sum()).encoded.grid.modulus == 4096


def test_noise_behind_a_clip_inside_feedback_is_accepted() -> None:
    pipe = build([feedback([clip(2.0), random_k(0.1, unbiased=False)])], posts=[noise(0.5)])
    assert pipe.total.noise_std == pytest.approx(1.0, rel=2e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: feedback([top_k(0.1)], form="ef21", residual="bfloat16"),
        lambda: feedback([top_k(0.1)], form="ef21_sgdm", residual="int8"),
        lambda: feedback([top_k(0.1)], form="ef21", decay=0.9),
        lambda: feedback([top_k(0.1)], form="ef21", forget_after=10),
        lambda: feedback([top_k(0.1)], form="ef21", eta=0.1),
        lambda: feedback([top_k(0.1)], eta=0.1),
    ],
)
def test_settings_that_a_form_of_feedback_cannot_have(make: Callable[[], object]) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert caught.value.code == "E-COMBO"
    assert "remove" in caught.value.fix


def test_exact_mirrors_may_be_asked_for_by_name() -> None:
    feedback([top_k(0.1)], form="ef21", residual="float32")
