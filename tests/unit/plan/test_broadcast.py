"""The way down: devices stay near the model, both ways to it give the same bytes, and nobody downloads more than it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invited import decided
from toy_recipe import make_recipe

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.errors import CompositionError, DecodeError, RecipeError, TrainingError
from edgewise.core.memory import Memory
from edgewise.core.part import part
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import ServerHalf, Stage
from edgewise.core.vector import Spec
from edgewise.drivers.workers.held_models import Following
from edgewise.engine import broadcast
from edgewise.engine.checkpoint import Change, Checkpoint, Standing
from edgewise.engine.round_states import Closed
from edgewise.merges.plain import plain_sum
from edgewise.plan.broadcast import DELTA_FRAME_BYTES
from edgewise.plan.catalogue import BUILT_IN, Extension
from edgewise.plan.compile import compile as compile_plan

DIM = 600
SPEC = Spec.of([("w", (DIM - 100,), "float32"), ("b", (100,), "float32")])
FOUR_BITS = [{"kind": "quantize", "bits": 4}]
SPARSE = [{"kind": "top_k", "fraction": 0.1}, {"kind": "quantize", "bits": 4}]
RANDOM = [{"kind": "random_k", "fraction": 0.2, "unbiased": False}, {"kind": "quantize", "bits": 8}]
CHAINS = {"quantize": FOUR_BITS, "top_k": SPARSE, "random_k": RANDOM}


def plan_of(stages, **overrides):
    return compile_plan(make_recipe({"downlink": stages, **overrides}), SPEC, 8, BUILT_IN)


def walk(plan, rounds, pipe=None, step=1.0, seed=0):
    """Downlinks of a model that moves at random: one per round, and the models."""
    draw = np.random.default_rng(seed)
    w = draw.normal(size=DIM).astype(np.float32)
    downs, models = [broadcast.start(w)], [w]
    for _ in range(rounds):
        w = (w + step * draw.normal(size=DIM)).astype(np.float32)
        downs.append(broadcast.advance(plan, pipe or plan.downlink, downs[-1], w))
        models.append(w)
    return downs, models


def lag(down, model):
    return float(np.linalg.norm(model - down.shadow))


@pytest.mark.parametrize(("name", "bound"), [("quantize", 0.25), ("top_k", 6.0), ("random_k", 4.0)])
def test_what_devices_hold_stays_near_the_model(name, bound):
    """With ||x - C(x)|| <= r ||x|| and moves of norm m, the lag is at most m r / (1 - r) for ever."""
    downs, models = walk(plan_of(CHAINS[name]), 60)
    lags = [lag(d, w) / np.sqrt(DIM) for d, w in zip(downs, models, strict=True)]
    assert lags[0] == 0.0
    assert max(lags) < bound
    assert max(lags[40:]) < 1.2 * max(lags[20:40]), "it does not grow"


@pytest.mark.parametrize("name", CHAINS)
def test_devices_catch_up_with_a_model_that_stands_still(name):
    plan = plan_of(CHAINS[name])
    downs, models = walk(plan, 1)
    down, w = downs[-1], models[-1]
    before = lag(down, w)
    for _ in range(40):
        down = broadcast.advance(plan, plan.downlink, down, w)
    assert before > 0
    assert lag(down, w) < 0.05 * before


def test_an_empty_chain_is_exact_to_the_last_bit_of_float32():
    plan = plan_of(FOUR_BITS)
    plain = pipeline(Space(DIM, Quorum(1, 1)), [], plain_sum())
    downs, models = walk(plan, 20, plain)
    for down, w in zip(downs, models, strict=True):
        np.testing.assert_allclose(down.shadow, w, rtol=0, atol=2 * np.spacing(np.abs(w).max()))


@pytest.mark.parametrize("name", CHAINS)
def test_the_same_inputs_give_the_same_bytes(name):
    one, _ = walk(plan_of(CHAINS[name]), 5)
    two, _ = walk(plan_of(CHAINS[name]), 5)
    assert [d.blob for d in one[-1].ring] == [d.blob for d in two[-1].ring]
    assert one[-1].model == two[-1].model
    other, _ = walk(plan_of(CHAINS[name], seed=1), 5)
    if name != "top_k":  # the grid is drawn from the run's key
        assert one[-1].ring[-1].blob != other[-1].ring[-1].blob


@pytest.mark.slow
@settings(max_examples=40)
@given(st.sampled_from(sorted(CHAINS)), st.integers(0, 14), st.lists(st.integers(-1, 20), min_size=1, max_size=6))
def test_nobody_downloads_more_than_a_snapshot_and_all_arrive_at_the_same_bytes(name, rounds, missed):
    plan = plan_of(CHAINS[name])
    downs, models = walk(plan, rounds)
    down = downs[-1]
    held = {f"d{i}": rounds - 1 - m for i, m in enumerate(missed) if 0 <= m < rounds}
    devices = [f"d{i}" for i in range(len(missed))]
    checkpoint = Checkpoint(rounds, plan.strategy.init(models[-1]), down=down)
    letters = decided(plan, checkpoint, {d: Standing(held=held.get(d)) for d in devices}).letters
    blobs = {vector.digest(b): b for b in letters.blobs}
    assert len(blobs) == len(letters.blobs), "nothing is published twice"
    plain = decided(plan, checkpoint, dict.fromkeys(devices, Standing())).letters
    for device in devices:
        letter = frame.load(letters.frames[device])
        assert letters.sizes[device] <= plain.sizes[device] == len(plain.frames[device]) + 4 * DIM
        assert letters.sizes[device] == len(letters.frames[device]) + sum(
            len(blobs[d]) for d in broadcast.downloads(letter)
        )
        if letter.base:
            model = downs[held[device]].shadow
            assert letter.base == downs[held[device]].model
            for digest in letter.deltas:
                model = broadcast.follow(plan.downlink, model, blobs[digest])
            assert len(letter.deltas) == rounds - held[device]
        else:
            model = vector.from_bytes(blobs[letter.model], DIM)
        assert vector.to_bytes(model) == vector.to_bytes(down.shadow)
        assert vector.digest(vector.to_bytes(model)) == letter.model


def test_the_ring_is_what_a_snapshot_is_worth_and_starts_from_its_anchor():
    plan = plan_of(FOUR_BITS)  # about 395 bytes each, 2400 a snapshot
    downs, _ = walk(plan, 12)
    for n, down in enumerate(downs):
        assert down.round == n
        assert [d.round for d in down.ring] == list(range(down.anchor_round + 1, n + 1))
        assert sum(len(d.blob) for d in down.ring) < plan.snapshot_bytes
        np.testing.assert_array_equal(down.anchor, downs[down.anchor_round].shadow)
        assert [d.base for d in down.ring] == [downs[d.round - 1].model for d in down.ring]
    assert len(downs[-1].ring) == 6


def test_a_delta_larger_than_a_snapshot_is_kept_but_nobody_is_sent_it():
    plan = plan_of(FOUR_BITS)
    plain = pipeline(Space(DIM, Quorum(1, 1)), [], plain_sum())
    downs, models = walk(plan, 3, plain)
    assert [len(d.ring) for d in downs] == [0, 1, 1, 1]
    checkpoint = Checkpoint(3, plan.strategy.init(models[-1]), down=downs[-1])
    letters = decided(plan, checkpoint, {"a": Standing(held=2)}).letters
    assert frame.load(letters.frames["a"]).base is None
    assert len(letters.blobs) == 2


def test_bytes_by_hand():
    plan = plan_of([{"kind": "quantize", "bits": 4, "block": 60}])
    downs, models = walk(plan, 2)
    payload = 2 * 10 + DIM // 2  # ten bfloat16 scales, half a byte per coordinate
    blob = downs[1].ring[0].blob
    message = frame.load(blob)
    assert len(message.payload) == payload
    assert len(blob) == pytest.approx(payload + DELTA_FRAME_BYTES, abs=8)
    assert plan.delta_bytes == payload + DELTA_FRAME_BYTES
    checkpoint = Checkpoint(2, plan.strategy.init(models[-1]), down=downs[-1])
    letters = decided(plan, checkpoint, {"a": Standing(held=1), "b": Standing(held=0), "c": Standing()}).letters
    sizes = [len(d.blob) for d in downs[-1].ring]
    assert letters.sizes == {
        "a": len(letters.frames["a"]) + sizes[1],
        "b": len(letters.frames["b"]) + sizes[0] + sizes[1],
        "c": len(letters.frames["c"]) + 4 * DIM,
    }
    assert len(letters.frames["b"]) - len(letters.frames["a"]) == 66, "one digest more"


def test_who_holds_what():
    downs, _ = walk(plan_of(FOUR_BITS), 12)
    down = downs[-1]
    lost = (("gone", "E-STALE"), ("late", "dropped"))
    met = Closed(11, True, ("new", "kept"), lost, ())
    assert broadcast.change(met, {}) == Change(("new", "kept"), ("new", "kept"), ("gone",))
    assert broadcast.change(met, {"new": 3}).versions == {"new": 3}
    assert broadcast.change(replace(met, met=False), {}) == Change((), ("new", "kept"), ("gone",))
    assert down.anchor_round == 6
    assert broadcast.deltas_since(down, 12) == broadcast.deltas_since(down, 5) == broadcast.deltas_since(down, -1) == ()
    assert [d.round for d in broadcast.deltas_since(down, 10)] == [11, 12]


def test_a_model_that_leaves_float32_is_an_error():
    plan = plan_of(FOUR_BITS)
    start = broadcast.start(np.full(DIM, -3e38, np.float32))
    with pytest.raises(TrainingError, match="E-NAN"), np.errstate(over="ignore"):
        broadcast.advance(plan, plan.downlink, start, np.full(DIM, 3e38, np.float32))


@pytest.mark.parametrize(
    ("blob", "code"),
    [
        (b"rubbish", "E-FRAME"),
        (frame.dump(frame.Probe(run="", round=0, model="")), "E-FRAME"),
        (frame.dump(frame.Delta(round=1, public=b"short", payload=b"")), "E-FRAME"),
        (frame.dump(frame.Delta(round=1, public=bytes(32), payload=b"x")), "E-PAYLOAD"),
    ],
)
def test_what_is_no_delta_is_refused(blob, code):
    with pytest.raises(DecodeError) as caught:
        broadcast.follow(plan_of(FOUR_BITS).downlink, np.zeros(DIM, np.float32), blob)
    assert caught.value.code == code


# -- what cannot stand there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "code", "said"),
    [
        ([{"kind": "weigh"}, *FOUR_BITS], "E-ORDER", "nothing to weigh"),
        ([{"kind": "feedback"}, *FOUR_BITS], "E-ORDER", "comes back by itself"),
        ([{"kind": "random_k", "fraction": 0.2}], "E-ORDER", "would grow"),
        ([{"kind": "quantize", "bits": 4, "grid": "shared"}], "E-NO-BOUND", "bound"),
        ([{"kind": "segments", "names": ["*"], "cycle": 2}, *FOUR_BITS], "E-ORDER", "never reach devices"),
        ([{"kind": "segments", "names": ["w"]}, *FOUR_BITS], "E-ORDER", "never reach devices"),
        ([{"kind": "quantize", "bits": 2}], "E-COMBO", "remembered grows"),
        (
            [{"kind": "random_k", "fraction": 0.2, "unbiased": False}, {"kind": "quantize", "bits": 1}],
            "E-COMBO",
            "grows",
        ),
        ([{"kind": "shared_top_k", "fraction": 0.2}, *FOUR_BITS], "E-ORDER", "positions of the last release"),
    ],
)
def test_refused(stages, code, said):
    with pytest.raises(CompositionError) as caught:
        plan_of(stages)
    assert caught.value.code == code
    assert said in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {"server": ServerHalf(lambda s: Memory(), lambda m, n, e, s, t: (m, e), encoded=False)},
            "memory on the server",
        ),
        ({"init": lambda space: Memory({"e": np.zeros(space.dim, np.float32)})}, "comes back by itself"),
        ({"infer": lambda space: space.but(announced=5)}, "positions of the last release"),
    ],
)
def test_stages_of_ones_own_are_refused_by_what_they_are(extra, said):
    plain = Stage("mine", lambda s: s, lambda p, m, s, t: (p, m), lambda p, s, t: p, lambda b, a: "nothing")

    @part
    def mine() -> Stage:
        return replace(plain, **extra)

    recipe = make_recipe({"downlink": [{"kind": "mine"}, *FOUR_BITS]})
    with pytest.raises(CompositionError, match=f"E-ORDER.*mine.*{said}"):
        compile_plan(recipe, SPEC, 8, BUILT_IN.extended(Extension((mine,))))


def test_what_saves_nothing_is_refused():
    with pytest.raises(RecipeError, match=r"E-COMBO.*2400") as caught:
        plan_of([{"kind": "top_k", "fraction": 1.0}])
    assert "leave out" in caught.value.fix


def test_errors_name_the_place():
    with pytest.raises(RecipeError, match=r"\[\[downlink\]\] 2"):
        plan_of([*FOUR_BITS, {"kind": "quantise"}])


def test_without_stages_there_is_no_downlink():
    plan = plan_of([])
    assert plan.downlink is None
    assert plan.delta_bytes is None
    checkpoint = Checkpoint(0, plan.strategy.init(np.ones(DIM, np.float32)))
    letters = decided(plan, checkpoint, {"a": Standing()}).letters
    assert letters.blobs == (vector.to_bytes(np.ones(DIM, np.float32)),)
    assert letters.sizes["a"] == len(letters.frames["a"]) + 4 * DIM


# -- a host's devices -------------------------------------------------------------------------------------------------


def letter_for(plan, down, model, held):
    checkpoint = Checkpoint(down.round, plan.strategy.init(model), down=down)
    return frame.load(decided(plan, checkpoint, {"a": Standing(held=held)}).letters.frames["a"])


def test_following_reaches_every_model_from_every_start():
    plan = plan_of(FOUR_BITS)
    downs, models = walk(plan, 4)
    following = Following(plan.downlink)
    following.put(0, downs[0].model, downs[0].shadow)
    for n in range(1, 5):
        following.take(downs[n].ring[-1].digest, downs[n].ring[-1].blob)
        for held in range(n):
            found = following.find(letter_for(plan, downs[n], models[n], held))
            assert vector.to_bytes(found) == vector.to_bytes(downs[n].shadow)


def test_following_after_a_restart_starts_from_the_anchor():
    plan = plan_of(FOUR_BITS)
    downs, models = walk(plan, 10)
    letter = letter_for(plan, downs[-1], models[-1], 8)
    assert letter.base
    wiped, restored = Following(plan.downlink), Following(plan.downlink)
    restored.put(downs[-1].anchor_round, downs[-1].ring[0].base, downs[-1].anchor)
    for delta in downs[-1].ring:
        wiped.take(delta.digest, delta.blob)
        restored.take(delta.digest, delta.blob)
    assert wiped.find(letter) is None
    np.testing.assert_array_equal(restored.find(letter), downs[-1].shadow)


def test_following_refuses_what_does_not_lead_to_the_named_model():
    plan = plan_of(FOUR_BITS)
    downs, models = walk(plan, 3)
    following = Following(plan.downlink)
    following.put(0, downs[0].model, downs[0].shadow)
    for delta in downs[-1].ring:
        following.take(delta.digest, delta.blob)
    good = letter_for(plan, downs[-1], models[-1], 1)
    assert following.find(good) is not None
    for changes in (
        {"base": "0" * 64},
        {"model": "0" * 64},
        {"deltas": good.deltas[::-1]},
        {"deltas": good.deltas[:-1]},
        {"deltas": ("0" * 64, *good.deltas)},
    ):
        fields = {n: getattr(good, n) for n in good.__struct_fields__}
        assert following.find(frame.Invite(**{**fields, **changes})) is None
    damaged = frame.dump(frame.Delta(round=4, public=bytes(32), payload=b"x"))
    following.take("1" * 64, damaged)
    assert following.find(good) is not None, "a delta that cannot be decoded changes nothing"


# -- the positions of the last release --------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]), max_size=30), st.integers(0, 35))
def test_largest_by_magnitude_and_ties_to_the_lowest_position_and_never_zeros(values, n):
    moved = [i for i in range(len(values)) if values[i]]
    expected = sorted(sorted(moved, key=lambda i: (-abs(values[i]), i))[:n])
    assert broadcast.largest(np.array(values, np.float32), n).tolist() == expected


@given(st.integers(1, 3000), st.data())
def test_a_support_travels_alone(universe, data):
    n = data.draw(st.integers(0, min(universe, 200)))
    positions = np.sort(np.random.default_rng(universe).choice(universe, n, replace=False)).astype(np.int64)
    raw = pack.pack_support(positions, universe)
    np.testing.assert_array_equal(pack.unpack_support(raw, n, universe), positions)
    for bad in (raw + b"\0", raw[:-1]):
        if bad != raw:
            with pytest.raises(DecodeError, match="E-PAYLOAD"):
                pack.unpack_support(bad, n, universe)
