"""The run directory: transactions, digests, and clear errors for damage."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from cost import calls

from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.memory import Memory, flat
from edgewise.core.vector import digest, to_bytes
from edgewise.crypto.seal import SealingKey
from edgewise.drivers.storage import blobs, folder, run_record
from edgewise.drivers.storage import run_store as store_module
from edgewise.drivers.storage.files import write_durably
from edgewise.drivers.storage.journal import FileJournal
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.storage.schema import RUNS
from edgewise.engine.checkpoint import Change, Checkpoint, DeltaBlob, Downlink, Standing
from edgewise.engine.ports import Absent, Arrived, Expired
from edgewise.learn.text.blocks import Blocks
from edgewise.strategies.base import State

KEY = bytes(range(32))
RECORDS = [
    Arrived("a", b"frame" * 50, 1.5, 0.1, 0.2),
    Absent("b", "dropped", 2.0),
    Arrived("c", b"", 3.0),
    Expired(9.0),
]


def checkpoint(n, value=1.0, unmet=0):
    x = np.full(5, value, np.float32)
    return Checkpoint(n, State(x, {"m": x * 2}, n), unmet)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        opened.create("run", "toy", {"k": 1}, {"f": 2})
        yield opened


def test_what_is_absent_is_none_in_rows_and_as_before_in_the_file(tmp_path):
    """Databases of before hold -1 and empty text, which digests over their rows cover."""
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {}, window=None)
        store.commit(checkpoint(0), [])
        store.commit(checkpoint(1), [])
        assert store.run()["window"] is None
    record = run_record.read_run_record(tmp_path)
    model, line = record.models[1], record.rounds[-1]
    assert (model.memory, model.shadow, model.anchor, line.total) == (None, None, None, None)
    with closing(sqlite3.connect(tmp_path / "run.db")) as c:
        assert c.execute("SELECT window FROM runs").fetchone() == (-1,)
        assert c.execute("SELECT memory, shadow, anchor FROM models").fetchall() == [("", "", "")] * 2
        assert c.execute("SELECT total FROM rounds").fetchall() == [("",)] * 2
        models = [["run", record.run["instance"], 1, list(c.execute("SELECT * FROM models").fetchall()[1])]]
    fields = [*models[0], line.digest]
    assert record.checkpoint == sha256(json.dumps(fields).encode()).hexdigest()


def test_commit_and_load_round_trip(store):
    assert store.load() is None
    store.commit(checkpoint(0), ())
    store.commit(checkpoint(1, 3.0, 2), (), Change(["a"], ["a"]))
    loaded = store.load()
    assert loaded.next_round == 1
    assert loaded.unmet == 2
    assert store.standing(["b", "a"]) == {"b": Standing(), "a": Standing(accepted=0)}
    np.testing.assert_array_equal(loaded.state.params, np.full(5, 3.0, np.float32))
    np.testing.assert_array_equal(loaded.state.slots["m"], np.full(5, 6.0, np.float32))


def downlink(n, first):
    """As after n rounds with deltas from round ``first`` on."""
    ring = tuple(DeltaBlob(r, digest(b"delta %d" % r), f"base {r}", b"delta %d" % r) for r in range(first, n + 1))
    x = np.full(5, 100.0 + n, np.float32)
    return Downlink(n, x, digest(to_bytes(x)), ring, np.full(5, 100.0 + first - 1, np.float32))


def test_what_devices_hold_is_part_of_the_checkpoint(store):
    store.commit(replace(checkpoint(0), down=downlink(0, 1)), ())
    assert store.load().down.ring == ()
    for n, first in ((1, 1), (2, 1), (3, 2)):
        memory = Memory().put("release", None, Memory({"support": np.array([2, 4])}))
        memory = memory.put("stage", 0, Memory({"e": np.ones(2, np.float32)}))
        store.commit(replace(checkpoint(n), down=downlink(n, first), memory=memory), ())
        loaded, expected = store.load(), downlink(n, first)
        assert (loaded.down.round, loaded.down.model, loaded.down.ring) == (n, expected.model, expected.ring)
        assert loaded.down.anchor_round == first - 1
        np.testing.assert_array_equal(loaded.down.shadow, expected.shadow)
        np.testing.assert_array_equal(loaded.down.anchor, expected.anchor)
        np.testing.assert_array_equal(loaded.memory.child("release")["support"], [2, 4])


def test_who_holds_what_changes_row_by_row(store):
    def commit(n, first, had=(), stale=()):
        store.commit(replace(checkpoint(n), down=downlink(n, first)), (), Change(had=had, stale=stale))

    def held():
        return {d: s.held for d, s in store.standing([*"abcde"]).items() if s.held is not None}

    commit(0, 1)
    assert held() == {}
    commit(1, 1, ["a", "b", "c"])
    commit(2, 1, ["a", "d"], ["c"])
    assert held() == {"a": 1, "b": 0, "d": 1}
    commit(3, 2, ["d"])
    assert held() == {"a": 1, "d": 2}, "the ring reaches back to the model of round 1"
    assert {s.accepted for s in store.standing([*"abcde"]).values()} == {None}


def test_many_devices_are_asked_about_at_once(store):
    names = [f"d{i:05d}" for i in range(2500)]
    store.commit(checkpoint(1), (), Change(names[::2]))
    assert [s.accepted for s in store.standing(names).values()] == [0, None] * 1250
    assert list(store.standing(names[::-1])) == names[::-1]


def test_deltas_that_left_the_ring_are_swept(store):
    for n in range(9):
        store.commit(replace(checkpoint(n), down=downlink(n, max(1, n - 1))), ())
    blobs = {p.name for p in (store.out / "blobs").iterdir()}
    assert {n for n in range(1, 9) if digest(b"delta %d" % n) in blobs} == {7, 8}
    assert downlink(8, 7).model in blobs
    assert downlink(2, 1).model not in blobs
    (store.out / "blobs" / digest(b"delta 8")).write_bytes(b"delta 9")
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        store.load()


def test_old_vectors_are_swept_and_the_first_kept(store):
    for n in range(8):
        store.commit(checkpoint(n, float(n)), ())
    blobs = {p.name for p in (store.out / "blobs").iterdir()}
    models = store.models()
    assert models[0] in blobs
    assert models[7] in blobs
    assert models[2] not in blobs
    assert len(models) == 8


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_blob_is_named(store, damage):
    store.commit(checkpoint(0), ())
    path = store.out / "blobs" / store.models()[0]
    if damage == "flip":
        path.write_bytes(b"\x01" + path.read_bytes()[1:])
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(StoreError) as caught:
        store.load()
    assert caught.value.code == "E-CHECKPOINT"
    assert path.name in str(caught.value)


def test_a_damaged_database_is_named(tmp_path):
    folder.claim(tmp_path)
    (tmp_path / "run.db").write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(StoreError) as caught:
        RunStore(tmp_path)
    assert caught.value.code == "E-CHECKPOINT"


def test_events_and_measures_are_kept(store):
    event = events.Evaluated(round=-1, model="base", nll={"a": 2.0}, tokens={"a": 4}, seconds=0.5)
    store.append(event)
    store.append(event)
    assert [msgspec.structs.replace(e, at_s=0.0) for e in store.events("evaluated")] == [event, event]
    assert store.measures("base") == {"a": (2.0, 4)}
    assert store.evaluated("base", -1)
    assert not store.evaluated("base", 0)


def test_asking_for_an_evaluation_costs_the_same_after_many(store):
    def evaluate(n):
        store.append(events.Evaluated(round=n, model="federated", nll={"a": 2.0}, tokens={"a": 4}, seconds=0.5))

    def ask():
        assert store.evaluated("federated", 5)
        assert not store.evaluated("base", 5)

    for n in range(10):
        evaluate(n)
    ask()
    few = calls(ask)
    for n in range(10, 60):
        evaluate(n)
    assert calls(ask) == few


@pytest.mark.slow
def test_journal_survives_a_torn_tail(tmp_path):
    path = tmp_path / "j" / "round.log"
    journal = FileJournal(path, "c", KEY)
    assert list(journal.replay()) == []
    for record in RECORDS:
        journal.append(record)
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        records = list(FileJournal(path, "c", KEY).replay())
        assert records == RECORDS[: len(records)]
        assert path.stat().st_size <= cut
    path.write_bytes(whole)
    again = FileJournal(path, "c", KEY)
    assert list(again.replay()) == RECORDS
    again.discard()
    assert not path.exists()


def test_journal_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "round.log"
    journal = FileJournal(path, "c", KEY)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        list(FileJournal(path, "c", KEY).replay())
    assert caught.value.code == "E-CHECKPOINT"


def test_a_full_disk_is_e_disk_and_leaves_the_run_usable(store, monkeypatch):
    store.commit(checkpoint(0), ())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        store.commit(checkpoint(1, 9.0), ())
    assert caught.value.code == "E-DISK"
    monkeypatch.undo()
    assert store.load().next_round == 0
    store.commit(checkpoint(1, 9.0), ())
    assert store.load().next_round == 1


@pytest.fixture
def open_umask():
    """Files are made readable for everybody, unless whoever makes one says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder):
    """Path below ``folder`` -> who may do what with it."""
    return {p.relative_to(folder).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")}


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_what_holds_secrets_is_for_its_owner_only(tmp_path, open_umask):
    """Noise buffers are a blob, updates in the journal, losses of single devices in the database and its log."""
    memory = Memory({"noise": np.ones(4, np.float32)})
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {})
        store.commit(replace(checkpoint(1), down=downlink(1, 1), memory=memory), ())
        store.measure("federated", 0, "a", 1.0, 3)
        store.journal(1).append(RECORDS[0])
        found = modes(tmp_path)
    buffers = digest(safetensors.numpy.save(flat(memory)))
    for name in (f"blobs/{buffers}", "journal/round-000001.log", "run.db", "run.db-wal", "run.db-shm"):
        assert found.pop(name) == 0o600, name
    assert found.pop("blobs") == found.pop("journal") == found.pop("devices") == 0o700
    assert found.pop(f"devices/{store.memory_dir.name}") == 0o700
    assert found.pop("lock") == found.pop("edgewise.json") == 0o666
    assert set(found.values()) == {0o600}  # models and deltas


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_a_report_is_for_whom_the_umask_says(tmp_path, open_umask):
    write_durably(tmp_path / "report.html", b"page")
    assert modes(tmp_path) == {"report.html": 0o666}
    write_durably(tmp_path / "report.html", b"page", owner_only=True)
    assert modes(tmp_path) == {"report.html": 0o600}


