"""Blobs in an object store: its faults as errors, repeated calls, kills, and the place of a server's blobs."""

from __future__ import annotations

import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import databases
import object_stores
import pytest
from object_stores import KEY, SECRET, answering, new_place
from scripted import RECIPE, device, submission, training
from served import RUN, UNLIMITED, code, joined, running

from edgewise.apps.cli.doctor import BAD, OK
from edgewise.apps.cli.server_doctor import examine_server_folder
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import digest
from edgewise.drivers.fleet import backup, blob_places, mailboxes, served
from edgewise.drivers.fleet.mailboxes import EVERYBODY
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import certificates
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage import object_store, store_place
from edgewise.drivers.storage.object_store import ObjectStore
from edgewise.drivers.storage.store_place import StorePlace

BLOB = bytes(range(256)) * 8192  # two pieces of an answer


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    object_stores.credentials(monkeypatch)


def at(endpoint: str) -> ObjectStore:
    return ObjectStore(StorePlace("some-bucket", "fleet", endpoint), 0.0)


# -- the address ------------------------------------------------------------------------


def test_an_address_is_a_bucket_and_a_prefix() -> None:
    assert store_place.parse_store_place("s3://my-bucket/a/b=1/") == StorePlace("my-bucket", "a/b=1")
    assert (
        store_place.parse_store_place("s3://my-bucket/a", "https://minio.lan:9000/").endpoint
        == "https://minio.lan:9000"
    )
    assert store_place.parse_store_place("s3://my-bucket/a", "http://[::1]:9000").endpoint == "http://[::1]:9000"
    assert store_place.parse_store_place("s3://my-bucket/a").url == "s3://my-bucket/a"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("", ""), ("s3://", ""), ("s3://bucket", ""), ("s3://bucket/", ""), ("s3://UPPER/x", ""), ("s3://a b/x", ""),
        ("s3://buc..ket/x", ""), ("s3://bucket/../x", ""), ("s3://bucket/a//b", ""), ("s3://bucket/a?b", ""),
        ("gs://bucket/x", ""), (f"s3://{KEY}:{SECRET}@bucket/x", ""), ("s3://bucket/x", "minio:9000"),
        ("s3://bucket/x", "http://minio.lan:9000"), ("s3://bucket/x", f"https://{KEY}:{SECRET}@minio.lan"),
        ("s3://bucket/x", "https://minio.lan/path"), ("s3://bucket/x", "https://minio.lan:port"),
        ("s3://bucket/x", "ftp://minio.lan"), ("s3://bucket/x", "https://"), ("s3://bucket/x", "https://a b"),
    ],
)  # fmt: skip
def test_any_other_address_is_refused_and_not_repeated(url: str, endpoint: str) -> None:
    with pytest.raises(EdgewiseError) as e:
        store_place.parse_store_place(url, endpoint)
    assert e.value.code == "E-REQUEST"
    assert SECRET not in str(e.value)


def test_the_endpoint_of_the_environment_counts_where_none_is_given() -> None:
    found = {"AWS_ENDPOINT_URL": "https://all.lan", "AWS_ENDPOINT_URL_S3": "https://s3.lan"}
    assert store_place.given_store_place("s3://bucket/x", "", found) == StorePlace("bucket", "x", "https://s3.lan")
    assert store_place.given_store_place("s3://bucket/x", "https://mine.lan", found) == StorePlace(
        "bucket", "x", "https://mine.lan"
    )
    assert store_place.given_store_place("s3://bucket/x", "", {}) == StorePlace("bucket", "x")
    assert store_place.given_store_place("", "", found) is None
    assert code(store_place.given_store_place, "", "https://mine.lan", {}) == "E-REQUEST"


def test_the_endpoint_that_was_given_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = ObjectStore(new_place(), 0.0)
    assert store.get(store.put(b"here")) == b"here"


