"""The compressed broadcast over real drivers: the same bytes everywhere, every byte counted, nobody left behind."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import told
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.codecs.wire import pack
from edgewise.core import events, frame, vector
from edgewise.core.memory import flat
from edgewise.drivers.simulation import cohort as simulated
from edgewise.drivers.simulation.cohort import SimulatedCohort
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Inproc
from edgewise.engine import broadcast

DIM = 600
DOWN = {
    "downlink": [{"kind": "top_k", "fraction": 0.1}, {"kind": "quantize", "bits": 4}],
    "compare.local_only": False,
    "compare.centralised": False,
    "round.rounds": 7,
}
SOME = {"round.sampling": "fixed", "round.cohort": 3, "simulation.dropout": 0.2, "round.minimum": 0.3}
CLOCKS = {"at_s", "seconds", "train_s", "encode_s", "aggregate_s"}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("TOY_DIM", str(DIM))


def play(out, overrides, wrap=None, extensions=("toy",)):
    seen = []
    simulation.run(
        make_recipe({**DOWN, **overrides}), out=out, recipe_dir=out, extensions=extensions, sinks=[seen.append],
        wrap=wrap, report=False,
    )  # fmt: skip
    with RunStore(out) as store:
        return store.models(), seen, store.load()


def story(seen):
    return [
        msgspec.structs.replace(e, **dict.fromkeys(CLOCKS & set(e.__struct_fields__), 0.0))
        for e in seen
        if not isinstance(e, events.Progress)
    ]


class Tapped:
    """A Cohort that keeps what went through it."""

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

    def resume(self, sent, at_s):
        self.rounds[-1][1].update((one.device, one.frame) for one in sent if one.awaited)
        self.inner.resume(sent, at_s)


def tapped():
    made = []
    return made, lambda cohort: made.append(Tapped(cohort)) or made[0]


@pytest.mark.slow
@pytest.mark.parametrize("who", [{}, SOME], ids=["everybody", "some"])
def test_pool_and_inproc_agree_to_the_byte(tmp_path, who):
    one, told_one, _ = play(tmp_path / "a", {"simulation.engine": "inproc", **who})
    two, told_two, _ = play(tmp_path / "b", {"simulation.engine": "pool", **who})
    assert one == two
    assert story(told_one) == story(told_two)


@pytest.mark.slow
def test_every_byte_that_goes_down_is_counted(tmp_path):
    """From the frames and blobs that really went: the snapshot first, then what each device lacks."""
    made, wrap = tapped()
    _, seen, last = play(tmp_path, SOME, wrap)
    finished = {e.round: e.bytes_down for e in seen if isinstance(e, events.RoundFinished)}
    accepted = {(e.round, e.device): e.bytes_down for e in seen if isinstance(e, events.Accepted)}
    ways, held = defaultdict(int), {}
    for blobs, sent in made[0].rounds:
        letters = {device: frame.load(raw) for device, raw in sent.items()}
        if not all(isinstance(letter, frame.Invite) for letter in letters.values()):
            continue  # an evaluation
        total = 0
        for device, letter in letters.items():
            number = letter.round
            if letter.base:
                size = len(sent[device]) + sum(len(blobs[d]) for d in letter.deltas)
                assert len(letter.deltas) == number - held[device]
            else:
                size = len(sent[device]) + len(blobs[letter.model])
                assert len(blobs[letter.model]) == 4 * DIM
            ways[len(letter.deltas)] += 1
            total += size
            if (number, device) in accepted:
                assert accepted[number, device] == size
        held.update({device: number for (n, device) in accepted if n == number})
        assert finished[number] == total
    assert ways[0] >= 4, "the first round, at least"
    assert ways[1] > 0
    assert sum(n for k, n in ways.items() if k > 1) > 0, "somebody missed a round"
    with RunStore(tmp_path) as store:
        known = {d: s.held for d, s in store.standing(sorted(held)).items() if s.held is not None}
    assert {d: r for d, r in held.items() if r >= last.down.anchor_round} == known


@pytest.mark.slow
def test_a_late_device_costs_the_virtual_time_of_what_it_downloads(tmp_path, monkeypatch):
    """The same device and round over a slow link: a delta arrives long before a snapshot would have."""
    calls = []
    fate = simulated.World.fate

    def spy(self, device, round, steps, bytes_down, *others):
        calls.append((round, device, bytes_down))
        return fate(self, device, round, steps, bytes_down, *others)

    monkeypatch.setattr(simulated.World, "fate", spy)
    _, seen, _ = play(tmp_path, SOME)
    accepted = {(e.round, e.device): e.bytes_down for e in seen if isinstance(e, events.Accepted)}
    asked = {(r, d): n for r, d, n in calls}
    assert all(asked[key] == n for key, n in accepted.items())
    assert len(set(asked.values())) > 2


@pytest.mark.slow
def test_deltas_and_snapshots_lead_to_the_same_model(tmp_path, monkeypatch):
    """All devices by snapshots: other bytes on the way, the same contributions, the same model."""
    models, seen, _ = play(tmp_path / "a", {})
    monkeypatch.setattr(broadcast, "deltas_since", lambda down, held: ())
    plain, told_plain, _ = play(tmp_path / "b", {})
    assert models == plain
    down = [sum(e.bytes_down for e in told_ if isinstance(e, events.RoundFinished)) for told_ in (seen, told_plain)]
    assert down[0] < 0.6 * down[1]


@pytest.mark.slow
def test_the_model_still_learns_and_the_lag_is_told(tmp_path):
    _, seen, last = play(tmp_path, {})
    finished = [e for e in seen if isinstance(e, events.RoundFinished)]
    assert all(e.lag_l2 > 0 for e in finished)
    lag = (last.state.params - last.down.shadow).astype(np.float64)
    assert finished[-1].lag_l2 == pytest.approx(np.linalg.norm(lag), rel=1e-12)  # added up in float64
    held_out = [sum(e.nll.values()) for e in seen if isinstance(e, events.Evaluated)]
    assert held_out[-1] < held_out[0]


class Wiped:
    """A Cohort whose devices lose their storage before the round ``at``."""

    def __init__(self, inner, at):
        self.inner, self.at, self.asked = inner, at, []
        self.now_s, self.receive, self.close_round, self.publish = (
            inner.now_s, inner.receive, inner.close_round, inner.publish,
        )  # fmt: skip

    def send(self, to, raw):
        letter = frame.load(raw)
        if isinstance(letter, frame.Invite):
            self.asked.append((letter.round, to, bool(letter.base)))
            if letter.round == self.at:
                following = self.inner._executor._host._downloads._following
                following._steps.clear()
                following._digest = None
        self.inner.send(to, raw)

    def resume(self, sent, at_s):
        self.rounds[-1][1].update((one.device, one.frame) for one in sent if one.awaited)
        self.inner.resume(sent, at_s)


@pytest.mark.slow
def test_devices_that_lost_the_model_say_so_and_get_a_snapshot(tmp_path):
    made = []
    wrap = lambda cohort: made.append(Wiped(cohort, 3)) or made[0]  # noqa: E731
    _, seen, _ = play(tmp_path, {}, wrap)
    lost = [e for e in seen if isinstance(e, events.Lost)]
    assert {e.code for e in lost} == {"E-STALE"}
    # The round is given up after five of eight; the other three say it when they are asked again.
    assert sorted(e.round for e in lost) == [3] * 5 + [4] * 3
    assert len({e.device for e in lost}) == 8, "nobody twice"
    assert "no longer has" in lost[0].reason
    finished = {e.round: e.met for e in seen if isinstance(e, events.RoundFinished)}
    assert finished == {n: n != 3 for n in range(7)}
    deltas = [sum(base for r, _, base in made[0].asked if r == n) for n in range(7)]
    assert deltas == [0, 8, 8, 8, 3, 5, 8]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_bytes(tmp_path):
    """Stopped in the middle of round 4, in a new process: deltas from models that were downloaded before."""

    class Stop(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Accepted) and event.round == 4:
            raise Stop

    calm, told_calm, _ = play(tmp_path / "calm", SOME)
    common = {"out": tmp_path / "b", "recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    recipe = make_recipe({**DOWN, **SOME})
    with pytest.raises(Stop):
        simulation.run(recipe, **common, sinks=[stop])
    made, wrap = tapped()
    simulation.run(recipe, **common, resume=True, wrap=wrap)
    with RunStore(tmp_path / "b") as store:
        assert store.models() == calm
        again = [e for e in store.events() if isinstance(e, events.RoundFinished)]
    before = [e for e in told_calm if isinstance(e, events.RoundFinished)]
    zero = {"at_s": 0.0, "seconds": 0.0, "train_s": 0.0, "encode_s": 0.0, "aggregate_s": 0.0}
    plain = lambda told_: [msgspec.structs.replace(e, **zero) for e in told_]  # noqa: E731
    assert plain(again) == plain(before)
    first = [frame.load(raw) for raw in made[0].rounds[0][1].values()]
    assert any(letter.base for letter in first)


def test_a_blob_is_moved_once_as_long_as_it_is_needed():
    class Counting(Inproc):
        moved: list[str] = []  # noqa: RUF012

        def broadcast(self, job):
            assert isinstance(job, jobs.Blob)
            self.moved.append(bytes(job.data).decode())
            assert set(job.keep) == current
            return []

    plan = SimpleNamespace(sampling=SimpleNamespace(buffer=None))
    cohort = SimulatedCohort(Counting(), plan, None)
    for blobs in (b"ab", b"abc", b"bcd", b"a"):
        parts = [bytes([b]) for b in blobs]
        current = {vector.digest(p) for p in parts}
        assert set(cohort.publish(parts)) == current
    assert Counting.moved == ["a", "b", "c", "d", "a"]


# -- the positions of the last release --------------------------------------------------------------------------------

TOLD = {"stage": [{"kind": "weigh", "cap": 160}, {"kind": "told", "k": 20}], "strategy": {"kind": "fedavg"}}


@pytest.mark.slow
@pytest.mark.parametrize("down", [[], DOWN["downlink"]], ids=["snapshots", "deltas"])
def test_both_sides_are_told_where_the_last_release_was_largest(tmp_path, down):
    told.SEEN.clear()
    made, wrap = tapped()
    _, seen, last = play(tmp_path, {**TOLD, "downlink": down}, wrap, ("toy", "told"))
    by_round = defaultdict(set)
    for _, number, positions in told.SEEN:
        by_round[number].add(positions)
    assert {side for side, _, _ in told.SEEN} == {"device", "server"}
    assert all(len(same) == 1 for same in by_round.values()), "devices and server, and all devices, agree"
    assert by_round[0] == {()}
    assert by_round[1] == {tuple(range(20))}, "only these moved in round 0"
    assert set(flat(last.memory)) == {f"phase.0/release/{broadcast.SUPPORT}"}
    finished = {e.round: e.bytes_down for e in seen if isinstance(e, events.RoundFinished)}
    for blobs, sent in made[0].rounds:
        for device, raw in sent.items():
            letter = frame.load(raw)
            if isinstance(letter, frame.Invite) and letter.round:
                positions = pack.unpack_support(blobs[letter.support], 20, DIM)
                assert by_round[letter.round] == {tuple(positions.tolist())}
                assert letter.support in broadcast.downloads(letter)
                assert len(raw) + sum(len(blobs[d]) for d in broadcast.downloads(letter)) <= finished[letter.round]
                assert device


@pytest.mark.slow
def test_a_stopped_run_remembers_the_last_release(tmp_path):
    calm, _, _ = play(tmp_path / "a", TOLD, None, ("toy", "told"))

    class Stop(Exception):
        pass

    def stop(event):
        if isinstance(event, events.RoundStarted) and event.round == 3:
            raise Stop

    common = {"out": tmp_path / "b", "recipe_dir": tmp_path, "extensions": ["toy", "told"], "report": False}
    recipe = make_recipe({**DOWN, **TOLD})
    with pytest.raises(Stop):
        simulation.run(recipe, **common, sinks=[stop])
    simulation.run(recipe, **common, resume=True)
    with RunStore(tmp_path / "b") as store:
        assert store.models() == calm
