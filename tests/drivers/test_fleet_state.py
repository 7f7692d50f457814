"""The server's database: one writer, enrolment, nonces, mailboxes and uploads, and what survives a crash."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import KINDS, url_of
from hypothesis import given
from hypothesis import strategies as st
from served import RUN, code, contribution, invite

from edgewise.core import frame
from edgewise.core.errors import DecodeError, StoreError, TransportError
from edgewise.crypto import sign
from edgewise.drivers.fleet import mailboxes, members, nonces, spool, sqlite, uploads
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.lease import LEASE_S
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.spool import Chunks
from edgewise.drivers.fleet.tables import NONCES, ROUNDS, TOKENS
from edgewise.drivers.http import tokens
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.http.signatures import TOLERANCE_S, Proof

SERVER = "ab" * 16
KEY = sign.pair(bytes(range(32))).public
DEVICE = "d" * 32
ROOM = uploads.Room(2**26, 2**30)
CONTRIBUTION = contribution(DEVICE)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of each kind."""
    return url_of(request.param)


@pytest.fixture
def database(tmp_path: Path, clock: Clock, url: str) -> Iterator[Database]:
    made = Database(tmp_path, clock, url=url)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    """A database of one server alone."""
    made = Database(tmp_path, clock)
    yield made
    made.close()


# -- the writer --------------------------------------------------------------------------------------------------------


