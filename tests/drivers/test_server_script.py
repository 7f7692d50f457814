"""A server that a script drives, with devices that scripts are, on loopback."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import exp
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import own_package
import pytest
from scripted import POLICY, device, module, step

import edgewise
from edgewise.apps.device import policy, record
from edgewise.apps.device.script import Device
from edgewise.apps.server.given import check_given_figures
from edgewise.codecs.select.top_k import top_k
from edgewise.core.errors import EdgewiseError
from edgewise.core.part import part
from edgewise.core.stage import Stage
from edgewise.drivers.fleet import served
from edgewise.learn.models import modules
from edgewise.strategies.fedopt import fedavg

TEXT = """
name = "scripted"
privacy = "none"
[data]
source = "plays"
[round]
rounds = 3
minimum = 1.0
[training]
local_steps = 1
"""
METRICS = """
[eval]
on_devices = true
[[metric]]
name = "level"
lower = -1.0
upper = 3.0
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(TEXT)
    return tmp_path / "recipe.toml"


@contextmanager
def training(devices: list[Device]) -> Iterator[None]:
    """The loops of these devices, until the server is gone."""

    def loop(made: Device, own: dict[str, float]) -> None:
        model = module()
        try:
            for task in made.tasks():
                task.load_into(model)
                told = {"loss": step(model), **own} if "level" in task.metrics else {"loss": step(model)}
                for odd in ({**told, "accuracy": 1.0}, {**told, "level": float("nan")}):
                    with pytest.raises(EdgewiseError, match=r"accuracy does not travel|is not a finite"):
                        task.submit(model, examples=4, metrics=odd)
                task.submit(model, examples=4, metrics=told)
        except EdgewiseError:
            pass

    own = ({"level": 99.0, "held_out": 2.0}, {"level": -0.5})  # cut to 3; the other has no held-out examples
    threads = [Thread(target=loop, args=one, daemon=True) for one in zip(devices, own, strict=True)]
    for thread in threads:
        thread.start()
    yield


