"""Promoted models: verified before they are promoted or returned to, fetched by devices, each with who promoted it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from served import code, joined, running
from toy_recipe import PLAIN

from edgewise.apps.models import export
from edgewise.apps.server import fetching, promoting, submission
from edgewise.apps.server.model_routes import ModelRoutes
from edgewise.apps.server.start import HttpServer
from edgewise.apps.simulate import simulation
from edgewise.core import vector
from edgewise.drivers.fleet import backup, members, promotions, served
from edgewise.drivers.fleet.promotions import KEPT, PROMOTE, ROLLBACK, Promotion, standing_promotions
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage import run_record
from edgewise.plan.recipe import recipe as recipes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    alone = {"compare.local_only": False, "compare.centralised": False, "eval.every": 0}
    return simulation.run(
        recipes.parse(PLAIN, overrides=alone), out=out, recipe_dir=out, extensions=["toy"], report=False
    )


def hosted(server: HttpServer, run: Path) -> str:
    """A finished run in the place where a server has its runs."""
    known = run_record.read_run_record(run).run
    id, facts = known["id"], known["facts"]["plan_facts"].encode()
    out = submission.folder(server.service, id)
    out.parent.mkdir(exist_ok=True)
    shutil.copytree(run, out)
    row = ServedRun(id, "toy", served.FINISHED, None, 3, facts, b"", {}, "0" * 32, server.service.now_s())
    server.service.database.write(lambda c: served.add(c, row))
    return str(id)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as opened:
        yield opened


@pytest.fixture
def links(server: HttpServer, tmp_path: Path) -> Iterator[dict[str, Link]]:
    made = {role: joined(server, tmp_path / role, role) for role in ("operator", "device", "gateway")}
    yield made
    for link in made.values():
        link.close()


def promote(link: Link, run: str, played: int | None = None) -> dict[str, Any]:
    return dict(link.call("POST", "/v1/models", document={"run": run, "played": played}))


@pytest.mark.slow
def test_devices_and_gateways_fetch_the_model_that_stands(
    server: HttpServer, links: dict[str, Link], run: Path, tmp_path: Path
) -> None:
    id, models = hosted(server, run), run_record.read_run_record(run).models
    assert code(fetching.fetch, links["device"], tmp_path / "none") == "E-UNKNOWN-ID"
    promote(links["operator"], id, 2)
    newest = promote(links["operator"], id)
    assert (newest["played"], newest["model"]) == (3, models[3].params)
    assert newest["by"] == links["operator"].name
    for role in ("device", "gateway"):
        fetched = fetching.fetch(links[role], tmp_path / f"model-{role}")
        tensors = safetensors.numpy.load_file(tmp_path / f"model-{role}" / "trained.safetensors")
        assert vector.digest(np.concatenate([tensors["w"], tensors["b"]]).tobytes()) == models[3].params
        assert json.loads((tmp_path / f"model-{role}" / "lineage.json").read_text()) == fetched
        assert vector.digest((tmp_path / f"model-{role}" / "facts.json").read_bytes()) == id
    written = export.write_export(server.service.folder, tmp_path / "exported", export.ExportRequest("tensors"))
    assert (written["rounds"], written["model_sha256"]) == (3, models[3].params)
    back = links["operator"].call("POST", "/v1/models/rollback")
    assert (back["verb"], back["played"], back["model"]) == ("rollback", 2, models[2].params)
    assert fetching.fetch(links["device"], tmp_path / "former")["model"] == models[2].params
    assert code(links["operator"].call, "POST", "/v1/models/rollback") == "E-CONFLICT"
    told = links["operator"].call("GET", "/v1/models")
    assert [(one["verb"], one["played"]) for one in told] == [("promote", 2), ("promote", 3), ("rollback", 2)]
    assert all(one["at_s"] > 0 for one in told)
    assert sorted(path.name for path in tmp_path.glob(".*.part")) == []


@pytest.fixture(scope="module")
def device(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """The link of a device to a server with a promoted model, for tests that leave the server as it is."""
    folder = tmp_path_factory.mktemp("promoted")
    with running(folder) as server, joined(server, folder / "device") as link:
        promoting.promote(server.service, hosted(server, run), None, "me")
        yield link


@pytest.mark.quick(sample=5)
@pytest.mark.parametrize("lie", ["name", "run", "layout", "model", "base", "blobs", "played", "size", "list"])
def test_an_answer_that_no_server_gives_is_named(
    lie: str, device: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's answer is all that a lying server controls here: the link and the blobs are real."""
    one = device.call("GET", "/v1/models/promoted")
    wrong = {"size": {**one, "blobs": dict.fromkeys(one["blobs"], "1")}, "list": [one]}
    answer = wrong.get(lie, {key: value for key, value in one.items() if key != lie})
    monkeypatch.setattr(device, "call", lambda *_: answer)
    assert code(fetching.fetch, device, tmp_path / "model") == "E-CONNECT"
    assert sorted(tmp_path.glob("*model*")) == []