def test_stored_events_say_when(tmp_path):
    with RunStore(tmp_path, now_s=lambda: 7.5) as store:
        store.create("run", "toy", {}, {})
        store.append(events.Evaluated(round=-1, model="base", nll={}, tokens={}, seconds=0.5))
        store.commit(checkpoint(0), (events.RoundStarted(round=0, invited=1, goal=1, minimum=1, at_s=3.0),))
        assert [e.at_s for e in store.events()] == [7.5, 3.0]


def test_a_kept_vector_that_was_replaced_goes(store):
    x = lambda value: np.full(5, value, np.float32)  # noqa: E731
    store.commit(checkpoint(0), ())
    before = {p.name for p in (store.out / "blobs").iterdir()}
    for n in range(4):
        store.keep("chain", x(50.0 + n), n)
    after = {p.name for p in (store.out / "blobs").iterdir()}
    assert len(after - before) == 1
    np.testing.assert_array_equal(store.kept("chain")[0], x(53.0))
    store.keep("chain", checkpoint(0).state.params, 9)
    store.keep("chain", x(60.0), 10)
    assert before <= {p.name for p in (store.out / "blobs").iterdir()}, "a model version was named chain for a while"


def test_one_commit_syncs_the_folder_once(store, monkeypatch):
    synced = []
    for module in (blobs, store_module):
        monkeypatch.setattr(module, "sync_folder", synced.append)
    store.commit(checkpoint(0), ())
    assert sorted(synced) == [store.out / "blobs", store.memory_dir]
    store.keep("chain", np.ones(3, np.float32))
    assert len(synced) == 3


