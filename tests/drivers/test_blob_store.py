"""The port of blobs, over each of its drivers: what is put is whole, found, repaired, kept from sweeps, and swept."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import object_stores
import pytest
from served import code

from edgewise.core.vector import digest
from edgewise.drivers.storage.blob_store import BlobStore, Holds
from edgewise.drivers.storage.blobs import Blobs
from edgewise.drivers.storage.object_store import ObjectStore

OLD_S = 7200.0


class Folder:
    """A folder of blobs, with what a test does behind the driver's back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def opened(self, grace_s: float = 0.0) -> BlobStore:
        """Another process's view of the place."""
        return Blobs(self._folder, grace_s)

    def spoil(self, name: str, raw: bytes) -> None:
        """Change the stored bytes of a blob."""
        (self._folder / name).write_bytes(raw)

    def age(self, name: str, by_s: float) -> None:
        """Let a blob grow older."""
        at_s = (self._folder / name).stat().st_mtime - by_s
        os.utime(self._folder / name, (at_s, at_s))


class Bucket:
    """A prefix of a bucket: see Folder."""

    def __init__(self) -> None:
        self._place = object_stores.new_place()

    def opened(self, grace_s: float = 0.0) -> BlobStore:
        return ObjectStore(self._place, grace_s)

    def spoil(self, name: str, raw: bytes) -> None:
        object_stores.spoil(self._place, name, raw)

    def age(self, name: str, by_s: float) -> None:
        object_stores.age(self._place, name, by_s)


Drawer = Folder | Bucket


@pytest.fixture(params=["folder", "bucket"])
def drawer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawer:
    if request.param == "folder":
        return Folder(tmp_path)
    object_stores.credentials(monkeypatch)
    return Bucket()


@pytest.fixture
def store(drawer: Drawer) -> BlobStore:
    return drawer.opened()


@pytest.mark.parametrize("raw", [b"", b"x", bytes(range(256)) * 40], ids=["empty", "byte", "long"])
def test_what_is_put_is_found_whole_and_in_pieces(store: BlobStore, raw: bytes) -> None:
    name = store.put(memoryview(raw))
    store.sync()
    assert name == digest(raw)
    assert store.get(name) == raw
    assert store.size(name) == len(raw)
    middle = len(raw) // 3
    assert store.read(name, 0, middle) + store.read(name, middle, len(raw)) == raw


def test_what_was_never_put_is_not_found(store: BlobStore) -> None:
    name = digest(b"never")
    assert store.size(name) is None
    assert code(store.get, name) == "E-CHECKPOINT"
    assert code(store.read, name, 0, 1) == "E-CHECKPOINT"


def test_a_read_beyond_the_end_is_refused(store: BlobStore) -> None:
    name = store.put(b"four")
    assert code(store.read, name, 2, 9) == "E-CHECKPOINT"
    assert code(store.read, name, 8, 9) == "E-CHECKPOINT"


@pytest.mark.parametrize("other", [b"rotten", b"rot", b""])
def test_changed_bytes_are_found_out_and_put_repairs_them(drawer: Drawer, store: BlobStore, other: bytes) -> None:
    name = store.put(b"sound!")
    drawer.spoil(name, other)
    assert code(store.get, name) == "E-CHECKPOINT"
    assert store.put(b"sound!") == name
    assert store.get(name) == b"sound!"


def test_a_sweep_removes_what_nothing_names(store: BlobStore) -> None:
    first, second = store.put(b"1"), store.put(b"2")
    store.sweep(lambda: {first})
    assert (store.size(first), store.size(second)) == (1, None)
    store.sweep(set)
    assert store.size(first) is None


def test_a_sweep_spares_what_is_held_and_what_is_kept(store: BlobStore) -> None:
    read = store.put(b"read")
    with store.held(read), store.kept() as put:
        kept = put(b"kept")
        store.sweep(set)
        assert store.get(read) == b"read"
        assert store.get(kept) == b"kept"
    store.sweep(set)
    assert (store.size(read), store.size(kept)) == (None, None)


def test_a_sweep_that_asked_too_early_spares_what_was_named_meanwhile(store: BlobStore) -> None:
    """A blob lies there unnamed. It is put again and named between a sweep's question and its removals."""
    named, asked, put = set[str](), threading.Event(), threading.Event()
    store.put(b"again")

    def early() -> set[str]:
        found = set(named)
        asked.set()
        put.wait(5.0)
        return found

    thread = threading.Thread(target=store.sweep, args=(early,))
    thread.start()
    assert asked.wait(5.0)
    ender = threading.Timer(0.05, put.set)
    ender.start()
    with store.kept() as keep:
        name = keep(b"again")
        named.add(name)
    thread.join()
    assert store.get(name) == b"again"
    named.clear()
    store.sweep(lambda: named)
    assert store.size(name) is None


def test_a_put_waits_for_the_removal_of_its_blob_and_a_reader_does_not() -> None:
    holds, taken = Holds(), threading.Event()

    def take() -> None:
        with holds.together() as hold:
            hold("x")
            taken.set()

    with holds.sweeping() as removal:
        with removal("x") as free:
            assert free
            thread = threading.Thread(target=take)
            thread.start()
            with holds.held("x"):
                assert not taken.wait(0.1)
        assert taken.wait(5.0)
        with removal("x") as free:
            assert not free
    thread.join()


def test_the_sweep_of_another_process_spares_what_is_young_and_a_put_makes_young(drawer: Drawer) -> None:
    mine, theirs = drawer.opened(3600.0), drawer.opened(3600.0)
    old, young, again = mine.put(b"old"), mine.put(b"young"), mine.put(b"again")
    drawer.age(old, OLD_S)
    drawer.age(again, OLD_S)
    mine.put(b"again")
    theirs.sweep(set)
    assert [mine.size(name) for name in (old, young, again)] == [None, 5, 5]


def test_a_sweep_spares_what_another_process_puts_again_after_it_was_listed(drawer: Drawer) -> None:
    mine, theirs = drawer.opened(3600.0), drawer.opened(3600.0)
    name = theirs.put(b"again")
    drawer.age(name, OLD_S)

    def named() -> set[str]:
        theirs.put(b"again")
        return set()

    mine.sweep(named)
    assert theirs.get(name) == b"again"


def test_what_failed_holds_no_blob(store: BlobStore) -> None:
    name = digest(b"half")

    def fail() -> None:
        with store.kept() as put:
            put(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.size(name) == 4
    store.sweep(set)
    assert store.size(name) is None
