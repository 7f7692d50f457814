"""A gateway between devices and their server: it passes on what they sign, and fetches a blob once for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from served import RUN, code, contribution, running, send_invitation

from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.blob_cache import BlobCache
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.link import Link

BLOB = bytes(range(256)) * 4096  # a MiB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def gateway(server: HttpServer, tmp_path: Path) -> Iterator[Gateway]:
    join(server.url, server.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
    with Gateway(tmp_path / "gateway", cache_bytes=3 * 2**20) as made:
        yield made


@pytest.fixture
def device(server: HttpServer, gateway: Gateway, tmp_path: Path) -> Iterator[Link]:
    with through(server, gateway, tmp_path / "home") as link:
        yield link


def through(server: HttpServer, gateway: Gateway, folder: Path, run: str = RUN) -> Link:
    """A device that takes part in a run, and reaches the server through the gateway."""
    token = server.token(Grant(approved=True))
    link = Link.join(gateway.url, token, folder, patience_s=10.0, gateway=gateway.name)
    server.service.database.write(lambda c: mailboxes.admit(c, run, [link.name]))
    return link


@pytest.mark.slow
def test_mail_goes_both_ways(server: HttpServer, device: Link) -> None:
    number = send_invitation(server, device.name)
    mail = device.poll(0, 1.0)
    assert mail is not None
    assert mail.number == number
    large = contribution(device.name, bytes(5 * 2**20))
    assert device.send(RUN, 0, large) == device.send(RUN, 0, large)
    assert code(device.send, RUN, 0, contribution(device.name, b"other")) == "E-CONFLICT"
    assert code(device.send, RUN, 1, contribution(device.name, round=1)) == "E-CLOSED"


@pytest.mark.slow
def test_a_device_comes_to_the_server_that_its_token_names_and_to_the_gateway_that_its_owner_names(
    server: HttpServer, gateway: Gateway, tmp_path: Path
) -> None:
    with running(tmp_path / "other") as other:
        token = other.token(Grant(approved=True))
        assert code(Link.join, gateway.url, token, tmp_path / "a", "", False, 5.0, gateway.name) == "E-SERVER-KEY"
    token = server.token(Grant(approved=True))
    assert code(Link.join, gateway.url, token, tmp_path / "b", "", False, 5.0, "0" * 32) == "E-SERVER-KEY"
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_blob_is_fetched_once_for_eight_devices(server: HttpServer, gateway: Gateway, tmp_path: Path) -> None:
    """All ask at once. Seven of them cost the server an answer of one byte."""
    (digest,) = HttpCohort(server.service, RUN, 2**20).publish([BLOB])
    links = [through(server, gateway, tmp_path / f"home-{i}") for i in range(8)]
    before = gateway.relay.down_bytes
    got: list[bytes] = []
    ask = lambda link: got.append(link.download(digest, tmp_path / link.name, 2**28).read_bytes())  # noqa: E731
    threads = [Thread(target=ask, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [BLOB] * 8
    assert gateway.relay.down_bytes - before == len(BLOB) + 7
    assert gateway.relay.hits == 7
    for link in links:
        link.close()


@pytest.mark.slow
def test_a_download_goes_on_where_it_broke_off(server: HttpServer, device: Link, tmp_path: Path) -> None:
    (digest,) = HttpCohort(server.service, RUN, 2**20).publish([BLOB])
    folder = tmp_path / "blobs"
    for have in (1000, len(BLOB)):
        folder.mkdir(exist_ok=True)
        (folder / f"{digest}.part").write_bytes(BLOB[:have])
        assert device.download(digest, folder, 2**28).read_bytes() == BLOB
        (folder / digest).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("have", [1000, len(BLOB)])
def test_the_gateway_goes_on_where_its_own_download_broke_off(
    server: HttpServer, gateway: Gateway, device: Link, tmp_path: Path, have: int
) -> None:
    (digest,) = HttpCohort(server.service, RUN, 2**20).publish([BLOB])
    (tmp_path / "gateway" / "cache" / f"{digest}.part").write_bytes(BLOB[:have])
    before = gateway.relay.down_bytes
    assert device.download(digest, tmp_path / "blobs", 2**28).read_bytes() == BLOB
    assert gateway.relay.down_bytes - before == len(BLOB) - have


@pytest.mark.slow
def test_what_is_here_is_for_those_whom_the_server_lets_have_it(
    server: HttpServer, gateway: Gateway, device: Link, tmp_path: Path
) -> None:
    cohort = HttpCohort(server.service, RUN, 2**20)
    (digest,) = cohort.publish([BLOB])
    device.download(digest, tmp_path / "blobs", 2**28)
    path = f"/v1/blobs/{digest}"
    assert device._http.get(path).json()["code"] == "E-SIGNATURE", "nobody"
    with through(server, gateway, tmp_path / "third", "run-2") as third:
        assert code(third.download, digest, tmp_path / "none", 2**28) == "E-BLOB", "of another run"
    with through(server, gateway, tmp_path / "second") as second, through(server, gateway, tmp_path / "op") as other:
        with Link.join(server.url, server.token(Grant("operator", approved=True)), tmp_path / "operator") as operator:
            operator.call("POST", f"/v1/devices/{second.name}/revoke")
        assert code(second.download, digest, tmp_path / "none", 2**28) == "E-REVOKED"
        cohort.publish([])
        assert code(other.download, digest, tmp_path / "none", 2**28) == "E-BLOB", "not published any more"


@pytest.mark.slow
def test_a_gateway_changes_nothing_that_is_signed(server: HttpServer, gateway: Gateway, device: Link) -> None:
    headers = device._signed("POST", "/v1/outbox", "", b"what was signed", RUN, "0")
    for method, path, body in (
        ("POST", "/v1/outbox", b"something else"), ("POST", "/v1/uploads", b"what was signed"),
        ("POST", "/v1/outbox?upload=0", b"what was signed"),
    ):  # fmt: skip
        answer = device._http.request(method, path, content=body, headers=headers)
        assert answer.json()["code"] == "E-SIGNATURE"
    for method, path in (("GET", "/v1/devices"), ("POST", "/v1/tokens"), ("GET", "/v1/runs")):
        assert device._http.request(method, path).json()["code"] == "E-ROUTE", "no way for operators"


@pytest.mark.slow
def test_other_bytes_than_those_of_the_digest_are_not_kept(
    server: HttpServer, gateway: Gateway, device: Link, tmp_path: Path
) -> None:
    (digest,) = HttpCohort(server.service, RUN, 2**20).publish([BLOB])
    server.service.blobs.path(digest).write_bytes(b"rotten")
    assert code(device.download, digest, tmp_path / "blobs", 2**28) == "E-BLOB"
    server.service.blobs.path(digest).write_bytes(BLOB)
    assert device.download(digest, tmp_path / "blobs", 2**28).read_bytes() == BLOB


@pytest.mark.slow
def test_a_blob_that_is_larger_than_the_cache_passes(
    server: HttpServer, gateway: Gateway, device: Link, tmp_path: Path
) -> None:
    large = BLOB * 4
    (digest,) = HttpCohort(server.service, RUN, 2**20).publish([large])
    assert device.download(digest, tmp_path / "blobs", 2**28).read_bytes() == large
    assert not list((tmp_path / "gateway" / "cache").iterdir())


@pytest.mark.slow
def test_a_server_that_is_down_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        join(server.url, server.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        with Gateway(tmp_path / "gateway") as gateway:
            device = through(server, gateway, tmp_path / "home")
            server.close()
            device.patience_s = 0.5
            assert code(device.standing) == "E-CONNECT"
            device.close()


def test_the_cache_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 250)
    blobs = [bytes([i]) * 100 for i in range(3)]
    names = [hashlib.sha256(blob).hexdigest() for blob in blobs]

    def keep(i: int) -> None:
        cache.append(names[i], blobs[i][:50], first=True)
        cache.append(names[i], blobs[i][50:], first=False)
        cache.keep(names[i])

    keep(0)
    keep(1)
    assert cache.path(names[0]) is not None
    keep(2)
    assert [cache.path(name) is not None for name in names] == [True, False, True]
    again = BlobCache(tmp_path, 100)
    assert again.size_bytes <= 100
    cache.append(names[1], b"other", first=True)
    with pytest.raises(TransportError) as e:
        cache.keep(names[1])
    assert e.value.code == "E-BLOB"
    assert not list(tmp_path.glob("*.part"))


def test_the_cache_of_an_earlier_process_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    """A power cut can leave a name with other bytes; devices would refuse them for ever."""
    names = [hashlib.sha256(blob).hexdigest() for blob in (b"first", b"second")]
    before = BlobCache(tmp_path, 250)
    for name, blob in zip(names, (b"first", b"second"), strict=True):
        before.append(name, blob, first=True)
        before.keep(name)
    (tmp_path / names[1]).write_bytes(b"")
    after = BlobCache(tmp_path, 250)
    assert [after.path(name) is not None for name in names] == [True, False]
    after.append(names[1], b"second", first=True)
    assert after.keep(names[1]) == after.path(names[1])