def test_opening_removes_what_a_killed_process_left(tmp_path):
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {})
        store.commit(checkpoint(2), ())
    memory = f"devices/{store.memory_dir.name}"
    stale = ["blobs/.ab.77.tmp", f"{memory}/.cd.safetensors.77.tmp", ".summary.json.77.tmp"]
    stale += ["journal/round-000001.log", "personal/.cd.safetensors.77.tmp", "split/000001/.cd.safetensors.77.tmp"]
    kept = [
        "personal/cd.safetensors",
        "personal/.cd.tmp",
        "journal/round-000002.log",
        "journal/round-1000000.log",
        f"{memory}/cd.safetensors",
    ]
    for name in (*stale, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with RunStore(tmp_path) as store:
        names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
        renamed = [n.replace(memory, f"devices/{store.memory_dir.name}") for n in (*stale, *kept)]
    assert [n for n in renamed if n in names] == renamed[len(stale) :]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("attempt to write a readonly database", "E-DISK"),
        ("unable to open database file", "E-DISK"),
        ("database or disk is full", "E-DISK"),
        ("disk I/O error", "E-DISK"),
        ("database is locked", "E-RUN-EXISTS"),
        ("database disk image is malformed", "E-CHECKPOINT"),
        ("no such table: runs", "E-CHECKPOINT"),
    ],
)
def test_what_sqlite_says_becomes_a_code(store, said, code):
    with pytest.raises(StoreError, match=said) as caught, store._named_database_errors():
        raise sa.exc.OperationalError("select", {}, sqlite3.OperationalError(said))
    assert caught.value.code == code


