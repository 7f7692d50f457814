"""The run directory: transactions, digests, and clear errors for damage."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.drivers.journal import FileJournal
from edgewise.drivers.store import RunStore
from edgewise.engine.ports import Arrived, Checkpoint, Expired, Lost
from edgewise.strategies.base import State

RECORDS = [Arrived("a", b"frame" * 50, 1.5, 0.1, 0.2), Lost("b", "dropped", 2.0), Arrived("c", b"", 3.0), Expired(9.0)]


def checkpoint(n, value=1.0, unmet=0):
    x = np.full(5, value, np.float32)
    return Checkpoint(n, State(x, {"m": x * 2}, n), {"a": n - 1} if n else {}, unmet)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        opened.create("run", "toy", {"k": 1}, {"f": 2})
        yield opened


def test_commit_and_load_round_trip(store):
    assert store.load() is None
    store.commit(checkpoint(0), (), ())
    store.commit(checkpoint(1, 3.0, 2), (), ("a",))
    loaded = store.load()
    assert loaded.next_round == 1
    assert loaded.unmet == 2
    assert loaded.accepted == {"a": 0}
    np.testing.assert_array_equal(loaded.state.params, np.full(5, 3.0, np.float32))
    np.testing.assert_array_equal(loaded.state.slots["m"], np.full(5, 6.0, np.float32))


def test_old_vectors_are_swept_and_the_first_kept(store):
    for n in range(8):
        store.commit(checkpoint(n, float(n)), (), ())
    blobs = {p.name for p in (store.out / "blobs").iterdir()}
    models = store.models()
    assert models[0] in blobs
    assert models[7] in blobs
    assert models[2] not in blobs
    assert len(models) == 8


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_blob_is_named(store, damage):
    store.commit(checkpoint(0), (), ())
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
    (tmp_path / "run.db").write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(StoreError) as caught:
        RunStore(tmp_path)
    assert caught.value.code == "E-CHECKPOINT"


def test_events_and_measures_are_kept(store):
    event = events.Evaluated(round=-1, model="bundled", nll={"a": 2.0}, tokens={"a": 4}, seconds=0.5)
    store.append(event)
    store.append(event)
    assert store.events("evaluated") == [event, event]
    assert store.measures("bundled") == {"a": (2.0, 4)}
    assert store.evaluated("bundled", -1)
    assert not store.evaluated("bundled", 0)


def test_journal_survives_a_torn_tail(tmp_path):
    path = tmp_path / "j" / "round.log"
    journal = FileJournal(path)
    assert journal.replay() == []
    for record in RECORDS:
        journal.append(record)
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        records = FileJournal(path).replay()
        assert records == RECORDS[: len(records)]
        assert path.stat().st_size <= cut
    path.write_bytes(whole)
    again = FileJournal(path)
    assert again.replay() == RECORDS
    again.discard()
    assert not path.exists()


def test_journal_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "round.log"
    journal = FileJournal(path)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        FileJournal(path).replay()
    assert caught.value.code == "E-CHECKPOINT"


def test_a_full_disk_is_e_disk_and_leaves_the_run_usable(store, monkeypatch):
    store.commit(checkpoint(0), (), ())
    import edgewise.drivers.store as module

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        store.commit(checkpoint(1, 9.0), (), ())
    assert caught.value.code == "E-DISK"
    monkeypatch.undo()
    assert store.load().next_round == 0
    store.commit(checkpoint(1, 9.0), (), ())
    assert store.load().next_round == 1
