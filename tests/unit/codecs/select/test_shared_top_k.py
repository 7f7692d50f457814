"""Shared positions: announced ones, drawn ones, and announcements that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.shared_top_k import shared_top_k
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec, Vector
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy.clip import clip

DIM = 100
GOLDEN = [0, 26, 30, 33, 50, 51, 53, 92, 93, 99]
SPEC = Spec.of([("w", (DIM,), "float32")])
SPACE = Space(DIM, Quorum(1, 8), l2=3.0, linf=2.0)
X = np.arange(1, DIM + 1, dtype=np.float32)  # every value names its position


def _turn(support: object = None, round: int = 4, key: int = 1) -> Turn:
    at = None if support is None else np.array(support, np.int64)
    return Turn(round, root(key), root(2), at)


def _sent(stage: Stage, turn: Turn, spec: Spec = SPEC) -> list[int]:
    x = np.arange(1, spec.dim + 1, dtype=np.float32)
    payload, _ = stage.encode(Payload(x, np.zeros(0)), Memory(), SPACE.but(dim=spec.dim), turn)
    return [int(v) - 1 for v in payload.body]


def test_space() -> None:
    out = shared_top_k(SPEC, 0.2).infer(SPACE)
    assert (out.dim, out.universe, out.announced, out.l2, out.linf) == (20, 20, 16, 3.0, 2.0)
    assert (out.summable, out.unbiased, out.moving, out.sparse, out.gain) == (True, False, True, False, 1.0)
    whole = shared_top_k(SPEC, 1.0).infer(SPACE)
    assert (whole.dim, whole.announced, whole.moving, whole.unbiased) == (DIM, 0, False, True)
    assert shared_top_k(SPEC, 0.01).infer(SPACE).announced == 0, "one coordinate always explores"
    assert shared_top_k(SPEC, 0.2, explore=1.0).infer(SPACE).announced == 0


@given(st.integers(1, 60), st.data())
def test_the_announced_travel_and_the_rest_is_drawn_from_the_others(dim: int, data: st.DataObject) -> None:
    spec = Spec.of([("w", (dim,), "float32")])
    stage = shared_top_k(spec, data.draw(st.floats(0.02, 1.0)), data.draw(st.floats(0.02, 1.0)))
    space = stage.infer(SPACE.but(dim=dim))
    announced = sorted(data.draw(st.sets(st.integers(0, dim - 1), max_size=space.announced)))
    sent = _sent(stage, _turn(announced), spec)
    assert sent == sorted(set(sent))
    assert len(sent) == space.dim
    assert set(announced) <= set(sent) <= set(range(dim))


def test_before_the_first_release_all_are_drawn() -> None:
    stage = shared_top_k(SPEC, 0.2)
    assert _sent(stage, _turn()) == _sent(stage, _turn([]))
    assert _sent(stage, _turn()) != _sent(stage, _turn(round=5)), "anew each round"
    assert _sent(stage, _turn()) != _sent(stage, _turn(key=9)), "from the public key"
    private = Turn(4, root(1), root(99))
    assert _sent(stage, _turn()) == _sent(stage, private), "from nothing private"


def test_golden_positions() -> None:
    """Devices of different versions must send the same coordinates."""
    assert _sent(shared_top_k(SPEC, 0.1, explore=0.5), _turn([0, 50, 51, 99])) == GOLDEN


@pytest.mark.slow
def test_the_others_are_drawn_uniformly() -> None:
    stage, support = shared_top_k(SPEC, 0.3), [*range(10, 30), 98, 99]
    counts = np.zeros(DIM)
    for round in range(2000):
        counts[_sent(stage, _turn(support, round))] += 1
    assert (counts[support] == 2000).all()
    others = np.delete(counts, support)
    expected = 2000 * 8 / 78
    assert np.abs(others - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "support",
    [range(17), [3, 3], [5, 4], [-1, 4], [4, DIM]],
    ids=["too many", "twice", "falling", "negative", "outside"],
)
def test_an_announcement_that_no_server_makes_is_refused(support: object) -> None:
    with pytest.raises(DecodeError) as caught:
        _sent(shared_top_k(SPEC, 0.2), _turn(list(support)))  # type: ignore[call-overload]
    assert caught.value.code == "E-FRAME"


def test_one_support_does_not_serve_another() -> None:
    """The cache distinguishes keys and supports."""
    stage = shared_top_k(SPEC, 0.1)
    one, two = _sent(stage, _turn([1, 2, 3])), _sent(stage, _turn([1, 2, 4]))
    assert 3 in one
    assert 4 in two
    assert one != two
    assert _sent(stage, _turn([1, 2, 3])) == one


def test_whole_is_the_identity() -> None:
    stage = shared_top_k(SPEC, 1.0)
    payload, _ = stage.encode(Payload(X, np.zeros(0)), Memory(), SPACE, _turn())
    assert payload.body is X
    assert stage.decode(payload, SPACE, _turn()).body is X


def test_decoding_puts_back_what_was_sent() -> None:
    stage, turn = shared_top_k(SPEC, 0.2), _turn([7, 70])
    payload, _ = stage.encode(Payload(X, np.zeros(0)), Memory(), SPACE, turn)
    back = stage.decode(payload, SPACE, turn).dense(DIM).body
    sent = _sent(stage, turn)
    assert back[sent].tolist() == X[sent].tolist()
    assert np.count_nonzero(back) == 20


def _follow(rounds: int, explore: float) -> Vector:
    """Run one device with feedback. The server announces the largest coordinates of each release."""
    stage = shared_top_k(SPEC, 0.2, explore)
    pipe = pipeline(SPACE, [feedback([stage])], plain_sum())
    target = np.where(np.arange(DIM) % 10 == 0, 3.0, 0.1).astype(np.float32)
    w, memory, support = np.zeros(DIM, np.float32), pipe.init(), np.zeros(0, np.int64)
    for round in range(rounds):
        turn = Turn(round, root(1), root(2), support)
        payload, memory = pipe.encode(np.float32(0.2) * (target - w), {}, 1.0, memory, turn)
        mean = pipe.release(pipe.add(pipe.start_sum(), payload, turn), turn, root(3), Memory())[0].mean
        order = np.argsort(-np.abs(mean), kind="stable")[: pipe.encoded.announced]
        support = np.sort(order[mean[order] != 0])
        w = w + mean
    return np.abs(w - target)


def test_exploration_finds_what_is_large() -> None:
    """A tenth of the coordinates is large. A fifth travels, of which a fifth is drawn."""
    assert _follow(60, 0.2)[::10].max() < 0.3


def test_blind_and_visible_agree_with_a_support() -> None:
    means = []
    for merge in (ring_sum(), plain_sum()):
        stages = [clip(1.0), shared_top_k(SPEC, 0.3), quantize(8, "shared"), wrap(12)]
        pipe = pipeline(SPACE, stages, merge)
        total = pipe.start_sum()
        for device in range(3):
            x = np.random.default_rng(device).standard_normal(DIM).astype(np.float32)
            turn = Turn(1, root(1), root(device), np.array([2, 3, 97]))
            total = pipe.add(total, pipe.encode(x, {}, 1.0, Memory(), turn)[0], turn)
        means.append(pipe.release(total, _turn([2, 3, 97], 1), root(5), Memory())[0].mean)
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)
    assert np.flatnonzero(means[0]).size > 20
