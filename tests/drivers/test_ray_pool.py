"""Workers on a real local Ray of two: the same bytes as one process, also where workers and their driver are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
import tomllib
from pathlib import Path

import pytest
import toy
from played import play, story
from toy_recipe import make_recipe

from e2e.test_resume import PRIVATE, REMEMBERED, SCAFFOLD, final, kill_after, start
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.drivers.workers import ray_cluster
from edgewise.drivers.workers.ray_pool import RayPool
from edgewise.plan.recipe.sections import SimulationSection

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='ray is not installed (pip install "edgewise[ray]")'
)
RAY = {"simulation.engine": "ray", "simulation.workers": 2}

# Dies where it first trains d00003 in a round above 0, until the file has as many bytes as there may be deaths.
MORTAL = """
import os, signal
from pathlib import Path
from toy import EDGEWISE, ToyTrainer
count, fit = Path({count!r}), ToyTrainer.fit
def dying(self, request):
    if request.device == "d00003" and request.round > 0 and len(count.read_bytes()) < {deaths}:
        with count.open("ab") as f:
            f.write(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(self, request)
ToyTrainer.fit = dying
"""


def settings(texts):
    return {k: tomllib.loads(f"v = {v}")["v"] for k, v in (s.split("=", 1) for s in texts)}


CASES = {
    "plain": {},
    "masked": settings(REMEMBERED),
    "distributed dp": settings(PRIVATE),
    "deltas": settings((
        'downlink=[{kind = "top_k", fraction = 0.05}]', 'round.sampling="fixed"', "round.cohort=3", "round.rounds=6",
    )),
    "strategy with memory": settings(SCAFFOLD),
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """A local Ray, as a run starts it. Runs of this process use it."""
    before = os.environ.get("TOY_DIM")
    os.environ["TOY_DIM"] = "600"  # so that deltas pay; workers inherit it
    support = str(Path(__file__).parents[1] / "support")
    end = ray_cluster.connect(SimulationSection(engine="ray", workers=2))
    yield support
    end()
    os.environ.pop("TOY_DIM")
    if before is not None:
        os.environ["TOY_DIM"] = before


@needs_ray
@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ray_and_one_process_agree_to_the_byte(cluster, tmp_path, name):
    one, told_one, held_one = play(tmp_path / "a", {"simulation.engine": "inproc", **CASES[name]})
    two, told_two, held_two = play(tmp_path / "b", {**RAY, **CASES[name]})
    assert one == two
    assert held_one == held_two
    assert story(told_one) == story(told_two)


def mortal(folder, deaths, monkeypatch):
    folder.mkdir()
    count = folder / "deaths"
    count.write_bytes(b"")
    (folder / "mortal.py").write_text(MORTAL.format(count=str(count), deaths=deaths))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mortal", raising=False)
    monkeypatch.setattr(toy.ToyTrainer, "fit", toy.ToyTrainer.fit)  # the extension is imported here too
    return count


def run_mortal(out, overrides):
    simulation.run(
        make_recipe(overrides), out=out, recipe_dir=out.parent, extensions=["mortal"],
        report=False,
    )  # fmt: skip
    return final(out)


@needs_ray
@pytest.mark.slow
def test_a_worker_that_dies_in_training_is_replaced_and_its_job_done_again(cluster, tmp_path, monkeypatch):
    """Its device had taken the invitation, and has codec memory of the round before."""
    count = mortal(tmp_path / "code", 2, monkeypatch)
    ray = run_mortal(tmp_path / "ray", RAY)
    assert count.read_bytes() == b"xx"
    assert ray == run_mortal(tmp_path / "one", {"simulation.engine": "inproc"})


@needs_ray
@pytest.mark.slow
def test_a_job_that_ends_every_worker_ends_the_run(cluster, tmp_path, monkeypatch):
    count = mortal(tmp_path / "code", 99, monkeypatch)
    with pytest.raises(StoreError, match=r"E-WORKER.*3 workers of the cluster ended in the same job"):
        run_mortal(tmp_path / "ray", RAY)
    assert count.read_bytes() == b"xxx"


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deltas", "masked"])
def test_workers_killed_between_jobs_are_replaced(cluster, tmp_path, monkeypatch, name):
    """Both are new in the end, and follow a model whose first deltas are long gone."""
    pools, killed = [], []

    class Seen(RayPool):
        def __init__(self, section):
            super().__init__(section)
            pools.append(self)

    def kill(event):
        if isinstance(event, events.RoundFinished) and event.round in (1, 2):
            worker = pools[0]._workers[event.round - 1]
            killed.append(pools[0]._ray.get(worker.actor.pid.remote()))
            os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(simulation, "RayPool", Seen)
    common = {"recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    simulation.run(make_recipe({**RAY, **CASES[name]}), out=tmp_path / "ray", sinks=[kill], **common)
    simulation.run(make_recipe(CASES[name]), out=tmp_path / "one", **common)
    assert len(set(killed)) == 2
    assert final(tmp_path / "ray") == final(tmp_path / "one")


def processes_of(parent):
    """Processes below this one, but for two of Ray's agents, which notice only after a minute that they are alone."""
    import psutil

    below = psutil.Process(parent).children(recursive=True)
    return [one.pid for one in below if "Agent" not in " ".join(one.cmdline())]


@needs_ray
@pytest.mark.long(sample=1)
@pytest.mark.slow
def test_a_killed_driver_leaves_a_run_to_resume_and_no_process(tmp_path):
    import psutil

    assert not kill_after(start(tmp_path / "calm", "inproc", False, "0"), 10**9)
    process = start(tmp_path / "stormy", "ray", False)
    for line in process.stdout:
        if '"accepted"' in line:
            break
    left = processes_of(process.pid)
    assert left
    process.kill()
    process.stdout.close()
    process.stderr.close()
    process.wait()
    until_s = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in left) and time.monotonic() < until_s:
        time.sleep(0.2)
    assert not [pid for pid in left if psutil.pid_exists(pid)]
    assert not kill_after(start(tmp_path / "stormy", "ray", True, "0"), 10**9)
    assert final(tmp_path / "calm") == final(tmp_path / "stormy")


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic(cluster):
    with pytest.raises(EdgewiseError, match=r"E-CLUSTER: 3 workers need 99 CPUs each\. The cluster has .* room for 0"):
        RayPool(SimulationSection(engine="ray", workers=3, worker_cpus=99))
    with pytest.raises(EdgewiseError, match=r"E-CLUSTER: 2 workers need 1 CPU and 4 GPUs each\."):
        RayPool(SimulationSection(engine="ray", workers=2, worker_gpus=4))