# -- faults ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (403, "AccessDenied", "E-STORE-ACCESS"), (403, "SignatureDoesNotMatch", "E-STORE-ACCESS"),
        (400, "ExpiredToken", "E-STORE-ACCESS"), (404, "NoSuchBucket", "E-STORE-BUCKET"),
        (301, "PermanentRedirect", "E-STORE-BUCKET"), (400, "AuthorizationHeaderMalformed", "E-STORE-BUCKET"),
        (400, "InvalidRequest", "E-STORE-CONNECT"), (501, "NotImplemented", "E-STORE-CONNECT"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_store_has_a_code_and_shows_nothing_of_its_text(
    status: int, error: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with answering(*[(status, error)] * 9) as (url, _):
        for call in (lambda s: s.put(b"four"), lambda s: s.sweep(set), lambda s: s.check_rights()):
            with pytest.raises(EdgewiseError) as e:
                call(at(url))
            assert e.value.code == expected
            assert e.value.fix
            assert not [text for text in (KEY, SECRET) if text in str(e.value)]
    assert SECRET not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.slow
def test_a_store_that_is_not_there_is_said_to_be_so() -> None:
    store = at("http://127.0.0.1:1")
    calls = (lambda: store.put(b""), lambda: store.get("0" * 64), lambda: store.size("0" * 64), store.owner)
    assert {code(call) for call in calls} == {"E-STORE-CONNECT"}
    assert "cannot be reached" in (store.fault() or "")


def test_without_credentials_the_fix_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert code(at, "http://127.0.0.1:1") == "E-STORE-ACCESS", "one half of them"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.169.254:1")
    with pytest.raises(EdgewiseError, match="AWS_ACCESS_KEY_ID") as e:
        at("http://127.0.0.1:1").size("0" * 64)
    assert e.value.code == "E-STORE-ACCESS"


@pytest.mark.slow
def test_calls_are_repeated_while_the_store_is_busy() -> None:
    with answering((503, "SlowDown"), (500, "InternalError")) as (url, seen):
        assert at(url).put(b"four") == digest(b"four")
        assert [body for _, body in seen] == [b"four"] * 3
    with answering((503, "SlowDown")) as (url, seen):
        assert at(url).read("0" * 64, 0, 4) == b"four"
        assert len(seen) == 2
    with answering((503, "SlowDown"), (500, "InternalError")) as (url, seen):
        assert at(url).fault(), "a probe does not wait"
        assert len(seen) == 1


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "ANSWER_S", 0.2)
    with answering((0, ""), (0, "")) as (url, seen):
        assert at(url).put(b"four") == digest(b"four"), "a put that was lost is repeated"
        assert len(seen) == 3
    with answering(*[(0, "")] * 9) as (url, _):
        assert code(at(url).put, b"four") == "E-STORE-CONNECT"


@pytest.mark.slow
def test_a_store_is_trusted_by_the_authority_of_the_environment_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority, certificate, key = certificates.authority_and_certificate(tmp_path, ("127.0.0.1",), now)
    with answering(tls=certificates.server_context(certificate, key)) as (url, seen):
        assert code(at(url).put, b"four") == "E-STORE-CONNECT"
        assert not seen
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert at(url).put(b"four") == digest(b"four")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none"))
        assert code(at, url) == "E-STORE-ACCESS"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    assert code(at, "http://127.0.0.1:1") == "E-DEPENDENCY"


@pytest.mark.slow
def test_a_put_that_is_killed_leaves_nothing_to_see() -> None:
    place, size = new_place(), 2**27
    program = f"""
from edgewise.drivers.storage.object_store import ObjectStore, StorePlace
ObjectStore(StorePlace({place.bucket!r}, {place.prefix!r}, {place.endpoint!r}), 0.0).put(bytes({size}))
"""
    with subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ)) as process:
        end = time.monotonic() + 60.0
        while not object_stores.parts(place) and time.monotonic() < end:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert object_stores.parts(place), "some of it has come"
    assert object_stores.names(place) == set()
    store = ObjectStore(place, 0.0)
    assert store.size(digest(bytes(size))) is None
    store.sweep(set)


