"""The jobs that a new worker takes lead it to the model that all others have."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.keys import KEY_BYTES
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.shared_jobs import SharedJobs
from edgewise.engine import broadcast
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile

pytestmark = pytest.mark.slow
ROUNDS, DIM = 7, 600


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setenv("TOY_DIM", str(DIM))
    recipe = make_recipe({"downlink": [{"kind": "top_k", "fraction": 0.25}], "round.rounds": ROUNDS})
    return compile(recipe, toy.ToyTrainer(recipe).spec, 8, with_extensions(["toy"]))


def blobs_of(*published):
    digests = tuple(vector.digest(blob) for blob in published)
    return [jobs.Blob(digest=d, data=memoryview(b), keep=digests) for d, b in zip(digests, published, strict=True)]


def take(downloads, work):
    for job in work:
        if isinstance(job, jobs.Held):
            downloads.hold(job.round, vector.from_bytes(job.data, DIM))
        else:
            downloads.put(job.digest, job.data, job.keep)
    return downloads


def letter(down, deltas):
    named = {"base": deltas[0].base, "deltas": tuple(d.digest for d in deltas)} if deltas else {}
    return frame.Invite(
        run="r", round=down.round, spec="s", model=down.model, public=bytes(KEY_BYTES), accepted=None,
        rule=frame.LocalRule(steps=1, lr=0.1), deadline_s=1.0, **named,
    )  # fmt: skip


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_new_worker_follows_the_deltas_from_every_model_that_devices_may_have(plan, evaluated):
    """Also where an evaluation, whose blobs name no delta, comes between two rounds."""
    shared = SharedJobs(lambda job: None)
    shared.pipe = plan.downlink
    down = broadcast.start(np.zeros(DIM, np.float32))
    rng, sizes = np.random.default_rng(0), []
    shared.add(jobs.Held(round=0, data=vector.to_bytes(down.anchor)))
    for _ in range(ROUNDS - 1):
        down = broadcast.advance(plan, plan.downlink, down, down.shadow + rng.normal(size=DIM).astype(np.float32))
        for job in blobs_of(vector.to_bytes(down.shadow), *(d.blob for d in down.ring)):
            shared.add(job)
        new = take(Downloads(DIM, plan.downlink), [one.job for one in shared.since(0)])
        for held in range(down.anchor_round, down.round):
            found = new.model(letter(down, broadcast.deltas_since(down, held)))
            assert found is not None
            assert found.tobytes() == down.shadow.tobytes()
        sizes.append(len(shared.since(0)))
        if evaluated:
            for job in blobs_of(vector.to_bytes(rng.normal(size=DIM).astype(np.float32))):
                shared.add(job)
    assert down.anchor_round > 0  # deltas have left the ring
    assert sizes[-1] <= 2 + 2 * len(down.ring) + 1


def test_jobs_that_later_ones_replace_are_dropped():
    shared = SharedJobs(lambda job: None)
    first, second = blobs_of(b"a")[0], blobs_of(b"b")[0]
    for job in (jobs.Rest(round=0, data=memoryview(b"")), first, jobs.Rest(round=1, data=memoryview(b"")), second):
        shared.add(job)
    assert [one.job for one in shared.since(0)] == [jobs.Rest(round=1, data=memoryview(b"")), second]
    assert [one.job for one in shared.since(3)] == [second]
