"""What earlier versions wrote for an absence, empty text or no bytes, is read as None."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.apps.device import record
from edgewise.apps.server.submission import Submission
from edgewise.core.events import AnyEvent, Lost, Redistilled
from edgewise.drivers.fleet import blob_places, served
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.http import home
from edgewise.engine import beacon_server

FIGURES = ("perplexity_before", "perplexity", "diversity_before", "diversity", "teacher_before", "teacher", "seconds")


@pytest.mark.parametrize(("stored", "read"), [("", None), (None, None), ("diversity", "diversity")])
def test_the_reason_of_a_distillation(stored: str | None, read: str | None) -> None:
    row = {"event": "redistilled", "round": 1, "kept": read is None, "reason": stored, **dict.fromkeys(FIGURES, 1.0)}
    found: Any = msgspec.json.decode(msgspec.json.encode(row), type=AnyEvent)
    assert isinstance(found, Redistilled)
    assert found.reason == read


@pytest.mark.parametrize(("stored", "read"), [({"reason": ""}, None), ({}, None), ({"reason": "busy"}, "busy")])
def test_the_reason_of_a_loss(stored: dict[str, str], read: str | None) -> None:
    row = {"event": "lost", "round": 1, "device": "d", "code": "dropped", **stored}
    found: Any = msgspec.json.decode(msgspec.json.encode(row), type=AnyEvent)
    assert isinstance(found, Lost)
    assert found.reason == read


@pytest.mark.parametrize(("stored", "read"), [({"gateway": ""}, None), ({}, None), ({"gateway": "g"}, "g")])
def test_the_gateway_of_an_enrolment(tmp_path: Path, stored: dict[str, str], read: str | None) -> None:
    plain = {"url": "https://a", "server": "s", "authority": "", "name": "n", "secure": True, **stored}
    (tmp_path / home.SERVER).write_bytes(msgspec.json.encode(plain))
    assert home.load(tmp_path).gateway == read


@pytest.mark.parametrize(
    ("blob", "read"), [({"blob": b""}, None), ({"blob": None}, None), ({}, None), ({"blob": b"b"}, b"b")]
)
def test_the_beacon_of_a_run(blob: dict[str, bytes | None], read: bytes | None) -> None:
    class Shelf:
        def load(self) -> bytes:
            return msgspec.msgpack.encode({"used": ["d"], "asked": [], **blob})

        def save(self, raw: bytes) -> None:
            raise AssertionError

    assert beacon_server.stored(Shelf()) == read


def test_the_reason_of_a_served_run(tmp_path: Path) -> None:
    """Older rows and new ones have the same bytes, so no migration is needed."""
    run = served.ServedRun("r", "n", served.RUNNING, None, 1, b"{}", b"", {}, "m", 0.0)
    database = Database(tmp_path)
    try:
        database.write(lambda c: served.add(c, run))
        with database.read() as c:
            assert c.exec_driver_sql("SELECT why FROM served").scalar() == ""
            assert served.find(c, "r").why is None
        database.write(lambda c: served.explain(c, "r", "E-DISK: full"))
        with database.read() as c:
            assert served.find(c, "r").why == "E-DISK: full"
    finally:
        database.close()


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ({"round": -1, "reason": "E-FLOOR: no", "promise": ""}, (None, "E-FLOOR: no", None)),
        ({"round": None, "reason": "E-FLOOR: no"}, (None, "E-FLOOR: no", None)),
        ({"round": 0, "reason": "", "promise": "no epsilon"}, (0, None, "no epsilon")),
    ],
)
def test_a_line_of_an_owners_record(tmp_path: Path, stored: dict[str, Any], read: tuple[Any, ...]) -> None:
    plain = {"at_s": 1.0, "server": "s", "run": "r", "kind": record.RUN_REFUSED, "size": 0, **stored}
    (tmp_path / record.FILE).write_bytes(msgspec.json.encode(plain) + b"\n")
    (line,) = record.device_record_lines(tmp_path)
    assert (line.round, line.reason, line.promise) == read
    refusals = record.device_record_summary([line], 2.0)["refusals"]
    assert [one["reason"] for one in refusals] == [reason for reason in read[1:2] if reason]


@pytest.mark.parametrize(
    ("sent", "read"),
    [({"rest": "", "model": ""}, (None, None)), ({}, (None, None)), ({"rest": "r", "model": "m"}, ("r", "m"))],
)
def test_the_digests_of_a_submission(sent: dict[str, str], read: tuple[str | None, str | None]) -> None:
    """An older server has empty text for its defaults, so an absent digest is left out."""
    raw = msgspec.json.encode({"recipe": {}, "spec": [], "initial": "i", **sent})
    found = msgspec.json.decode(raw, type=Submission)
    assert (found.rest, found.model) == read
    assert (msgspec.to_builtins(found).keys() >= {"rest"}) == (read[0] is not None)


@pytest.mark.parametrize(("noted", "read"), [("", None), ("https://s3.lan", "https://s3.lan")])
def test_the_place_of_a_servers_blobs(tmp_path: Path, noted: str, read: str | None) -> None:
    (tmp_path / blob_places.ELSEWHERE).write_text(json.dumps({"url": "s3://bucket/x", "endpoint": noted}))
    found = blob_places.noted_object_store(tmp_path)
    assert found is not None
    assert found.endpoint == read