# -- the place of a server's blobs ------------------------------------------------------------------------


def folder_blobs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "blobs").iterdir())


@pytest.mark.slow
def test_the_first_start_with_a_store_takes_the_blobs_of_the_folder_there(tmp_path: Path) -> None:
    place = new_place()
    with running(tmp_path) as server:
        name = server.service.blobs.put(BLOB)
    with running(tmp_path, blobs=place) as server:
        assert server.service.blobs.get(name) == BLOB
        assert folder_blobs(tmp_path / "server") == []
        assert server.service.checks()["blobs"]
        owner = server.service.identity.name
    assert json.loads((tmp_path / "server" / blob_places.ELSEWHERE).read_text()) == {
        "url": place.url, "endpoint": place.endpoint,
    }  # fmt: skip
    assert ObjectStore(place, 0.0).owner() == owner
    with running(tmp_path, blobs=place) as server:
        assert server.service.blobs.get(name) == BLOB


def opened(folder: Path, place: StorePlace | None, owner: str = "me") -> str:
    folder.mkdir(exist_ok=True)
    return code(blob_places.opened_server_blobs, folder, place, owner, 0.0)


@pytest.mark.slow
def test_blobs_are_looked_for_where_they_are(tmp_path: Path) -> None:
    first, second = new_place(), new_place()
    assert opened(tmp_path / "a", first) == ""
    assert opened(tmp_path / "a", None) == "E-STORE-BUCKET", "the folder's are not these"
    assert opened(tmp_path / "a", second) == "E-STORE-BUCKET", "nobody has copied them"
    assert opened(tmp_path / "b", first, "another") == "E-STORE-BUCKET", "two servers would sweep each other's"
    ObjectStore(second, 0.0).claim("me")
    assert opened(tmp_path / "a", second) == "", "an operator has copied them"
    assert opened(tmp_path / "a", first) == ""
    object_stores.empty(first)
    assert opened(tmp_path / "a", first) == "E-STORE-BUCKET", "an empty bucket is no store of this server"
    (tmp_path / "a" / blob_places.ELSEWHERE).write_text("{}")
    assert opened(tmp_path / "a", first) == "E-CHECKPOINT"


def test_one_of_two_servers_has_a_place(tmp_path: Path) -> None:
    place = new_place()
    store = ObjectStore(place, 0.0)
    store.claim("first")
    store.claim("second")
    assert store.owner() == "first"


@pytest.mark.slow
def test_a_start_that_was_killed_while_it_copied_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, write = new_place(), blob_places.write_durably
    with running(tmp_path) as server:
        names = [server.service.blobs.put(bytes([i])) for i in range(3)]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blob_places, "write_durably", killed)
    with pytest.raises(KeyboardInterrupt):
        blob_places.opened_server_blobs(tmp_path / "server", place, "x", 0.0)
    assert folder_blobs(tmp_path / "server") == sorted(names)
    monkeypatch.setattr(blob_places, "write_durably", write)
    store = blob_places.opened_server_blobs(tmp_path / "server", place, "x", 0.0)
    assert [store.get(name) for name in names] == [b"\x00", b"\x01", b"\x02"]


@pytest.mark.slow
def test_a_start_that_fails_releases_the_server(tmp_path: Path) -> None:
    nowhere = StorePlace("some-bucket", "x", "http://127.0.0.1:1")
    with pytest.raises(EdgewiseError, match="cannot be reached"), running(tmp_path, blobs=nowhere):
        pass
    with running(tmp_path):
        pass