@pytest.mark.slow
def test_a_model_that_does_not_verify_is_neither_promoted_nor_returned_to(
    server: HttpServer, links: dict[str, Link], run: Path
) -> None:
    id = hosted(server, run)
    promote(links["operator"], id, 2)
    promote(links["operator"], id, 3)
    database = submission.folder(server.service, id) / "run.db"
    with closing(sqlite3.connect(database)) as c:
        c.execute("UPDATE rounds SET n = n + 1 WHERE round = 1")
        c.commit()
    assert code(promote, links["operator"], id) == "E-VERIFY"
    assert code(links["operator"].call, "POST", "/v1/models/rollback") == "E-VERIFY"
    assert code(links["operator"].call, "GET", f"/v1/runs/{id}/verification") == "E-VERIFY"
    assert [one["played"] for one in links["operator"].call("GET", "/v1/models")] == [2, 3]


@pytest.mark.slow
def test_a_damaged_former_model_is_not_returned_to(server: HttpServer, links: dict[str, Link], run: Path) -> None:
    id = hosted(server, run)
    former = promote(links["operator"], id, 2)
    promote(links["operator"], id, 3)
    server.service.blobs.path(former["model"]).write_bytes(b"other")
    assert code(links["operator"].call, "POST", "/v1/models/rollback") == "E-VERIFY"


@pytest.mark.slow
def test_only_models_that_are_there_can_be_promoted(server: HttpServer, links: dict[str, Link], run: Path) -> None:
    id = hosted(server, run)
    assert code(promote, links["operator"], id, 4) == "E-UNKNOWN-ID"
    assert code(promote, links["operator"], "0" * 64) == "E-UNKNOWN-ID"


@pytest.mark.slow
def test_a_server_that_is_killed_has_one_model_or_the_other(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had done of a promotion when it ended: after the next start a whole model stands."""
    with running(tmp_path) as server:
        id = hosted(server, run)
        promoting.promote(server.service, id, 2, "me")

        def killed(change: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(server.service.database, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            promoting.promote(server.service, id, 3, "me")
        monkeypatch.undo()
        server.service.sweep_blobs()
    with running(tmp_path) as server, joined(server, tmp_path / "device") as device:
        assert fetching.fetch(device, tmp_path / "first")["played"] == 2
        promoting.promote(server.service, id, 3, "me")
        server.service.sweep_blobs()
        assert fetching.fetch(device, tmp_path / "second")["played"] == 3


@pytest.mark.slow
def test_a_member_who_is_revoked_during_the_replay_promotes_nothing(tmp_path: Path, run: Path) -> None:
    with running(tmp_path) as server, joined(server, tmp_path / "device"):
        id = hosted(server, run)
        routes = ModelRoutes(server.service)
        with server.service.database.read() as c:
            (name,) = (one.id for one in members.listed(c, None, "", 9))
        server.service.database.write(lambda c: members.revoke(c, name, 1.0))
        assert code(routes.promoted_by, name, id, 2) == "E-REVOKED"
        for played in (2, 3):
            promoting.promote(server.service, id, played, "server")
        assert code(routes.rolled_back_by, name) == "E-REVOKED"
        with server.service.database.read() as c:
            assert promotions.current_promotion(c).played == 3


@pytest.mark.slow
def test_a_backup_holds_the_promoted_model(tmp_path: Path, run: Path) -> None:
    with running(tmp_path) as server:
        model = promoting.promote(server.service, hosted(server, run), None, "me").model
        backup.save(server.service.folder, tmp_path / "copy", 1.0)
    backup.restore(tmp_path / "copy", tmp_path / "restored" / "server", 2.0)
    with running(tmp_path / "restored") as server, joined(server, tmp_path / "device") as device:
        assert fetching.fetch(device, tmp_path / "model")["model"] == model


def test_a_rollback_takes_one_promotion_back_and_few_are_kept() -> None:
    def row(verb: str, played: int) -> Promotion:
        return Promotion("r", "toy", played, "m", "t", "c", "l", "bundled", {}, "me", 0.0, verb)

    rows = [row(PROMOTE, n) for n in range(1, KEPT + 3)]
    assert [one.played for one in standing_promotions(rows)] == list(range(3, KEPT + 3))
    rows += [row(ROLLBACK, KEPT + 1), row(PROMOTE, 99)]
    assert [one.played for one in standing_promotions(rows)] == [*range(3, KEPT + 2), 99]
