"""A host: whatever a trainer does, the answer is a frame; only a run directory that cannot be written ends the run."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import toy
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.errors import DataError, ModelError, StoreError
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host
from edgewise.engine import broadcast
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical

DEVICE = "d00001"


class Bench:
    """A host that has been set up, and the frames to send to it."""

    def __init__(self, run_dir, overrides=None):
        recipe, self.run_dir = make_recipe(overrides), run_dir
        (run_dir / "devices").mkdir(0o700)
        self.host = Host()
        described = self.host.do(
            jobs.Setup(
                recipe=json.dumps(recipe.resolved()),
                recipe_dir=".",
                run_dir=str(run_dir),
                memory_dir=str(run_dir / "devices"),
                instance="i",
                extensions=("toy",),
            )
        )
        trainer = toy.ToyTrainer(recipe)
        self.plan = compile(recipe, trainer.spec, 8, with_extensions(["toy"]))
        assert self.host.do(jobs.Compile(facts=canonical(self.plan.facts))) == jobs.Ready()
        assert self.host._plan.run == self.plan.run
        self.model = vector.digest(described.initial)
        self.host.do(jobs.Blob(digest=self.model, data=described.initial))

    def send(self, message):
        return self.host.do(jobs.Handle(id=3, device=DEVICE, frame=frame.dump(message)))

    def invite(self):
        p = self.plan
        return self.send(
            frame.Invite(
                run=p.run, round=0, spec=p.spec.digest(), model=self.model, public=p.public(0), accepted=None,
                deadline_s=9.0, rule=p.rule(0),
            )
        )  # fmt: skip

    def probe(self):
        return self.send(frame.Probe(run=self.plan.run, round=2, model=self.model))

    def memories(self):
        return list((self.run_dir / "devices").glob("*"))


def broken(monkeypatch, method, error):
    def fail(self, *_):
        raise error

    monkeypatch.setattr(toy.ToyTrainer, method, fail)


def test_a_contribution_and_its_memory(tmp_path):
    bench = Bench(tmp_path)
    first = bench.invite()
    assert isinstance(frame.load(first.frame), frame.Contribution)
    assert len(bench.memories()) == 1
    assert bench.invite().frame == first.frame, "asked again for the same round: the same bytes"


FAILURES = [
    (DataError("E-DEVICE-DATA", "no text."), "E-DEVICE-DATA", "no text."),
    (ModelError("E-MODEL", "torn."), "E-MODEL", "torn."),
    (KeyError("my private diary"), "E-TRAIN", "KeyError (test_host.py)"),
    (ZeroDivisionError("my private diary"), "E-TRAIN", "ZeroDivisionError (test_host.py)"),
]


def without_line(reason: str) -> str:
    """A reason that names a file without the place in it."""
    return re.sub(r":\d+, in \w+\)$", ")", reason)


@pytest.mark.parametrize(("error", "code", "reason"), FAILURES)
def test_a_trainer_that_fails_is_a_refusal(tmp_path, monkeypatch, caplog, error, code, reason):
    bench = Bench(tmp_path)
    broken(monkeypatch, "fit", error)
    answer = bench.invite()
    assert b"diary" not in answer.frame
    refused = frame.load(answer.frame)
    assert (type(refused), refused.code, without_line(refused.reason), refused.round) == (
        frame.Refusal,
        code,
        reason,
        0,
    )
    assert ("Traceback" in caplog.text) == (code == "E-TRAIN")
    assert not bench.memories()


@pytest.mark.parametrize(("error", "code", "reason"), FAILURES)
def test_a_measurement_that_fails_is_a_refusal(tmp_path, monkeypatch, error, code, reason):
    bench = Bench(tmp_path)
    broken(monkeypatch, "evaluate", error)
    refused = frame.load(bench.probe().frame)
    assert (type(refused), refused.code, without_line(refused.reason), refused.round) == (
        frame.Refusal,
        code,
        reason,
        2,
    )
    assert (refused.device, refused.run) == (DEVICE, bench.plan.run)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_training_alone_fails_for_one_device_only(tmp_path, monkeypatch, method):
    bench = Bench(tmp_path)
    broken(monkeypatch, method, KeyError("my private diary"))
    x = vector.to_bytes(np.zeros(50, np.float32))
    answer = bench.host.do(jobs.Solo(id=4, device=DEVICE, params=x, rounds=(0, 2), measure=True))
    assert isinstance(answer, jobs.Broken)
    assert (answer.id, answer.code, without_line(answer.what)) == (4, "E-TRAIN", "KeyError (test_host.py)")


@pytest.mark.parametrize("ask", ["invite", "probe"])
def test_a_store_error_of_the_trainer_ends_the_run(tmp_path, monkeypatch, ask):
    bench = Bench(tmp_path)
    for method in ("fit", "evaluate"):
        broken(monkeypatch, method, StoreError("E-DISK", "no room for the cache.", "free some."))
    assert getattr(bench, ask)() == jobs.Broken(
        id=3, code="E-DISK", what="no room for the cache.", fix="free some.", stops=True
    )


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_a_devices_memory_is_for_its_owner_only(tmp_path):
    bench, before = Bench(tmp_path), os.umask(0)
    try:
        bench.invite()
    finally:
        os.umask(before)
    (memory,) = bench.memories()
    assert [p.stat().st_mode & 0o777 for p in (memory, memory.parent)] == [0o600, 0o700]


def test_no_room_for_the_memory_is_e_disk(tmp_path, monkeypatch):
    bench = Bench(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = bench.invite()
    assert (answer.code, answer.stops) == ("E-DISK", True)
    assert not bench.memories(), "nothing half-written stays"
    monkeypatch.undo()
    assert isinstance(bench.invite(), jobs.Handled)


def test_a_blob_is_kept_under_its_own_digest_only(tmp_path, caplog):
    bench, name = Bench(tmp_path), vector.digest(b"the model that devices agreed on")
    other = vector.to_bytes(np.full(50, 7, np.float32))
    assert bench.host.do(jobs.Blob(digest=name, data=other)) is None
    assert "other bytes than its name says" in caplog.text
    bench.model = name
    for answer in (bench.invite(), bench.probe()):
        assert frame.load(answer.frame).code == "E-BLOB"


@pytest.mark.parametrize("changes", [{"run": "other"}, {"round": 2**63}, {"round": -2}, {"model": "x"}])
def test_a_probe_that_cannot_be_answered_is_a_refusal(tmp_path, changes):
    bench = Bench(tmp_path)
    probe = frame.Probe(**{"run": bench.plan.run, "round": 0, "model": bench.model, **changes})
    refused = frame.load(bench.send(probe).frame)
    assert isinstance(refused, frame.Refusal)
    assert refused.code in ("E-FRAME", "E-BLOB")


def test_an_invitation_that_lies_leaves_the_host_as_it_was(tmp_path):
    """Also what it remembers of downloaded models: a round of the far future would make all later ones stale."""
    bench = Bench(tmp_path, {"downlink": [{"kind": "quantize", "bits": 8}]})
    p = bench.plan
    lie = frame.Invite(
        run=p.run, round=10**15, spec=p.spec.digest(), model=bench.model, public=p.public(0), accepted=None,
        deadline_s=9.0, rule=p.rule(0),
    )  # fmt: skip
    assert frame.load(bench.send(lie).frame).code == "E-INVITE"
    assert not bench.memories()
    down = broadcast.advance(p, p.downlink, broadcast.start(np.zeros(50, np.float32)), np.ones(50, np.float32))
    (delta,) = down.ring
    assert isinstance(frame.load(bench.invite().frame), frame.Contribution)
    bench.host.do(jobs.Blob(digest=delta.digest, data=delta.blob))
    next_round = frame.Invite(
        run=p.run, round=1, spec=p.spec.digest(), model=down.model, public=p.public(1), accepted=0, deadline_s=9.0,
        rule=p.rule(1), base=delta.base, deltas=(delta.digest,),
    )  # fmt: skip
    assert isinstance(frame.load(bench.send(next_round).frame), frame.Contribution), "from the delta"