def node(cpus, gpus=0.0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_room_is_counted_machine_by_machine():
    ask = SimulationSection(engine="ray", workers=5, worker_cpus=2, worker_gpus=0.25)
    ray_cluster._check_room([node(8.0, 1.0), node(3.0, 4.0)], ask)
    with pytest.raises(EdgewiseError, match=r"has 10 CPUs, 5 GPUs on 2 machines, room for 4"):
        ray_cluster._check_room([node(8.0, 1.0), node(2.0, 4.0)], ask.model_copy(update={"worker_gpus": 0.3}))
    with pytest.raises(EdgewiseError, match="room for 4"):
        ray_cluster._check_room([node(8.0, 1.0), node(99.0, 4.0, alive=False)], ask)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EdgewiseError, match=r'E-DEPENDENCY.*pip install "edgewise\[ray\]"'):
        RayPool(SimulationSection(engine="ray"))


def test_an_address_that_does_not_answer_is_named_at_once(monkeypatch):
    monkeypatch.setattr(ray_cluster, "ray_module", lambda: type("Ray", (), {"is_initialized": lambda: False}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EdgewiseError, match=f"E-CLUSTER: no Ray cluster answers at {address}"):
            RayPool(SimulationSection(engine="ray", ray_address=address))


def test_the_identity_of_a_run_does_not_depend_on_its_place():
    one = make_recipe()
    more = {**RAY, "simulation.ray_address": "head:6379", "simulation.worker_gpus": 0.5, "simulation.worker_cpus": 2}
    placed = make_recipe(more)
    assert placed.sha256() == one.sha256()
    assert placed.world == one.world
    assert "worker_gpus" not in one.resolved()["simulation"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"simulation.ray_address": "head:6379"}, r'E-COMBO.*ray_address is for simulation\.engine = "ray"'),
        ({"simulation.engine": "pool", "simulation.worker_gpus": 1}, r"E-COMBO.*worker_gpus is for"),
        ({**RAY, "simulation.worker_gpus": 1.5}, r"E-VALUE.*no share of one GPU"),
        ({**RAY, "simulation.ray_address": "ray://head:10001"}, r"E-VALUE"),
    ],
)
def test_keys_that_nothing_would_read_are_refused(overrides, message):
    with pytest.raises(EdgewiseError, match=message):
        make_recipe(overrides)
