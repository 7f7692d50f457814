"""What earlier versions wrote for an absence, empty text or no bytes, is read as None."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.core.events import AnyEvent, Redistilled
from edgewise.drivers.fleet import served
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
