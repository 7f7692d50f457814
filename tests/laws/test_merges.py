"""Laws of all merges of the catalogue: each keeps the promises of a sum, through the pipeline that it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.errors import CompositionError, DecodeError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Aggregate, Merge, Stage, Sum
from edgewise.core.vector import Vector
from edgewise.merges.centred_clip import centred_clip
from edgewise.merges.fltrust import fltrust
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.merges.robust_mean import robust_mean
from edgewise.merges.screened import screened
from edgewise.plan.catalogue import BUILT_IN
from edgewise.privacy.clip import clamp, clip
from edgewise.secagg.merge import grouped, secure_sum, shared_sum

DIM, N = 40, 9
START = Space(DIM, Quorum(3, N), head=("loss",), head_l2=20.0)
BOUND = 4.0
# One of each, by the name that a recipe has for it; add a line for a new merge.
MERGES: dict[str, Merge] = {
    "sum": plain_sum(),
    "robust_mean": robust_mean(1),
    "centred_clip": centred_clip(1),
    "screened": screened(1),
    "fltrust": fltrust("device-0"),
    "secure_sum": secure_sum(),
    "shared_sum": shared_sum(),
    "grouped": grouped(3),
}
every = pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
in_any_order = pytest.mark.parametrize(
    "merge", [m for m in MERGES.values() if not m.blind or m.combine is None], ids=lambda m: m.name
)


def pipe_of(merge: Merge) -> Pipeline:
    grid: list[Stage] = [clip(100.0), clamp(BOUND), quantize(12, "shared"), wrap()]
    return pipeline(START, grid if merge.blind else [], merge)


def turn(device: int = 0) -> Turn:
    return Turn(0, root(1), derive(root(2), device))


def updates(n: int, seed: int = 0) -> list[Vector]:
    return list(np.random.default_rng(seed).uniform(-BOUND, BOUND, (n, DIM)).astype(np.float32))


def sent(pipe: Pipeline, xs: Sequence[Vector]) -> list[Payload]:
    return [pipe.encode(x, {"loss": float(i)}, 1.0, pipe.init(), turn(i))[0] for i, x in enumerate(xs)]


def added(pipe: Pipeline, payloads: Sequence[Payload], devices: Sequence[int] = range(N)) -> Sum:
    total = pipe.start_sum()
    for payload, device in zip(payloads, devices, strict=False):
        total = pipe.add(total, payload, replace(turn(), device=f"device-{device}"))
    return total


def released(pipe: Pipeline, total: Sum) -> Aggregate:
    return pipe.release(total, turn(), root(3), pipe.start_memory())[0]


@every
def test_the_mean_is_that_of_the_devices(merge: Merge) -> None:
    """A sum releases the mean, to half a unit of the grid. A rule between groups releases a value among their means."""
    pipe, xs = pipe_of(merge), updates(N)
    found = released(pipe, added(pipe, sent(pipe, xs)))
    assert found.n == N
    step = pipe.encoded.grid.scale if merge.blind else 1e-6
    if merge.combine is None:
        np.testing.assert_allclose(found.mean, np.mean(xs, axis=0), atol=step)
        assert found.head["loss"] == pytest.approx(np.mean(range(N)), rel=1e-8)
    else:
        groups = merge.groups if merge.blind else N  # A rule for what the server sees has a group for each device.
        rows = np.array([np.mean(xs[i::groups], axis=0) for i in range(groups)])
        assert (found.mean >= rows.min(0) - step).all()
        assert (found.mean <= rows.max(0) + step).all()


@in_any_order
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(N)))
def test_the_order_of_arrival_changes_no_bit(merge: Merge, order: list[int]) -> None:
    """The numbers are of all sizes, so that a sum of floats would depend on the order."""
    xs = [x * np.float32(10.0 ** (i - N + 1)) for i, x in enumerate(updates(N))]
    pipe = pipe_of(merge)
    payloads = sent(pipe, xs)
    one, other = released(pipe, added(pipe, payloads)), released(pipe, added(pipe, [payloads[i] for i in order], order))
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.head == other.head


def spoiled(payload: Payload) -> list[tuple[Payload, type[Exception]]]:
    """List payloads that no honest device sends: a head that is not finite or too large, a body of another space."""
    bad: list[tuple[Payload, type[Exception]]] = [
        (payload.but(head=np.array([value])), DecodeError) for value in (np.nan, np.inf, 2.0**80)
    ]
    if payload.body.dtype == np.uint32:
        return [*bad, (payload.but(body=np.full(DIM, 2**32 - 1, np.uint32)), DecodeError)]
    for value in (np.nan, np.inf, -np.inf, 2.0**22, -1e30):
        body = payload.body.copy()
        body[-1] = value
        bad.append((payload.but(body=body), DecodeError))
    return bad


@every
def test_a_refused_contribution_changes_nothing(merge: Merge) -> None:
    pipe = pipe_of(merge)
    payloads = sent(pipe, updates(N - 1))
    want = released(pipe, added(pipe, payloads))
    for bad, error in [*spoiled(payloads[0]), (payloads[0].but(body=payloads[0].body[:3]), ValueError)]:
        total = added(pipe, payloads[:4])
        with pytest.raises(error):
            pipe.add(total, bad, turn())
        for payload in payloads[4:]:
            total = pipe.add(total, payload, turn())
        found = released(pipe, total)
        assert found.mean.tobytes() == want.mean.tobytes()
        assert (found.head, found.n) == (want.head, want.n)


@every
def test_the_largest_sum_fits_and_one_more_is_refused(merge: Merge) -> None:
    pipe = pipe_of(merge)
    for sign in (1.0, -1.0):
        x = np.full(DIM, sign * BOUND, np.float32)
        payloads = sent(pipe, [x] * N)
        found = released(pipe, total := added(pipe, payloads))
        np.testing.assert_allclose(found.mean, x, rtol=1e-3)
    if merge.combine is None or not merge.blind:  # the quorum of groups is of one group
        with pytest.raises(ValueError, match=r"n_max|limit|more than"):
            pipe.add(total, payloads[0], turn())


@every
def test_nothing_cannot_be_released(merge: Merge) -> None:
    pipe = pipe_of(merge)
    with pytest.raises(ValueError, match="nothing to release"):
        released(pipe, pipe.start_sum())


@every
def test_what_it_says_of_itself(merge: Merge) -> None:
    total = pipe_of(merge).totals[0]
    assert merge.says(total)
    assert total.visible == (not merge.blind)


@every
def test_a_blind_merge_refuses_what_it_cannot_add(merge: Merge) -> None:
    """Blind merges refuse reals and supports that devices choose. A visible merge takes both."""
    if merge.blind:
        with pytest.raises(CompositionError, match="E-NOT-INTEGER"):
            pipeline(START, [clip(1.0)], merge)
    else:
        assert (pipeline(START, [clip(1.0)], merge).total.sensitivity < np.inf) == (merge.combine is None)


def test_every_merge_of_the_catalogue_is_under_these_laws() -> None:
    assert set(MERGES) == set(BUILT_IN.merges), "add the new merge to MERGES"


def test_heads_are_summed_exactly() -> None:
    """1e16 and -1e16 leave the 1.0 between them whole. No metric needs more."""
    merge, bare = plain_sum(), Space(DIM, Quorum(2, 16))
    acc: Any = merge.init(bare)
    for v in (1e16, 1.0, -1e16, 5e-324):
        acc = merge.add(acc, Payload(np.zeros(DIM, np.float32), np.array([v])), bare)
    assert merge.finish(acc, bare, False).head.tolist() == [1.0]


def test_parts_of_a_sum_can_be_added_elsewhere() -> None:
    """Two halves of the contributions, summed apart, add up to the sum of all, bit by bit."""
    for merge in (plain_sum(), ring_sum()):
        pipe = pipe_of(merge)
        payloads = sent(pipe, updates(N))
        whole, left, right = (added(pipe, p).acc for p in (payloads, payloads[:4], payloads[4:]))
        modulus = pipe.encoded.grid.modulus
        together = left.body + right.body
        assert (whole.body == (together % modulus if modulus else together)).all()