def test_a_lock_that_cannot_be_opened_is_e_disk(tmp_path):
    folder.claim(tmp_path)
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreError, match="E-DISK"):
        RunStore(tmp_path)


def test_a_run_that_goes_on_sweeps_blobs_that_no_row_names(tmp_path):
    """Of a process that was killed between its last transaction and its sweep."""
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {})
        store.commit(checkpoint(2), ())
        before = {p.name for p in (tmp_path / "blobs").iterdir()}
    (tmp_path / "blobs" / ("a" * 64)).write_bytes(b"left behind")
    with RunStore(tmp_path) as store:
        assert store.load().next_round == 2
    assert {p.name for p in (tmp_path / "blobs").iterdir()} == before


@pytest.mark.parametrize("rot", [lambda raw: b"\x01" + raw[1:], lambda raw: raw[:-4], lambda raw: raw + b"1"])
def test_a_blob_that_rotted_under_its_name_is_written_anew(store, rot):
    x = np.arange(600_000, dtype=np.float32)  # more than is compared at a time
    path = store.out / "blobs" / store.put(x)
    path.write_bytes(rot(path.read_bytes()))
    assert store.put(x) == path.name
    np.testing.assert_array_equal(store.blob(path.name), x)


def test_a_replay_holds_one_record_at_a_time(tmp_path):
    """A cohort that fits in memory when it answers one by one fits when the run is resumed."""
    path, size = tmp_path / "round.log", 2**20
    journal_of(path, [Arrived(f"d{i}", bytes(size), 0.0) for i in range(30)])
    tracemalloc.start()
    seen = sum(len(record.frame) for record in FileJournal(path, "c", KEY).replay())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 30 * size
    assert peak < 5 * size


def test_a_journal_of_another_checkpoint_is_not_replayed(tmp_path):
    path = tmp_path / "round.log"
    raw = journal_of(path)
    with pytest.raises(StoreError, match=r"E-CHECKPOINT.*another checkpoint"):
        list(FileJournal(path, "other", KEY).replay())
    with pytest.raises(StoreError, match=r"E-CHECKPOINT.*another checkpoint"):
        list(FileJournal(path, "c", bytes(32)).replay())
    first = raw[: 12 + int.from_bytes(raw[:4], "little")]
    path.write_bytes(raw[len(first) :])
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        list(FileJournal(path, "c", KEY).replay())
    path.write_bytes(raw + first)
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        list(FileJournal(path, "c", KEY).replay())