@pytest.mark.slow
def test_devices_download_from_the_store_and_go_on_where_they_broke_off(tmp_path: Path) -> None:
    place = new_place()
    with running(tmp_path, blobs=place) as server, joined(server, tmp_path / "home") as device:
        (name,) = HttpCohort(server.service, RUN, 2**20).publish([BLOB])
        server.service.database.write(lambda c: mailboxes.admit(c, RUN, [device.name]))
        part = tmp_path / "got" / f"{name}.part"
        part.parent.mkdir()
        part.write_bytes(BLOB[:1_500_000])
        assert device.download(name, tmp_path / "got", len(BLOB)).read_bytes() == BLOB
        object_stores.spoil(place, name, BLOB[:-1] + b"?")
        assert code(device.download, name, tmp_path / "again", len(BLOB)) == "E-BLOB", "the device checks the digest"
        object_stores.empty(place)
        assert code(device.download, name, tmp_path / "again", len(BLOB)) == "E-BLOB"


@pytest.mark.slow
def test_what_was_put_before_a_kill_and_never_named_is_swept(tmp_path: Path) -> None:
    place = new_place()
    with running(tmp_path, blobs=place) as server:
        named = HttpCohort(server.service, RUN, 2**20).publish([b"named"])[0]
        lost = server.service.blobs.put(b"a server was killed before the commit")
    for name in (named, lost):
        object_stores.age(place, name, 7200.0)
    with running(tmp_path, blobs=place) as server:
        young = server.service.blobs.put(b"another server is about to name it")
        server.service.sweep_blobs()
        assert [server.service.blobs.size(name) is None for name in (named, lost, young)] == [False, True, False]


@pytest.mark.slow
def test_a_sweep_that_the_store_does_not_answer_waits_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = new_place()
    with running(tmp_path, blobs=place) as server:
        with monkeypatch.context() as patch, answering(*[(403, "AccessDenied")] * 9) as (url, _):
            store = at(url)
            patch.setattr(server.service.blobs, "sweep", store.sweep)
            server.service.sweep_blobs()
        assert "blobs were not swept: E-STORE-ACCESS" in caplog.text


@pytest.mark.slow
def test_a_backup_has_the_promoted_models_and_a_restored_server_has_them_anywhere(tmp_path: Path) -> None:
    place, other = new_place(), new_place()
    with running(tmp_path, blobs=place) as server:
        name = server.service.blobs.put(b"promoted")
        server.service.database.write(lambda c: mailboxes.publish(c, EVERYBODY, {name: 8}))
        HttpCohort(server.service, RUN, 2**20).publish([b"of a round"])
        backup.save(tmp_path / "server", tmp_path / "copy", time.time())
    assert folder_blobs(tmp_path / "copy") == [name]
    for at_place, where in ((None, "one"), (place, "two"), (other, "three")):
        backup.restore(tmp_path / "copy", tmp_path / where / "server", time.time())
        with running(tmp_path / where, blobs=at_place) as server:
            assert server.service.blobs.get(name) == b"promoted"
    object_stores.empty(place)
    assert code(backup.save, tmp_path / "two" / "server", tmp_path / "copy-2", time.time()) == "E-CHECKPOINT"


@pytest.mark.slow
def test_the_doctor_looks_at_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, folder = new_place(), tmp_path / "server"
    with running(tmp_path, blobs=place) as server:
        server.service.blobs.put(b"12345")

    def finding() -> tuple[str, str]:
        (one,) = [one for one in examine_server_folder(folder, "127.0.0.1:1", time.time()) if one.name == "blobs"]
        return one.state, one.found

    before = object_stores.names(place)
    assert finding() == (OK, f"1 in {place.url}, 0.0 MB")
    assert object_stores.names(place) == before
    object_stores.spoil(place, "owner", b"somebody")
    assert finding() == (BAD, f"{place.url} belongs to the server somebody")
    object_stores.empty(place)
    assert finding() == (BAD, f"{place.url} has no blobs of this server")
    text = (folder / blob_places.ELSEWHERE).read_text().replace(place.endpoint, "http://127.0.0.1:1")
    (folder / blob_places.ELSEWHERE).write_text(text)
    assert finding()[0] == BAD


@pytest.mark.slow
def test_a_server_says_that_its_store_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, blobs=new_place()) as server:
        assert server.service.checks()["blobs"]
        monkeypatch.setattr(server.service, "_sound", (True, -99.0))
        monkeypatch.setattr(server.service.blobs, "_probe", at("http://127.0.0.1:1")._probe)
        assert not server.service.checks()["blobs"]