@pytest.mark.slow
def test_a_loop_plays_rounds_and_goes_on_after_a_start(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(TEXT + METRICS)
    seen: list[int] = []

    def measured(round: edgewise.Round) -> dict[str, float]:
        return {"norm": float(np.linalg.norm(round.params))}

    def server(listen: str = "127.0.0.1:0") -> edgewise.Server:
        return edgewise.Server(
            recipe, model=module(), folder=tmp_path / "server", listen=listen, strategy="fedavgm",
            metrics=measured, callbacks=[lambda round: seen.append(round.number)],
        )  # fmt: skip

    with server() as first:
        devices = [device(first, tmp_path / f"device-{i}") for i in range(2)]
        first.wait_for(devices=2, timeout_s=10)
        run, port = "", first.url.rpartition(":")[2]
        with training(devices):
            for round in first:
                assert (round.number, round.met, round.contributions) == (0, True, 2)
                names = {"loss_first", "loss_last", "held_out", "held_share", "level", "norm"}
                assert set(round.metrics) == names
                assert round.metrics["level"] == pytest.approx((3.0 - 0.5) / 2)
                assert round.metrics["held_share"] == pytest.approx(0.5)
                assert round.tensors()["0.weight"].shape == (3, 4)
                other = module()
                round.load_into(other)
                assert modules.read_module_vector(other, modules.module_layout(other)) == pytest.approx(round.params)
                run = first.run
                break
            assert first._state(run).state == "running"
    assert seen == [0], "a round is played when the loop asks for it"
    with server(f"127.0.0.1:{port}") as second:
        assert second.run == run
        assert [round.number for round in second] == [1, 2]
        summary = json.loads((second.run_dir / "summary.json").read_text())
        assert [r["summed_metrics"]["level"] for r in summary["per_round"]] == pytest.approx([1.25] * 3)
        assert summary["perplexity"]["federated"]["weighted_mean"] == pytest.approx(exp(2.0))
        assert second._state(run).state == "finished"
    assert seen == [0, 1, 2]


@pytest.mark.slow
def test_only_devices_with_the_runs_tags_take_part(recipe: Path, tmp_path: Path) -> None:
    def loop(made: Device) -> None:
        model = module()
        with suppress(EdgewiseError):
            for task in made.tasks():
                task.load_into(model)
                task.submit(model, examples=4, metrics={"loss": step(model)})

    with edgewise.Server(recipe, model=module(), folder=tmp_path / "server", tags=["lab", "new"]) as server:
        tagged = {"a": ["lab", "new", "east"], "b": ["new", "lab"], "c": ["lab"], "d": []}
        made = {}
        for name, tags in tagged.items():
            made[name] = Device.join(server.url, server.token(tags=tags), tmp_path / name)
            made[name]._poll_s = 1.0
            (tmp_path / name / policy.FILE).write_text(POLICY)
            Thread(target=loop, args=(made[name],), daemon=True).start()
        assert server.devices() == sorted(made[name].name for name in "ab")
        assert [round.contributions for round in server] == [2, 2, 2]
        assert [bool(record.device_record_lines(tmp_path / name)) for name in tagged] == [True, True, False, False]


@pytest.mark.slow
def test_a_script_that_is_killed_as_its_run_begins_goes_on_with_that_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run would train on the same devices beside the first one."""

    def killed(run: object) -> None:
        raise KeyboardInterrupt

    with edgewise.Server(recipe, model=module(), folder=tmp_path / "server") as first:
        device(first, tmp_path / "device").close()
        monkeypatch.setattr(first._serving.hosting, "_begin", killed)
        with pytest.raises(KeyboardInterrupt):
            next(iter(first))
    monkeypatch.undo()
    with edgewise.Server(recipe, model=module(), folder=tmp_path / "server") as second:
        assert second.run
        assert second._begin().run == second.run
        with second._serving.service.database.read() as c:
            assert [one.run for one in served.listed(c)] == [second.run]


def refused(recipe: Path, **more: Any) -> str:
    with pytest.raises(EdgewiseError) as e, edgewise.Server(recipe, **more):
        pass
    return f"{e.value.code}: {e.value.what}"


@part
def mine() -> Stage:
    """A part that no device has."""
    raise AssertionError


def test_what_devices_do_not_have_is_refused_before_a_folder_is_made(recipe: Path, tmp_path: Path) -> None:
    here: dict[str, Any] = {"model": module(), "folder": tmp_path / "server"}
    own = "the part mine is your own, and a server sends no code"
    assert refused(recipe, **here, stages=[mine]).startswith(f"E-EXTENSION: stages: {own}")
    assert "nobody can tell the name" in refused(recipe, **here, stages=[lambda x: x])
    assert refused(recipe, **here, stages=[{"kind": "topk"}]).startswith("E-NAME")
    assert refused(recipe, **here, strategy={"kind": "zeroth_order"}).startswith("E-COMBO")
    assert refused(recipe, **{**here, "model": module().requires_grad_(False)}).startswith("E-LAYOUT")
    assert refused(recipe, **here, listen="8443").startswith("E-REQUEST")
    assert not (tmp_path / "server").exists()


def test_own_parts_of_an_installed_package_are_given_as_objects(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_package.installed(tmp_path / "site", monkeypatch)
    own = importlib.import_module(own_package.MODULE)
    with pytest.raises(EdgewiseError, match="a trainer with a model of its own"):
        edgewise.Server(recipe, module(), folder=tmp_path / "s", stages=[partial(own.coarse, step=0.5), "weigh"])
    with edgewise.Server(recipe, folder=tmp_path / "s", stages=["coarse"], strategy=own.careful) as server:
        assert [package.name for package in server._prepared.wanted.packages] == [own_package.NAME]
        assert server._spec == own.Readings(server.recipe).spec
    for name, given in (("metrics", "accuracy"), ("callbacks", [print, "print"])):
        assert refused(recipe, model=module(), folder=tmp_path / "t", **{name: given}).startswith(f"E-TYPE: {name}")


def test_figures_of_a_script_do_not_take_the_place_of_devices_metrics() -> None:
    assert check_given_figures({"norm": np.float32(2.0)}, {"loss_last": 1.0}) == {"norm": 2.0}
    for found, code in (({"loss_last": 0.0}, "E-VALUE"), (0.5, "E-TYPE"), ({"norm": "2"}, "E-TYPE")):
        with pytest.raises(EdgewiseError) as e:
            check_given_figures(found, {"loss_last": 1.0})
        assert e.value.code == code


def test_parts_are_given_as_tables_names_or_parts(recipe: Path, tmp_path: Path) -> None:
    given = [{"kind": "weigh"}, "rotate", partial(top_k, fraction=0.5)]
    with edgewise.Server(recipe, module(), folder=tmp_path / "s", stages=given, strategy=fedavg) as server:
        assert [table["kind"] for table in server.recipe.stage] == ["weigh", "rotate", "top_k"]
        assert server.recipe.stage[2]["fraction"] == 0.5
        assert server.recipe.strategy == {"kind": "fedavg"}
        with pytest.raises(EdgewiseError, match="E-QUORUM"):
            next(iter(server))
        with pytest.raises(EdgewiseError, match="0 of 1 devices are enrolled"):
            server.wait_for(devices=1, timeout_s=0.0)