def test_a_journal_is_of_the_checkpoint_that_its_store_has(tmp_path):
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {})
        store.commit(checkpoint(0), ())
        store.journal(0).append(RECORDS[0])
    with RunStore(tmp_path) as store:
        assert list(store.journal(0).replay()) == RECORDS[:1]
    with RunStore(tmp_path / "b") as store:
        store.create("run", "toy", {}, {})
        store.commit(checkpoint(0), ())
        (tmp_path / "journal/round-000000.log").rename(tmp_path / "b/journal/round-000000.log")
        with pytest.raises(StoreError, match=r"E-CHECKPOINT.*another checkpoint"):
            list(store.journal(0).replay())


def test_a_journal_opens_until_its_round_is_committed(tmp_path):
    """Neither the file nor the database has in it what devices sent, nor the key that it was sealed under."""
    secret = Arrived("d0", b"what a device sent", 0.0)
    with RunStore(tmp_path) as store:
        store.create("run", "toy", {}, {})
        store.commit(checkpoint(0), ())
        journal = store.journal(0)
        journal.append(secret)
        journal.sync()
        raw = (path := tmp_path / "journal/round-000000.log").read_bytes()
        key, at = store._read_rows(sa.select(RUNS.c.journal_key))[0][0], store._checkpoint_of(store.run())
        assert b"device sent" not in raw
        assert list(FileJournal(path, at, key).replay()) == [secret]
        store.commit(checkpoint(1), ())
        assert not path.exists()
        files = [file.read_bytes() for file in tmp_path.glob("run.db*")]
        assert len(files) >= 2, "the write-ahead log is there too"
        assert not any(key in file for file in files)
        with store._engine.connect() as c:
            assert c.execute(sa.text("PRAGMA secure_delete")).scalar() == 1
        path.write_bytes(raw)  # from a backup
        with pytest.raises(StoreError, match="E-CHECKPOINT"):
            list(store.journal(0).replay())


def journal_of(path, records=RECORDS):
    journal = FileJournal(path, "c", KEY)
    for record in records:
        journal.append(record)
    journal.close()
    return path.read_bytes()


@pytest.mark.parametrize("at", range(12))
def test_a_damaged_header_is_never_taken_for_a_torn_tail(tmp_path, at):
    path = tmp_path / "round.log"
    raw = bytearray(journal_of(path))
    raw[at] ^= 0x40
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        list(FileJournal(path, "c", KEY).replay())
    assert path.read_bytes() == bytes(raw)


def test_zeros_at_the_end_are_a_torn_tail(tmp_path):
    path = tmp_path / "round.log"
    raw = journal_of(path)
    path.write_bytes(raw + bytes(100))
    assert list(FileJournal(path, "c", KEY).replay()) == RECORDS
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgspec.msgpack.encode(["arrived", "a"]),
        msgspec.msgpack.encode(["told", "a", b"", 0.0, 0.0, 0.0]),
        msgspec.msgpack.encode(["lost", "a", b"\xff", 0.0, 0.0, 0.0]),
    ],
)
def test_a_whole_record_that_means_nothing_is_an_error(tmp_path, body):
    path = tmp_path / "round.log"
    before = journal_of(path)
    box = bytes(12) + SealingKey(KEY).seal(bytes(12), body, f"c {len(before)}".encode())
    lengths = len(box).to_bytes(4, "little") + zlib.crc32(box).to_bytes(4, "little")
    path.write_bytes(before + lengths + zlib.crc32(lengths).to_bytes(4, "little") + box)
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        list(FileJournal(path, "c", KEY).replay())


class NearlyFull(io.FileIO):
    """Takes seven bytes at a time, and after ``room`` bytes none."""

    room = 10**9

    def write(self, raw):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        n = super().write(bytes(raw[: min(7, self.room)]))
        self.room -= n
        return n