def test_the_clock_of_this_machine_does_not_matter_to_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    place = new_place()
    store = ObjectStore(place, 3600.0)
    young, old = store.put(b"young"), store.put(b"old")
    object_stores.age(place, old, 7200.0)
    for ahead_s in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: 1.7e9 + ahead_s)
        store.sweep(set)
        assert (store.size(young), store.size(old)) == (5, None)


def serve(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command, as a process."""
    command = [sys.executable, "-m", "edgewise.apps.cli.main", "serve", str(folder), "--listen", "127.0.0.1:0"]
    found = {**os.environ, **environment}
    return subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=found)


@pytest.mark.slow
def test_the_command_keeps_blobs_where_its_environment_says(tmp_path: Path) -> None:
    place, folder = new_place(), tmp_path / "server"
    settings = {"EDGEWISE_BLOBS": place.url, "AWS_ENDPOINT_URL": place.endpoint}
    with serve(folder, **settings) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("{")
        finally:
            server.kill()
    assert object_stores.names(place) == {"owner"}
    assert blob_places.noted_object_store(folder) == place
    with serve(folder) as server:
        said = "".join(server.communicate(timeout=60.0))
    assert server.returncode == 2
    assert "E-STORE-BUCKET" in said
    assert place.url in said


@pytest.mark.slow
def test_a_run_waits_for_its_store_and_goes_on(tmp_path: Path) -> None:
    """The store is gone when a round publishes. The run says so, and ends as if nothing had been."""
    recipe = {**RECIPE, "round": {"rounds": 3, "minimum": 1.0}}
    with running(tmp_path, UNLIMITED, new_place()) as server:
        blobs, waited = server.service.blobs, list[str]()
        assert isinstance(blobs, ObjectStore)
        sound = blobs._store

        def turn(run: str) -> bool:
            with server.service.database.read() as c:
                if not waited and served.find(c, run).state == served.RUNNING:
                    blobs._store = at("http://127.0.0.1:1")._store
            return True

        server.hosting._turn = turn
        devices = [device(server, tmp_path / f"device{i}") for i in range(2)]
        run = server.hosting.submit(submission(recipe, server), "me").run
        with training(devices):
            until = time.monotonic() + 60.0
            while time.monotonic() < until:
                with server.service.database.read() as c:
                    found = served.find(c, run)
                if found.state != served.RUNNING:
                    break
                if "E-STORE-CONNECT" in (why := server.hosting.why(found) or ""):
                    waited.append(why)
                    blobs._store = sound
                time.sleep(0.05)
        assert found.state == served.FINISHED, found.why
        assert waited
        assert "Look at the object store; the run then goes on by itself." in waited[0]


@pytest.mark.slow
def test_servers_of_one_database_hand_out_what_any_of_them_published(tmp_path: Path) -> None:
    """The second one hands out the first one's blobs, and its sweep spares what the first one is about to name."""
    url, place = databases.new_url(), new_place()
    with (
        HttpServer(tmp_path / "server", database=url, blobs=place, limits=UNLIMITED) as first,
        HttpServer(tmp_path / "server", database=url, blobs=place, limits=UNLIMITED) as second,
    ):
        token = first.token(Grant("device", approved=True))
        with Link.join(second.url, token, tmp_path / "home", patience_s=10.0) as device_link:
            name = first.service.blobs.put(BLOB)
            first.service.database.write(lambda c: mailboxes.publish(c, EVERYBODY, {name: len(BLOB)}))
            assert device_link.download(name, tmp_path / "got", len(BLOB)).read_bytes() == BLOB
        with first.service.blobs.kept() as put:
            young = put(b"named in a moment")
            second.service.sweep_blobs()
        assert second.service.blobs.get(young) == b"named in a moment"
        assert second.service.blobs.get(name) == BLOB
    assert folder_blobs(tmp_path / "server") == []
