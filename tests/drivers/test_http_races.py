"""Things that happen at the same time on one server: uploads of one device, and blobs of several runs."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from served import RUN, contribution, count, joined, running, send_invitation
from starlette.responses import Response

from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, spool
from edgewise.drivers.http.blob_response import BlobResponse
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.link import Link
from edgewise.engine.ports import Arrived

LATE_S = 0.3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.mark.slow
def test_a_chunk_that_comes_late_replaces_none_that_was_accepted(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device sends two chunks for one place, and the disk is slow with the first: the accepted frame stays."""
    late, begun, write = bytes(5000), threading.Event(), spool.Chunks.put

    def slow(chunks: spool.Chunks, key: bytes, upload: str, number: int, plain: bytes) -> None:
        if plain == late:
            begun.set()
            threading.Event().wait(LATE_S)
        write(chunks, key, upload, number, plain)

    monkeypatch.setattr(spool.Chunks, "put", slow)
    with joined(server, tmp_path / "home") as device, Link(tmp_path / "home") as second:
        send_invitation(server, device.name)
        raw = contribution(device.name, b"x" * (5300 - len(contribution(device.name, b"x" * 300))))
        assert len(raw) == len(late)
        document = {"digest": hashlib.sha256(raw).hexdigest(), "size": len(raw)}

        def put(link: Link, piece: bytes) -> None:
            with suppress(TransportError):
                upload = link.call("POST", "/v1/uploads", document=document, run=RUN, round=0)["upload"]
                link.call("PUT", f"/v1/uploads/{upload}", {"offset": 0}, body=piece, run=RUN, round=0)

        thread = threading.Thread(target=put, args=(second, late))
        thread.start()
        assert begun.wait(5.0)
        accepted = False
        count(device, raw)
        for _ in range(2):  # where the late chunk came first, the upload begins again
            put(device, raw)
            upload = device.call("POST", "/v1/uploads", document=document, run=RUN, round=0)["upload"]
            with suppress(TransportError):
                device.call("POST", "/v1/outbox", {"upload": upload}, run=RUN, round=0)
                accepted = True
        assert accepted
        thread.join()
        with suppress(TransportError):  # a frame that is sent again does not take the accepted one away
            device.call("POST", "/v1/outbox", {"upload": upload}, run=RUN, round=0)
        arrived = HttpCohort(server.service, RUN, 2**20).receive(5.0)
        assert isinstance(arrived, Arrived)
        assert arrived.frame == raw


@pytest.mark.slow
def test_a_run_that_publishes_takes_no_blob_from_another(server: HttpServer) -> None:
    """Two runs publish again and again: each finds its own blobs afterwards."""
    missing, failed = [], []

    def play(run: str) -> None:
        cohort = HttpCohort(server.service, run, 2**20)
        try:
            for number in range(40):
                digests = cohort.publish([f"{run} {number} {part}".encode() for part in range(3)])
                missing.extend(d for d in digests if not server.service.blobs.path(d).is_file())
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=play, args=(f"run-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not missing
    assert len(list((server.service.folder / "blobs").iterdir())) == 9, "those that nobody names are gone"


def test_a_blob_that_is_replaced_while_it_is_asked_for_is_sent(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run publishes another model between the answer's begin and the reading of the blob."""
    cohort, answer = HttpCohort(server.service, RUN, 2**20), BlobResponse._answer
    with joined(server, tmp_path / "home") as device:
        server.service.database.write(lambda c: mailboxes.admit(c, RUN, [device.name]))
        (digest,) = cohort.publish([b"the round's model"])

        def late(response: BlobResponse, size: int) -> Response:
            cohort.publish([b"the next one"])
            return answer(response, size)

        monkeypatch.setattr(BlobResponse, "_answer", late)
        assert device.download(digest, tmp_path / "blobs", 100).read_bytes() == b"the round's model"
    monkeypatch.undo()
    give_up = time.monotonic() + 5.0
    while server.service.blobs.path(digest).exists() and time.monotonic() < give_up:
        server.service.sweep_blobs()  # the answer ends a moment after the device has it
    assert not server.service.blobs.path(digest).exists()
