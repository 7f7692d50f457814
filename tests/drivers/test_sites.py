"""Sites of devices that are one device each of the federation above: hierarchical averaging, on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from scripted import device, module

import edgewise
from edgewise.apps.device.script import Device
from edgewise.apps.device.task import Outcome
from edgewise.core.errors import EdgewiseError, ModelError
from edgewise.core.vector import Vector
from edgewise.learn.models import modules

TEXT = """
name = "{name}"
privacy = "none"
[data]
source = "plays"
[round]
rounds = {rounds}
minimum = 1.0
[training]
local_steps = 1
"""
SHIFTS = {"a": (1.0, 3.0), "b": (5.0, 7.0)}  # each device moves its weights by so much in each round of its site
DATA = {"a": 100.0, "b": 300.0}


def server(folder: Path, name: str, rounds: int, port: str = "0") -> edgewise.Server:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(TEXT.format(name=name, rounds=rounds))
    return edgewise.Server(
        folder / "recipe.toml", model=module(), folder=folder / "server", listen=f"127.0.0.1:{port}", strategy="fedavg"
    )


def shifting(made: Device, by: float) -> None:
    """A device's loop, until its server is gone."""
    model = module()
    try:
        for task in made.tasks():
            task.load_into(model)
            with torch.no_grad():
                model[0].weight += by
            task.submit(model, examples=10, metrics={"loss": by})
    except EdgewiseError:
        pass


def failing(above: edgewise.Server) -> None:
    """Play a run that comes to nothing."""
    with pytest.raises(EdgewiseError, match="the site trains other parameters"):
        list(above)


def at_work(work: Callable[..., None], *arguments: object) -> None:
    Thread(target=work, args=arguments, daemon=True).start()


@contextmanager
def federation(folder: Path, rounds: int) -> Iterator[tuple[edgewise.Server, dict[str, edgewise.Server]]]:
    """A server, and two sites of two devices that are at work."""
    with ExitStack() as stack:
        above = stack.enter_context(server(folder / "above", "above", rounds))
        sites = {name: stack.enter_context(server(folder / name, name, 2)) for name in SHIFTS}
        for name, shifts in SHIFTS.items():
            device(above, folder / name / "upstream").close()
            for by in shifts:
                at_work(shifting, device(sites[name], folder / name / f"device-{by}"), by)
        yield above, sites


def moved(params: Vector) -> float:
    """How far all first weights are from where they began. Other parameters did not move."""
    spec, apart = (
        modules.module_layout(module()),
        params - modules.read_module_vector(module(), modules.module_layout(module())),
    )
    for s in spec.segments:
        assert np.ptp(apart[s.start : s.stop]) < 1e-4
        assert s.name == "0.weight" or abs(apart[s.start]) < 1e-5
    return float(apart[0])


@pytest.mark.slow
def test_a_site_sends_one_contribution_of_all_of_its_devices(tmp_path: Path) -> None:
    """Site a moves the model by 2 (1 + 3) / 2 = 4 in two rounds, site b by 12, with three times the data."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in SHIFTS}

    def contribute(name: str, site: edgewise.Server) -> None:
        with Device.open(tmp_path / name / "upstream") as upstream:
            upstream._poll_s = 1.0
            try:
                for outcome in edgewise.contribute(upstream, site, DATA[name]):
                    outcomes[name].append(outcome)
            except EdgewiseError:
                pass

    with federation(tmp_path, 2) as (above, sites):
        for name, site in sites.items():
            at_work(contribute, name, site)
        found = [(round.contributions, moved(round.params), round.metrics["loss_last"]) for round in above]
    assert [n for n, *_ in found] == [2, 2], "the server above sees two devices"
    assert [x for _, x, _ in found] == pytest.approx([10.0, 20.0], abs=1e-3)
    assert [loss for *_, loss in found] == pytest.approx([(2.0 + 3 * 6.0) / 4] * 2, abs=1e-3)
    assert all(outcome.released for told in outcomes.values() for outcome in told)


class Stopped(Exception):
    """The site's program ended."""


@pytest.mark.slow
def test_a_site_that_stops_amid_its_rounds_goes_on_with_them_and_contributes_once(tmp_path: Path) -> None:
    def stop(round: edgewise.Round) -> None:
        raise Stopped

    with federation(tmp_path, 1) as (above, sites), ExitStack() as stack:
        told: list[edgewise.Round] = []
        playing = Thread(target=lambda: told.extend(above), daemon=True)
        playing.start()
        ways = {name: stack.enter_context(Device.open(tmp_path / name / "upstream")) for name in SHIFTS}
        for way in ways.values():
            way._poll_s = 1.0
        at_work(lambda: list(edgewise.contribute(ways["b"], sites["b"], DATA["b"])))
        sites["a"]._callbacks = (stop,)
        with pytest.raises(Stopped):
            next(edgewise.contribute(ways["a"], sites["a"], DATA["a"]))
        port, run = sites["a"].url.rpartition(":")[2], sites["a"].run
        sites["a"].close()
        numbers: list[int] = []
        again = stack.enter_context(server(tmp_path / "a", "a", 2, port))
        again._callbacks = (lambda round: numbers.append(round.number),)
        assert next(edgewise.contribute(ways["a"], again, DATA["a"])).released
        assert (again.run, numbers) == (run, [1]), "the first round of its devices is not played again"
        playing.join(60.0)
        (round,) = told
        assert (round.contributions, moved(round.params)) == (2, pytest.approx(10.0, abs=1e-3))


@pytest.mark.slow
def test_a_site_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    other = torch.nn.Sequential(torch.nn.Linear(4, 5))
    (tmp_path / "recipe.toml").write_text(TEXT.format(name="other", rounds=1))
    with (
        server(tmp_path / "above", "above", 1) as above,
        edgewise.Server(tmp_path / "recipe.toml", model=other, folder=tmp_path / "server") as site,
        device(above, tmp_path / "upstream") as upstream,
    ):
        at_work(failing, above)
        with pytest.raises(ModelError, match="trains other parameters than the site") as e:
            next(edgewise.contribute(upstream, site, 1.0))
        assert e.value.code == "E-LAYOUT"
        with pytest.raises(ModelError, match=r"float32 of \(25,\)"):
            site.start_from(np.zeros(3, np.float32))