def test_a_second_server_is_refused_and_the_first_goes_on(file: Database, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(StoreError) as e:
        Database(tmp_path, clock, wait_s=0.0)
    assert e.value.code == "E-LEASE"
    file.write(lambda c: mailboxes.open_round(c, "r", 0))


def test_who_lost_the_lease_writes_nothing_more(file: Database, tmp_path: Path, clock: Clock) -> None:
    file.write(lambda c: mailboxes.open_round(c, "r", 0))
    clock.s += 3 * LEASE_S  # the first one stood still; before it wakes up, another one takes over
    other = Database(tmp_path, clock, wait_s=0.0)
    try:
        with pytest.raises(StoreError) as e:
            file.write(lambda c: mailboxes.open_round(c, "r", 1))
        assert e.value.code == "E-LEASE"
        assert "taken over" in (file.fault() or "")
        other.write(lambda c: mailboxes.open_round(c, "r", 2))
        with other.read() as c:
            assert [row.round for row in c.execute(sa.select(ROUNDS.c.round))] == [0, 2]
    finally:
        other.close()


def test_a_closed_database_leaves_its_lease_and_refuses_changes(tmp_path: Path, clock: Clock) -> None:
    first = Database(tmp_path, clock)
    first.close()
    with pytest.raises(StoreError):
        first.write(lambda c: mailboxes.open_round(c, "r", 0))
    Database(tmp_path, clock, wait_s=0.0).close()


def test_a_full_disk_refuses_changes_and_loses_nothing(file: Database) -> None:
    post(file)
    limit = {"pages": 60}

    def bound(connection: object, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={limit['pages']}")  # type: ignore[attr-defined]

    sa.event.listen(file._engine.pool, "connect", bound)
    file._engine.pool.dispose()
    number = accept(file, CONTRIBUTION)
    step = frame.dump(frame.Step(run=RUN, round=0, device=DEVICE, body=bytes(2**19)))
    assert code(accept, file, step) == "E-DISK"
    assert "full" in (file.fault() or "")
    limit["pages"] = 10_000
    file._engine.pool.dispose()
    assert accept(file, CONTRIBUTION) == number
    assert accept(file, step) > number
    assert file.fault() is None


# -- enrolment ---------------------------------------------------------------------------------------------------------


def enrol(database: Database, clock: Clock, grant: Grant, keys: int = 1) -> list[str]:
    """Codes with which so many keys are refused when they use one token."""
    token = tokens.make_token_for_server(SERVER)
    database.write(lambda c: members.make_token(c, token, grant, "operator", clock()))
    publics = [sign.pair(bytes([n + 1]) * 32).public for n in range(keys)]
    return [code(database.write, lambda c, p=p: members.join_fleet(c, token, p, "", clock())) for p in publics]  # type: ignore[misc]


def test_a_token_lets_in_as_many_as_it_says(database: Database, clock: Clock) -> None:
    assert enrol(database, clock, Grant(uses=1), 2) == ["", "E-TOKEN"]


def test_a_reusable_token_counts(tmp_path: Path, database: Database, clock: Clock) -> None:
    assert enrol(database, clock, Grant(uses=3), 5) == ["", "", "", "E-TOKEN", "E-TOKEN"]


def test_a_key_that_joins_again_uses_the_token_once(database: Database, clock: Clock) -> None:
    token = tokens.make_token_for_server(SERVER)
    database.write(lambda c: members.make_token(c, token, Grant(tags=("b", "a")), "operator", clock()))
    first = database.write(lambda c: members.join_fleet(c, token, KEY, "lamp\n", clock()))
    clock.s += 7200.0  # the token has expired meanwhile
    assert database.write(lambda c: members.join_fleet(c, token, KEY, "other", clock())) == first
    assert (first.id, first.status, first.tags, first.label) == (key_fingerprint(KEY), "pending", ("a", "b"), "lamp")


def test_a_token_that_is_wrong_old_or_revoked_lets_nobody_in(database: Database, clock: Clock) -> None:
    token, forged, old = (
        tokens.make_token_for_server(SERVER),
        tokens.make_token_for_server(SERVER),
        tokens.make_token_for_server(SERVER),
    )
    forged = tokens.Token(token.id, forged.secret, SERVER)
    for one in (token, old):
        database.write(lambda c, one=one: members.make_token(c, one, Grant(expires_in_s=60.0), "x", clock()))  # type: ignore[misc]
    join = lambda one: code(database.write, lambda c: members.join_fleet(c, one, KEY, "", clock()))  # noqa: E731
    assert join(forged) == join(tokens.make_token_for_server(SERVER)) == "E-TOKEN"
    database.write(lambda c: members.revoke_token(c, token.id))
    assert join(token) == "E-TOKEN"
    clock.s += 60.0
    assert join(old) == "E-TOKEN"
    with database.read() as c:
        assert token.secret not in [row.digest for row in c.execute(sa.select(TOKENS.c.digest))]
    assert database.shared or token.secret not in database.path.read_bytes()


def test_a_revoked_key_cannot_come_back(database: Database, clock: Clock) -> None:
    token = tokens.make_token_for_server(SERVER)
    database.write(lambda c: members.make_token(c, token, Grant(uses=5, approved=True), "x", clock()))
    member = database.write(lambda c: members.join_fleet(c, token, KEY, "", clock()))
    database.write(lambda c: members.revoke(c, member.id, clock()))
    assert code(database.write, lambda c: members.join_fleet(c, token, KEY, "", clock())) == "E-REVOKED"
    assert code(database.write, lambda c: members.approve_member(c, member.id, clock())) == "E-REVOKED"
    assert code(database.write, lambda c: members.revoke(c, "nobody", clock())) == "E-UNKNOWN-ID"


@pytest.mark.parametrize(
    "grant",
    [
        Grant("root"), Grant(uses=0), Grant(expires_in_s=0.0), Grant(expires_in_s=91 * 86400.0),
        Grant(expires_in_s=float("nan")), Grant(tags=("A",)), Grant(tags=tuple(f"t{n}" for n in range(33))),
    ],
)  # fmt: skip
def test_a_grant_that_cannot_be_is_refused(database: Database, clock: Clock, grant: Grant) -> None:
    make = lambda c: members.make_token(c, tokens.make_token_for_server(SERVER), grant, "x", clock())  # noqa: E731
    assert code(database.write, make) == "E-REQUEST"


# -- nonces ------------------------------------------------------------------------------------------------------------


def proof(nonce: int, created: float, sender: str = DEVICE) -> Proof:
    return Proof(sender, nonce.to_bytes(16, "big"), int(created), bytes(32), None, None)


def test_a_nonce_is_spent_once_also_after_a_restart(tmp_path: Path, clock: Clock, url: str) -> None:
    first = Database(tmp_path, clock, url=url)
    first.write(lambda c: nonces.spend_nonce(c, proof(1, clock()), clock()))
    first.write(lambda c: nonces.spend_nonce(c, proof(1, clock(), "e" * 32), clock()))
    first.close()
    second = Database(tmp_path, clock, url=url)
    assert code(second.write, lambda c: nonces.spend_nonce(c, proof(1, clock()), clock())) == "E-REPLAY"
    second.close()


def test_a_request_is_not_accepted_again_when_the_clock_is_set_back(tmp_path: Path, clock: Clock, url: str) -> None:
    """Its nonce is deleted, and its time counts as fresh again. Later requests than the deleted ones are accepted."""
    began_s, sweeping = clock.s, next(n for n in range(10_000) if _digest(n)[0] == 0)
    first = Database(tmp_path, clock, url=url)
    for n in (1, 2):
        first.write(lambda c, n=n: nonces.spend_nonce(c, proof(n, clock()), clock()))  # type: ignore[misc]
    clock.s += 3600.0
    first.write(lambda c: nonces.spend_nonce(c, proof(sweeping, clock()), clock()))
    with first.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(NONCES)).scalar() == 1
    first.close()
    clock.s = began_s
    second = Database(tmp_path, clock, url=url)
    assert code(second.write, lambda c: nonces.spend_nonce(c, proof(1, clock()), clock())) == "E-BUSY"
    assert code(second.write, lambda c: nonces.spend_nonce(c, proof(3, clock() + 1.0), clock())) == ""
    second.close()


def _digest(nonce: int) -> bytes:
    return sha256(DEVICE.encode() + nonce.to_bytes(16, "big")).digest()


def test_a_nonce_is_not_spent_by_a_change_that_fails(database: Database, clock: Clock) -> None:
    def change(c: sa.Connection) -> None:
        nonces.spend_nonce(c, proof(1, clock()), clock())
        raise TransportError("E-CLOSED", "no.", "no.")

    assert code(database.write, change) == "E-CLOSED"
    database.write(lambda c: nonces.spend_nonce(c, proof(1, clock()), clock()))


def test_who_was_revoked_after_a_request_was_let_in_changes_nothing(database: Database, clock: Clock) -> None:
    """Its body was read; the change and the revocation are one after the other."""
    enrol(database, clock, Grant(approved=True))
    name = key_fingerprint(sign.pair(bytes([1]) * 32).public)
    change = lambda n: lambda c: nonces.spend_nonce(c, proof(n, clock(), name), clock())  # noqa: E731
    assert code(database.write, change(1)) == ""
    database.write(lambda c: members.revoke(c, name, clock()))
    assert code(database.write, change(2)) == "E-REVOKED"


@pytest.mark.slow
def test_nonces_are_forgotten_when_they_cannot_be_replayed(database: Database, clock: Clock) -> None:
    """A signature from a clock that is a minute fast is accepted for two minutes; one more is for clocks that step."""

    def spend(c: sa.Connection) -> int:
        for n in range(300):
            nonces.spend_nonce(c, proof(n, clock() + TOLERANCE_S, f"{clock.s:032.0f}"), clock())
        return int(c.execute(sa.select(sa.func.count()).select_from(NONCES)).scalar() or 0)

    assert database.write(spend) == 300
    clock.s += 2 * TOLERANCE_S
    assert database.write(spend) == 600
    clock.s += 70.0
    assert database.write(spend) < 900 - 200


def test_a_program_that_holds_the_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a damaged one, for which a run would fail."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 20)
    made = Database(tmp_path / "held")
    with closing(sqlite3.connect(made.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        assert code(made.write, lambda c: None) == "E-DISK"
        shell.execute("ROLLBACK")
    assert made.write(lambda c: 7) == 7
    made.close()


# -- mailboxes ---------------------------------------------------------------------------------------------------------


def post(database: Database, round: int = 0, device: str = DEVICE, run: str = RUN) -> int:
    letter = invite(round, run)
    return database.write(lambda c: mailboxes.post(c, device, frame.dump(letter), letter, 0.0))


def accept(database: Database, raw: bytes) -> int:
    message = frame.from_device(raw, 2**20)
    return database.write(lambda c: mailboxes.accept(c, message, raw, sha256(raw).digest(), None, 0.0))


def test_mail_waits_in_order_until_its_round_closes(database: Database) -> None:
    first, second, _ = post(database), post(database, run="run-2"), post(database, device="e" * 32)
    with database.read() as c:
        letters = [mailboxes.next_letter(c, DEVICE, after) for after in (0, first, second)]
    assert [letter.number if letter else None for letter in letters] == [first, second, None]
    assert post(database) == first, "the same frame again changes nothing"
    database.write(lambda c: mailboxes.close(c, RUN))
    with database.read() as c:
        letter = mailboxes.next_letter(c, DEVICE, 0)
    assert letter is not None
    assert letter.number == second
    assert post(database) > second, "a number is never given twice"


def test_a_frame_is_taken_once_for_each_phase(database: Database) -> None:
    post(database)
    number = accept(database, CONTRIBUTION)
    assert accept(database, CONTRIBUTION) == number
    assert code(accept, database, contribution(DEVICE, b"other")) == "E-CONFLICT"
    step = frame.dump(frame.Step(run=RUN, round=0, device=DEVICE, body=b"\x81\xa4type\xa6masked"))
    assert accept(database, step) > number
    with database.read() as c:
        found = mailboxes.arrivals(c, RUN, 0, 10)
        key = mailboxes.round_key(c, RUN, 0)
    assert [letter.phase for letter in found] == ["contribution", "step-masked"]
    assert mailboxes.opened(found[0], key, Chunks(database.path.parent), 1) == CONTRIBUTION


def test_a_device_has_no_more_places_and_bytes_than_a_round_needs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that no protocol has share one place, however a device names them."""
    post(database)

    def step(name: bytes, size: int = 0) -> bytes:
        body = b"\x82\xa4type" + bytes([0xA0 + len(name)]) + name + b"\xa1x\xc5" + size.to_bytes(2, "big") + bytes(size)
        return frame.dump(frame.Step(run=RUN, round=0, device=DEVICE, body=body))

    assert [code(accept, database, step(name)) for name in (b"a", b"b", b"masked", b"c")] == [
        "", "E-CONFLICT", "", "E-CONFLICT",
    ]  # fmt: skip
    nested = frame.dump(frame.Step(run=RUN, round=0, device=DEVICE, body=b"\x81\xa1a" + b"\x91" * 100_000))
    assert code(accept, database, nested) == "E-CONFLICT"
    monkeypatch.setattr(mailboxes, "DEVICE_BYTES", 2000)
    assert code(accept, database, step(b"shares", 2000)) == "E-QUOTA"
    assert code(accept, database, step(b"shares", 1000)) == ""
    post(database, device="e" * 32)
    theirs = frame.dump(frame.Step(run=RUN, round=0, device="e" * 32, body=b"\x81\xa4type\xa6masked"))
    assert code(accept, database, theirs) == "", "a quota is of one device"


@pytest.mark.parametrize("raw", [contribution(DEVICE, round=1), contribution("e" * 32), contribution(DEVICE, run="r")])
def test_who_has_no_part_in_a_round_cannot_answer_it(database: Database, raw: bytes) -> None:
    post(database)
    assert code(accept, database, raw) == "E-CLOSED"
    database.write(lambda c: mailboxes.close(c, RUN))
    assert code(accept, database, CONTRIBUTION) == "E-CLOSED"


@pytest.fixture
def careless() -> Iterator[None]:
    """SQLite as it is built on many systems: what is deleted stays in the file unless it is told otherwise."""

    def forget_nothing(connection: object, _: object) -> None:
        connection.execute("PRAGMA secure_delete=OFF")  # type: ignore[attr-defined]

    sa.event.listen(sa.Engine, "connect", forget_nothing)
    yield
    sa.event.remove(sa.Engine, "connect", forget_nothing)


def test_what_was_not_used_cannot_be_opened_after_the_round(careless: None, file: Database) -> None:
    post(file)
    accept(file, contribution(DEVICE, b"a secret that is long enough to be found" * 4))
    with file.read() as c:
        (letter,), key = mailboxes.arrivals(c, RUN, 0), mailboxes.round_key(c, RUN, 0)
    assert b"a secret" not in letter.body
    file.write(lambda c: mailboxes.close(c, RUN))
    file.scrub()
    for path in file.path.parent.iterdir():
        assert key not in path.read_bytes(), f"{path.name} still has the key of a round that is over"
    with pytest.raises(DecodeError):
        mailboxes.opened(letter, spool.new_key(), Chunks(file.path.parent), 1)


def test_the_round_goes_on_with_the_devices_that_are_kept(database: Database) -> None:
    post(database)
    post(database, device="e" * 32)
    database.write(lambda c: mailboxes.close(c, RUN, [DEVICE]))
    accept(database, CONTRIBUTION)
    assert code(accept, database, contribution("e" * 32)) == "E-CLOSED"


@given(st.binary(max_size=80))
def test_a_box_opens_for_its_key_and_place_only(plain: bytes) -> None:
    key = spool.new_key()
    box = spool.close_box(key, plain, "a/1")
    assert spool.open_box(key, box, "a/1") == plain
    assert len(box) == len(plain) + spool.OVERHEAD_BYTES
    assert box != spool.close_box(key, plain, "a/1")
    for wrong in (lambda: spool.open_box(key, box, "a/2"), lambda: spool.open_box(spool.new_key(), box, "a/1")):
        with pytest.raises(DecodeError):
            wrong()


# -- uploads -----------------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_stands(database: Database, tmp_path: Path) -> None:
    post(database)
    chunks, raw = Chunks(tmp_path / "spool"), bytes(range(256)) * 2**15  # two chunks of 4 MiB
    begin = lambda: database.write(  # noqa: E731
        lambda c: uploads.begin(c, DEVICE, RUN, 0, sha256(raw).digest(), len(raw), ROOM, 0.0)
    )
    upload = begin()
    with database.read() as c:
        key = mailboxes.round_key(c, RUN, 0)
    for number in range(2):
        assert code(uploads.check_chunk, upload, upload.received + 1, upload.chunk) == "E-OFFSET"
        assert code(uploads.check_chunk, upload, upload.received, upload.chunk - 1) == "E-QUOTA"
        uploads.check_chunk(upload, upload.received, upload.chunk)
        chunks.put(key, upload.id, number, raw[upload.received :][: upload.chunk])
        database.write(lambda c, u=upload: uploads.advance(c, u, u.chunk))  # type: ignore[misc]
        assert code(database.write, lambda c, u=upload: uploads.advance(c, u, u.chunk)) == "E-OFFSET"  # type: ignore[misc]
        assert begin().received == upload.received + upload.chunk
        upload = begin()
    assert uploads.assembled(upload, key, chunks) == raw
    assert raw[:64] not in (tmp_path / "spool" / upload.id / "000000").read_bytes()


@pytest.mark.slow
def test_uploads_of_others_are_unknown_and_quotas_hold(database: Database) -> None:
    post(database)
    begin = lambda size, digest=bytes(32): database.write(  # noqa: E731
        lambda c: uploads.begin(c, DEVICE, RUN, 0, digest, size, ROOM, 0.0)
    )
    upload = begin(100)
    with database.read() as c:
        assert code(uploads.find, c, upload.id, "e" * 32) == "E-UNKNOWN-ID"
    assert code(begin, 2**26 + 1, b"1" * 32) == code(begin, 0, b"2" * 32) == "E-QUOTA"
    assert [code(begin, 2**26, bytes([n]) * 32) for n in range(3, 8)] == ["", "", "", "E-QUOTA", "E-QUOTA"]
    full = uploads.Room(2**26, 4 * 2**26)
    assert code(database.write, lambda c: uploads.begin(c, DEVICE, RUN, 0, b"9" * 32, 1, full, 0.0)) == ""
    post(database, device="f" * 32)
    theirs = lambda c: uploads.begin(c, "f" * 32, RUN, 0, b"9" * 32, 2**26, full, 0.0)  # noqa: E731
    assert code(database.write, theirs) == "E-BUSY"
    small = [
        code(database.write, lambda c, n=n: uploads.begin(c, "f" * 32, RUN, 0, bytes([n]) * 32, 1, ROOM, 0.0))
        for n in range(uploads.OPEN + 1)
    ]
    assert small == [""] * uploads.OPEN + ["E-QUOTA"]
    other = lambda: database.write(lambda c: uploads.begin(c, "e" * 32, RUN, 0, bytes(32), 1, ROOM, 0.0))  # noqa: E731
    assert code(other) == "E-CLOSED"


def test_a_listed_token_shows_no_hash(database: Database, clock: Clock) -> None:
    enrol(database, clock, Grant())
    with database.read() as c:
        (listed,) = members.list_tokens(c)
    assert "digest" not in listed
    assert json.dumps(listed)
