"""Choice of a rung: by budget alone, on the device, one rung for a group, and one residual for all rungs."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.ladder import ladder, pick_rung, rung_bytes
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.wire import pack
from edgewise.core.errors import CompositionError, DecodeError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.merges.plain import plain_sum
from edgewise.privacy.clip import clip

DIM = 2000
START = Space(DIM, Quorum(1, 4))
RUNGS = [[], [quantize(8)], [top_k(0.1), quantize(4)], [top_k(0.01)]]
X = (np.random.default_rng(0).standard_t(3, DIM) * 0.01).astype(np.float32)
sizes = st.lists(st.floats(1, 1e7), min_size=1, max_size=14)


def turn(budget_bytes: float, round: int = 0) -> Turn:
    return Turn(round, root(1), root(2), budget_bytes=budget_bytes)


def test_by_hand() -> None:
    assert [pick_rung(b, (400.0, 100.0, 10.0)) for b in (inf, 400, 399, 100, 99, 10, 9, 0)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert pick_rung(150, (10.0, 100.0, 400.0)) == 1, "in any order"
    assert pick_rung(50, (40.0, 40.0)) == 0
    with pytest.raises(ValueError, match="pick needs"):
        pick_rung(nan, (1.0,))
    with pytest.raises(ValueError, match="pick needs"):
        pick_rung(1.0, ())


@given(sizes=sizes, budget=st.floats(0, 1e7))
def test_nothing_that_fits_is_larger(sizes: list[float], budget: float) -> None:
    chosen = sizes[pick_rung(budget, sizes)]
    fitting = [s for s in sizes if s <= budget]
    assert chosen == (max(fitting) if fitting else min(sizes))


def test_the_announced_size_decides_and_is_kept() -> None:
    pipe = pipeline(START, [feedback([ladder(RUNGS)])], plain_sum())
    announced = rung_bytes(pipe.encoded)
    assert announced[0] == 1 + 4 * DIM == pack.size_bytes(pipe.encoded)
    for rung, size in enumerate(announced):
        for budget, expected in ((size, rung), (np.nextafter(size, 0), min(rung + 1, 3))):
            payload, _ = pipe.encode(X, {}, 1.0, pipe.init(), turn(float(budget)))
            assert payload.rung == expected
        sent = len(pack.pack(pipe.encode(X, {}, 1.0, pipe.init(), turn(size))[0], pipe.encoded))
        assert sent == pytest.approx(size, rel=0.15)  # positions are an expectation


def test_one_residual_serves_all_rungs() -> None:
    """A large rung sends the part that small rungs left out. After float32 the residual is empty."""
    pipe = pipeline(
        START, [feedback([ladder(RUNGS)], residual="float32")], plain_sum()
    )  # float32 stores the residual exactly.
    memory, sent = pipe.init(), np.zeros(DIM)
    for round, budget in enumerate((0, 500, 2500, 100, inf)):
        payload, memory = pipe.encode(X, {}, 1.0, memory, turn(budget, round))
        sent += pipe.decode(pack.unpack(pack.pack(payload, pipe.encoded), pipe.encoded), turn(0, round)).body
    assert payload.rung == 0
    assert not memory.child("stage", 0)["residual"].any()
    np.testing.assert_allclose(sent, 5 * X.astype(np.float64), atol=1e-6)


def test_a_rung_that_stands_for_all_leaves_no_debt() -> None:
    """The part that top_k left out travels, stretched, with the next random share. Then the residual is empty."""
    rungs = [[random_k(0.2, each=True)], [top_k(0.01)]]
    pipe = pipeline(START, [feedback([ladder(rungs)], residual="float32")], plain_sum())
    _, memory = pipe.encode(X, {}, 1.0, pipe.init(), turn(0))
    owed = memory.child("stage", 0)["residual"].copy()
    assert np.count_nonzero(owed) == DIM - DIM // 100
    payload, memory = pipe.encode(X, {}, 1.0, memory, turn(inf, 1))
    got = pipe.decode(payload, turn(inf, 1)).dense(DIM).body
    sent = got != 0
    assert (payload.rung, np.count_nonzero(sent)) == (0, DIM // 5)
    np.testing.assert_allclose(got[sent], 5 * (X + owed)[sent], rtol=1e-6)
    assert not memory.child("stage", 0)["residual"].any()
    assert int(memory.child("stage", 0)["last"][0]) == 1


def test_stretched_rungs_need_a_memory_that_can_be_emptied() -> None:
    """A stretched choice is refused if its memory cannot empty: in ef21, without a ladder, or with much left out."""
    stretched = random_k(0.2)
    start = START.but(population=4)
    for stages, form in (
        ([ladder([[stretched], [top_k(0.01)]])], "ef21"),
        ([stretched], "ef14"),
        ([ladder([[stretched, top_k(0.1)], []])], "ef14"),  # stretched, and yet much is left out
        ([ladder([[random_k(0.01, most=20.0)], []])], "ef14"),
        ([random_k(0.5), ladder([[top_k(0.01)], []])], "ef14"),
    ):
        with pytest.raises(CompositionError, match="stretches") as caught:
            pipeline(start, [feedback(stages, form=form)], plain_sum())
        assert caught.value.code == "E-ORDER"


def test_the_fold_holds_for_every_rung() -> None:
    space = ladder([[clip(1.0)], [clip(2.0), quantize(4)], [top_k(0.5)]]).infer(START.but(l2=3.0, linf=0.5))
    assert space.l2 == max(r.l2 for r in space.rungs) > 3.0
    assert space.linf == max(r.linf for r in space.rungs) > 0.5
    assert not space.summable
    assert not space.unbiased
    assert ladder([[], [quantize(4)]]).infer(START).unbiased


def test_sparse_rungs_stay_sparse_through_decoding() -> None:
    stage = ladder(RUNGS)
    payload, _ = stage.encode(Payload(X, np.zeros(0)), Memory(), START, turn(0))
    back = stage.decode(payload, START, turn(0))
    assert back.support is not None
    assert back.support.size == DIM // 100
    assert back.rung is None


@pytest.mark.parametrize("raw", [b"", b"\x04", b"\x80", b"\x80\x00", b"\x81\x00", b"\x80\x80\x01", b"\xff\x7f"])
def test_a_rung_number_is_strict(raw: bytes) -> None:
    space = ladder([[top_k(0.01)]] * 4).infer(START)
    good = pack.pack(ladder([[top_k(0.01)]] * 4).encode(Payload(X, np.zeros(0)), Memory(), START, turn(inf))[0], space)
    assert good[0] == 0
    with pytest.raises(DecodeError):
        pack.unpack(raw + good[1:], space)
    with pytest.raises(DecodeError):
        pack.unpack(raw, space)


def test_numbers_above_127_take_two_bytes() -> None:
    stage = ladder([[top_k(0.01)]] * 129 + [[top_k(0.005)]])
    space = stage.infer(START)
    payload, _ = stage.encode(Payload(X, np.zeros(0)), Memory(), START, turn(0))
    raw = pack.pack(payload, space)
    assert payload.rung == 129
    assert raw[:2] == b"\x81\x01"
    assert pack.pack(pack.unpack(raw, space), space) == raw
    with pytest.raises(ValueError, match="no rung"):
        pack.pack(payload.but(rung=130), space)
