"""Kill it anywhere: the same command with resume ends in the very same model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.run_store import RunStore

SUPPORT = Path(__file__).parents[1] / "support"


# Layer-wise: residuals of two phases, and a server momentum that rests every second round.
TURNS = ('stage=[{kind="segments",cycle=2},{kind="weigh"},{kind="feedback"},{kind="top_k",fraction=0.2}]',)

# Masks and noise: a session that is cut off is begun anew, and its round is charged once (the same attempt).
PRIVATE = (
    'privacy="distributed_dp"', 'metrics="none"', "stage=[]", 'merge={kind="secure_sum"}', "dp.epsilon=20.0",
    "dp.delta=1e-5", "dp.clip_l2=4.0", "round.minimum=0.75",
)  # fmt: skip

# Noise that a round takes back from those before it: the server's memory of it must survive too.
CORRELATED = (
    'privacy="central_dp"', 'metrics="none"', "stage=[]", 'round.sampling="cyclic"', "round.cohort=4",
    "dp.epsilon=20.0", "dp.delta=1e-5", "dp.clip_l2=4.0", 'dp.noise="correlated"', "round.rounds=8",
)  # fmt: skip


def start(out, engine, resume, sleep="0.02", settings=()):
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "TOY_SLEEP": sleep}
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / "toy_run.py"), str(out), engine, str(int(resume)), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def kill_after(process, lines):
    """SIGKILL once so many events were printed; returns whether the process was still running then."""
    for seen, _ in enumerate(process.stdout, 1):
        if seen >= lines:
            os.kill(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.stderr.close()
            return process.wait() == -signal.SIGKILL
    error = process.stderr.read()
    process.stderr.close()
    process.stdout.close()
    assert process.wait() == 0, error
    return False


def final(out):
    with RunStore(out) as store:
        return store.models(), store.measures("federated"), store.measures("centralised"), store.measures("local_only")


def down(out):
    """Bytes that were downloaded: per round, and per device and round."""
    with RunStore(out) as store:
        told = store.events()
    finished = [(e.round, e.bytes_down, e.lag_l2) for e in told if isinstance(e, events.RoundFinished)]
    return finished, [(e.round, e.device, e.bytes_down) for e in told if isinstance(e, events.Accepted)]


# Some devices of each round, so that deltas of several rounds are needed; 600 parameters, so that they pay.
DOWNLINK = (
    'downlink=[{kind = "top_k", fraction = 0.1}, {kind = "quantize", bits = 4}]',
    'round.sampling="fixed"', "round.cohort=5", "simulation.dropout=0.1", "round.rounds=6",
)  # fmt: skip


# Noise of each device's own: an update leaves once, and what was journalled of it is not asked for again.
LOCAL = (
    'privacy="local_dp"', 'metrics="none"', "stage=[]", "dp.epsilon=20.0", "dp.delta=1e-5", "dp.clip_l2=4.0",
)  # fmt: skip

# Masks over what devices remember: a session that is begun anew starts from the same memory.
REMEMBERED = (
    'privacy="hidden"', 'merge={kind="secure_sum"}',
    'stage=[{kind="feedback"},{kind="clip",l2=8.0},{kind="quantize",bits=4,grid="shared"},{kind="wrap"}]',
)  # fmt: skip

# Groups of devices that send by different rungs behind masks.
LADDER = (
    'privacy="hidden"', 'codec="adaptive"', 'merge.kind="secure_sum"',
    'stage=[{kind = "weigh", cap = 160}, {kind = "clip", l2 = 8.0}]',
    "adaptive.deadline_s=2.0", "adaptive.groups=2", "simulation.step_s=0.4", "round.minimum=0.6",
)  # fmt: skip


# What the strategy keeps on devices, sends beside updates and gives beside the model.
SCAFFOLD = (
    'strategy={kind="scaffold"}', 'training.optimizer="sgd"', 'stage=[{kind="weigh"},{kind="quantize",bits=4}]',
    'round.sampling="fixed"', "round.cohort=5", "simulation.dropout=0.1", "round.rounds=6",
)  # fmt: skip


# Rounds that do not wait: devices at work on earlier models, their clock, and residuals of uneven age.
BUFFERED = (
    "data.devices=12", "round.rounds=8", 'round.sampling="buffered"', "round.cohort=3", "buffer.concurrency=8",
    "buffer.max_staleness=3", "simulation.speed_spread=1.5", "simulation.dropout=0.1",
)  # fmt: skip


@pytest.mark.long(sample=3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "settings"), [("inproc", ()), ("pool", ()), ("inproc", TURNS), ("pool", DOWNLINK), ("pool", PRIVATE),
     ("inproc", CORRELATED), ("inproc", LADDER), ("pool", LOCAL), ("inproc", REMEMBERED), ("inproc", SCAFFOLD),
     ("pool", BUFFERED)],
    ids=["inproc", "pool", "inproc-turns", "pool-downlink", "pool-private", "inproc-correlated", "inproc-ladder",
         "pool-local", "inproc-remembered", "inproc-scaffold", "pool-buffered"],
)  # fmt: skip
def test_sigkill_at_many_moments_is_invisible_in_the_result(tmp_path, monkeypatch, engine, settings):
    calm = tmp_path / "calm"
    if settings == DOWNLINK:
        monkeypatch.setenv("TOY_DIM", "600")
    assert not kill_after(start(calm, engine, False, "0", settings), 10**9)
    stormy, kills = tmp_path / "stormy", 0
    # 4 rounds x 8 devices print about 70 events; every attempt gets a little further before it is killed.
    for lines in (7, 12, 16, 9, 20, 11, 25, 14, 10**9, 10**9):
        process = start(stormy, engine, kills > 0, settings=settings)
        if not kill_after(process, lines):
            break
        kills += 1
    assert kills >= 6
    assert final(calm) == final(stormy)
    assert down(calm) == down(stormy)


@pytest.mark.slow
def test_workers_of_a_killed_run_write_nothing_more(tmp_path):
    """They are training when their parent dies; --resume owns the directory by the time they end."""
    memories = lambda: {p.name: p.read_bytes() for p in (tmp_path / "devices").glob("*/*.safetensors")}  # noqa: E731
    assert kill_after(start(tmp_path, "pool", False, "0.8"), 16)  # some of round 0 is in
    with RunStore(tmp_path):
        before = memories()
        assert before
        time.sleep(2.0)
        assert memories() == before


@pytest.mark.slow
def test_what_was_journalled_is_not_trained_again(tmp_path, monkeypatch):
    """Stop in the middle of round 1; on resume only the devices without an answer are asked."""
    recipe = make_recipe({"compare.local_only": False, "compare.centralised": False})

    class Stop(Exception):
        pass

    def stop_in_round_1(event):
        if getattr(event, "device", "") and event.round == 1:
            seen.append(event.device)
            if len(seen) == 3:
                raise Stop

    seen, trained = [], []
    monkeypatch.syspath_prepend(str(SUPPORT))
    common = {"out": tmp_path, "recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    with pytest.raises(Stop):
        simulation.run(recipe, **common, sinks=[stop_in_round_1])
    import toy

    fit = toy.ToyTrainer.fit
    monkeypatch.setattr(toy.ToyTrainer, "fit", lambda self, r: (trained.append((r.round, r.device)), fit(self, r))[1])
    simulation.run(recipe, **common, resume=True)
    asked = {d for r, d in trained if r == 1}
    assert not asked & set(seen)
    assert len(asked) == 5
    assert min(r for r, _ in trained) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scaffold", "feddyn"])
def test_what_a_strategy_keeps_goes_on_after_a_stop(tmp_path, kind):
    """Stopped while a round is under way: memory of devices, the server's slots and what it gives stay in step."""
    recipe = make_recipe({
        "strategy": {"kind": kind}, "training.optimizer": "sgd", "stage": [{"kind": "quantize", "bits": 4}],
        "round.sampling": "fixed", "round.cohort": 5, "simulation.dropout": 0.1,
        "downlink": [{"kind": "quantize", "bits": 8}],
    })  # fmt: skip
    common = {"recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    simulation.run(recipe, out=tmp_path / "calm", **common)
    seen = Counter()

    def stop(event):
        seen[type(event)] += 1
        if isinstance(event, events.Accepted) and seen[events.Accepted] in (3, 9):
            raise KeyboardInterrupt

    for attempt in range(2):
        with pytest.raises(KeyboardInterrupt):
            simulation.run(recipe, out=tmp_path / "stormy", sinks=[stop], resume=attempt > 0, **common)
    simulation.run(recipe, out=tmp_path / "stormy", resume=True, **common)
    assert final(tmp_path / "calm") == final(tmp_path / "stormy")


def test_two_processes_cannot_work_in_one_directory(tmp_path):
    with RunStore(tmp_path), pytest.raises(StoreError) as caught:
        RunStore(tmp_path)
    assert caught.value.code == "E-RUN-EXISTS"


@pytest.mark.slow
def test_interrupt_leaves_a_resumable_run(tmp_path):
    process = start(tmp_path, "pool", False, "0.1")
    ready = threading.Event()
    lines = []

    def read():
        for line in process.stdout:
            lines.append(line)
            if '"accepted"' in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    ready.wait(60)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    reader.join(10)
    process.stdout.close()
    process.stderr.close()
    assert process.returncode != 0
    again = start(tmp_path, "inproc", True, "0")
    assert not kill_after(again, 10**9)
