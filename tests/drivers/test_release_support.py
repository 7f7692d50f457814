"""The positions of the last release, from the server's mean to what the next round's devices send."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.codecs.wire import pack
from edgewise.core import events, frame
from edgewise.drivers.simulation import cohort as simulated
from edgewise.drivers.storage.run_store import RunStore

DIM, KEPT, FRESH = 600, 60, 12
SHARED = {
    "stage": [{"kind": "weigh"}, {"kind": "feedback"}, {"kind": "shared_top_k", "fraction": KEPT / DIM}],
    "strategy": {"kind": "fedavg"},
    "compare.local_only": False,
    "compare.centralised": False,
    "round.rounds": 5,
}
QUANTIZED = {"stage": [*SHARED["stage"], {"kind": "quantize", "bits": 4}]}
DOWN = {"downlink": [{"kind": "quantize", "bits": 4}], **QUANTIZED}
CLOCKS = {"at_s", "seconds", "train_s", "encode_s", "aggregate_s"}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("TOY_DIM", str(DIM))


class Tapped:
    """A Cohort that keeps, for each publish, the blobs and the frames sent."""

    def __init__(self, inner):
        self.inner, self.rounds = inner, []
        self.now_s, self.receive, self.close_round = inner.now_s, inner.receive, inner.close_round

    def publish(self, blobs):
        digests = self.inner.publish(blobs)
        self.rounds.append((dict(zip(digests, blobs, strict=True)), {}))
        return digests

    def send(self, to, raw):
        self.rounds[-1][1][to] = raw
        self.inner.send(to, raw)


def play(out, overrides=None, wrap=None, sink=None, resume=False):
    seen = []
    simulation.run(
        make_recipe({**SHARED, **(overrides or {})}), out=out, recipe_dir=out, extensions=("toy",), wrap=wrap,
        sinks=[sink or seen.append], report=False, resume=resume,
    )  # fmt: skip
    with RunStore(out) as store:
        told = [
            msgspec.structs.replace(e, **dict.fromkeys(CLOCKS & set(e.__struct_fields__), 0.0)) for e in store.events()
        ]
        return store.models(), told


@pytest.mark.slow
def test_the_next_round_sends_the_largest_of_the_release_and_fresh_ones(tmp_path, monkeypatch):
    made, times = [], {}
    fate = simulated.World.fate

    def spy(self, device, round, steps, bytes_down, *others):
        times[round, device] = bytes_down
        return fate(self, device, round, steps, bytes_down, *others)

    monkeypatch.setattr(simulated.World, "fate", spy)
    _, told = play(tmp_path, wrap=lambda cohort: made.append(Tapped(cohort)) or made[0])
    models, announced = [], []
    accepted = {(e.round, e.device): e.bytes_down for e in told if isinstance(e, events.Accepted)}
    for blobs, sent in made[0].rounds:
        for device, raw in sent.items():
            letter = frame.load(raw)
            if not isinstance(letter, frame.Invite):
                continue
            size = len(raw) + sum(map(len, blobs.values()))
            assert times[letter.round, device] == size, "its virtual time is that of its own bytes"
            assert accepted.get((letter.round, device), size) == size
            if len(models) == letter.round:
                models.append(np.frombuffer(blobs[letter.model], "<f4"))
                positions = pack.unpack_support(blobs[letter.support], KEPT, DIM) if letter.support else []
                announced.append(set(map(int, positions)))
    assert announced[0] == set()
    moved = [b - a for a, b in pairwise(models)]  # the release itself: FedAvg at rate 1
    for number, release in enumerate(moved):
        sent = set(np.flatnonzero(release).tolist())
        assert len(sent) == KEPT
        assert announced[number] <= sent
        after = announced[number + 1]
        assert len(after) == KEPT - FRESH
        assert after <= sent
        others = np.delete(np.abs(release), sorted(after))
        assert np.abs(release[sorted(after)]).min() >= others.max() * (1 - 1e-5)
    fresh = [frozenset(np.flatnonzero(r).tolist()) - a for r, a in zip(moved, announced, strict=False)][1:]
    assert all(len(f) == FRESH for f in fresh)
    assert len(set(fresh)) == len(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [QUANTIZED, DOWN], ids=["snapshots", "deltas"])
def test_a_stopped_run_goes_on_with_the_same_support(tmp_path, overrides):
    class Stopped(Exception):
        pass

    def stop(event):
        if isinstance(event, events.RoundStarted) and event.round == 2:
            raise Stopped

    with pytest.raises(Stopped):
        play(tmp_path / "a", overrides, sink=stop)
    models, told = play(tmp_path / "a", overrides, resume=True)
    calm, told_calm = play(tmp_path / "b", overrides)
    assert models == calm
    finished = [[e for e in t if isinstance(e, events.RoundFinished | events.Accepted)] for t in (told, told_calm)]
    assert finished[0] == finished[1]


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, DOWN], ids=["snapshots", "deltas"])
def test_pool_and_inproc_agree_to_the_byte(tmp_path, overrides):
    one, told_one = play(tmp_path / "a", {"simulation.engine": "inproc", **overrides})
    two, told_two = play(tmp_path / "b", {"simulation.engine": "pool", **overrides})
    assert one == two
    assert [e for e in told_one if isinstance(e, events.RoundFinished)] == [
        e for e in told_two if isinstance(e, events.RoundFinished)
    ]