def test_a_disk_that_takes_a_part_of_a_record(tmp_path):
    path = tmp_path / "round.log"
    journal = FileJournal(path, "c", KEY)
    journal._file = NearlyFull(path, "ab")
    journal.append(RECORDS[0])
    whole = path.read_bytes()
    assert list(FileJournal(path, "c", KEY).replay()) == RECORDS[:1]
    journal._file.room = 20
    with pytest.raises(StoreError, match="E-DISK"):
        journal.append(RECORDS[2])
    assert path.read_bytes() == whole
    journal._file.room = 10**9
    journal.append(RECORDS[3])
    journal.close()
    assert list(FileJournal(path, "c", KEY).replay()) == [RECORDS[0], RECORDS[3]]


def test_a_disk_that_refuses_to_delete_stops_nothing(tmp_path, monkeypatch):
    """A file system that went read-only, or that has no room even for a deletion."""

    def refuse(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    with RunStore(tmp_path / "run") as store:
        store.create("run", "toy", {}, {})
        monkeypatch.setattr(Path, "unlink", refuse)
        (store.out / "blobs" / "nobody").write_bytes(b"left over")
        store.commit(checkpoint(0), ())
        journal = store.journal(0)
        journal.append(Absent("d", "E-NAN", 0.0))
        store.commit(checkpoint(1), (), Change(["a"]))
        assert (store.out / "blobs" / "nobody").exists()
        monkeypatch.setattr(os, "replace", lambda *_: refuse(None))
        with pytest.raises(StoreError, match=r"E-DISK: cannot write .*Read-only file system"):
            write_durably(tmp_path / "file", b"x")


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_killed_process_left_half_written_is_removed(tmp_path, begun):
    with RunStore(tmp_path) as store:
        if begun:
            store.create("r", "n", {}, {})
    name = "ab" * 32
    torn = [
        ".recipe.toml.77.tmp", f"blobs/.{name}.77.tmp", f"cache/blocks/.{name[:40]}.train.npy.x_1y5z7q",
        f"cache/tables/.{name[:32]}.jsonl.abcdefgh", f"cache/unpacked/.{name}.ab_4efgh",
    ]  # fmt: skip
    whole = [f"cache/blocks/{name[:40]}.train.npy", f"cache/tables/{name[:32]}.jsonl", "cache/tables/.of_somebody_else"]
    for name in (*torn, *whole):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    RunStore(tmp_path).close()
    assert [name for name in (*torn, *whole) if (tmp_path / name).exists()] == whole


@pytest.mark.parametrize(
    "name", ["tables/{:.32}.jsonl", "unpacked/{}", *(f"blocks/{{:.40}}.{p}.npy" for p in Blocks._fields)]
)
def test_a_cache_file_that_a_killed_process_was_writing_is_removed(tmp_path, name):
    target = tmp_path / "cache" / name.format("ab" * 32)
    code = "import os, pathlib; from edgewise.learn.text.cache import write_atomically as w; "
    code += f"w(pathlib.Path({str(target)!r}), lambda f: os._exit(9))"
    folder.claim(tmp_path)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert len(list(target.parent.iterdir())) == 1
    RunStore(tmp_path).close()
    assert list(target.parent.iterdir()) == []


def test_a_copy_of_a_quantized_model_that_a_killed_process_was_writing_is_removed(tmp_path):
    folder.claim(tmp_path)
    torn, whole = (tmp_path / "cache" / "quantized" / name for name in (f".{'ab' * 20}.x_1y5z7q", "ab" * 20))
    for made in (torn, whole):
        made.mkdir(parents=True)
        (made / "model.safetensors").write_bytes(b"x")
    RunStore(tmp_path).close()
    assert list(whole.parent.iterdir()) == [whole]


def test_a_finished_run_keeps_nothing_that_could_not_be_deleted_before(tmp_path):
    with RunStore(tmp_path) as store:
        store.create("r", "n", {}, {})
        for n in range(2):
            store.commit(checkpoint(n, float(n)), [])
        kept = {path.name for path in (tmp_path / "blobs").iterdir()}
        for name in ("blobs/" + "ab" * 32, "journal/round-000000.log"):
            (tmp_path / name).write_bytes(b"the disk refused to delete it")
        store.finish()
        assert {path.name for path in (tmp_path / "blobs").iterdir()} == kept
        assert list((tmp_path / "journal").iterdir()) == []
        assert store.run()["finished"]
