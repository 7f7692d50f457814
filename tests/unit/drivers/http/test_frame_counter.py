"""Frame counters: copies of a device's folder, crashes, lost answers, and servers that were put back."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from served import code

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.fleet import counters
from edgewise.drivers.fleet.counters import LastFrame
from edgewise.drivers.fleet.tables import COUNTERS
from edgewise.drivers.http.frame_counter import FrameCounter, checked, stated
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.storage.counter_file import earlier, load, path

NAME = "0d" * 16
SERVER = Identity(*((pair := sign.pair(bytes(32))).public, pair.secret))


class Crash(Exception):
    """The device died."""


class Server:
    """A server's table of counters in memory.

    ``dies``: whether the device dies before the claim, or before its answer. ``during``: called during a claim.
    """

    def __init__(self) -> None:
        self._engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        COUNTERS.create(self._engine)
        self.dies = ""
        self.during: Callable[[], None] = lambda: None

    def claim(self, document: Mapping[str, Any]) -> Any:
        self.during()
        if self.dies == "before the claim":
            raise Crash
        last = LastFrame(document["number"], bytes.fromhex(document["digest"]) if document["number"] else None)
        with self._engine.begin() as c:
            known = counters.count(c, NAME, last)
        if self.dies == "before the answer":
            raise Crash
        return stated(SERVER, NAME, known.number, known.digest)

    def memory(self) -> LastFrame:
        with self._engine.begin() as c:
            return counters.find(c, NAME)

    def put_back(self, memory: LastFrame) -> None:
        with self._engine.begin() as c:
            c.execute(COUNTERS.delete())
            if memory.number:
                c.execute(COUNTERS.insert().values(device=NAME, number=memory.number, digest=memory.digest))


def opened(home: Path, claim: Callable[[Mapping[str, Any]], Any]) -> FrameCounter:
    """The counter of a process that has just started."""
    return FrameCounter(home, NAME, SERVER.name, claim)


def frame() -> str:
    """The digest of a frame with fresh noise."""
    return secrets.token_hex(32)


def test_an_older_copy_is_noticed_and_stays_noticed(tmp_path: Path) -> None:
    server, home, copy = Server(), tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    opened(home, server.claim).count(frame())
    shutil.copytree(home, copy)
    opened(home, server.claim).count(frame())
    assert code(opened(copy, server.claim).recall) == "E-OLDER", "at its start, before it trains"
    server.put_back(counters.NOTHING)
    assert code(opened(copy, lambda _: pytest.fail("it asks")).count, frame()) == "E-OLDER"
    assert load(path(copy, NAME)).remembered == 2
    opened(home, server.claim).count(frame())


def test_the_second_of_two_running_copies_is_noticed(tmp_path: Path) -> None:
    server, home, copy = Server(), tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    first = opened(home, server.claim)
    first.count(frame())
    shutil.copytree(home, copy)
    second = opened(copy, server.claim)
    second.recall()
    second.count(frame())
    assert code(first.count, frame()) == "E-OLDER"
    second.count(frame())


def test_a_frame_is_counted_once(tmp_path: Path) -> None:
    server, same = Server(), frame()
    for _ in range(2):
        counter = opened(tmp_path, server.claim)
        counter.count(same)
        counter.count(same)
    assert server.memory().number == 1


@pytest.mark.parametrize("dies", ["before the claim", "before the answer"])
def test_a_device_that_dies_goes_on(tmp_path: Path, dies: str) -> None:
    server = Server()
    opened(tmp_path, server.claim).count(frame())
    counter = opened(tmp_path, server.claim)
    counter.recall()
    server.dies = dies
    with pytest.raises(Crash):
        counter.count(frame())
    server.dies = ""
    opened(tmp_path, server.claim).count(frame())
    assert server.memory().number == 3


def test_only_the_key_of_the_server_says_what_it_remembers(tmp_path: Path) -> None:
    pair = sign.pair(bytes([1]) * 32)
    other = Identity(pair.public, pair.secret)
    digest = bytes.fromhex(text := frame())
    for liar in (
        stated(other, NAME, 1, digest),
        {**stated(other, NAME, 1, digest), "key": SERVER.public.hex()},
        stated(SERVER, "0e" * 16, 1, digest),
        {**stated(SERVER, NAME, 2, digest), "number": 1},
        {**stated(SERVER, NAME, 1, digest), "key": "?"},
        {"number": 1},
        None,
    ):
        assert code(checked, liar, SERVER.name, NAME) == "E-CONNECT"
    assert checked(stated(SERVER, NAME, 1, digest), SERVER.name, NAME) == (1, text)
    assert load(path(tmp_path, NAME)).remembered is None


def test_a_recorded_answer_does_not_stop_a_device(tmp_path: Path) -> None:
    server, first = Server(), frame()
    for digest in (first, frame()):
        opened(tmp_path, server.claim).count(digest)
    recorded = stated(SERVER, NAME, 1, bytes.fromhex(first))
    assert code(opened(tmp_path, lambda _: recorded).recall) == "E-CONNECT"
    opened(tmp_path, server.claim).count(frame())


def test_a_server_without_a_counter_gets_nothing(tmp_path: Path) -> None:
    def old(_: object) -> None:
        raise TransportError("E-ROUTE", "no such route.")

    assert code(opened(tmp_path, old).count, frame()) == "E-COUNTER"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path(tmp_path, NAME).parent.mkdir()
    path(tmp_path, NAME).write_bytes(b"{}}")
    assert code(opened(tmp_path, Server().claim).count, frame()) == "E-CHECKPOINT"


def test_a_kept_ledger_that_lacks_charges_is_not_counted_on_from(tmp_path: Path) -> None:
    server, other = Server(), "0e" * 16
    opened(tmp_path, server.claim).count(frame())
    assert earlier(tmp_path, NAME) == ()
    assert earlier(tmp_path, other) == (NAME,)
    server.put_back(LastFrame(7, bytes(32)))
    assert code(opened(tmp_path, server.claim).recall) == "E-OLDER"
    assert code(earlier, tmp_path, other) == "E-OLDER"
    assert earlier(tmp_path, NAME) == ()


class World:
    """Copies of one device's folder and of its server's memory.

    ``sent``: what has left from any folder. ``known``: folder -> what its copy may know to have left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, Server()
        self.running: dict[int, FrameCounter] = {}
        self.known: dict[int, set[str]] = {0: set()}
        self.sent = set[str]()
        self.home(0).mkdir()

    def home(self, number: int) -> Path:
        return self.folder / str(number)

    def copy(self, source: int) -> None:
        """Copy a folder, also while its process runs. The copy is started anew."""
        number = len(self.known)
        shutil.copytree(self.home(source), self.home(number))
        self.known[number] = set(self.known[source])

    def restart(self, number: int) -> None:
        self.running.pop(number, None)

    def send(self, number: int, dies: str = "") -> bool:
        """Send a frame from a folder. Returns whether it left."""
        counter = self.running.setdefault(number, opened(self.home(number), self.server.claim))
        digest, copied = frame(), list[int]()
        try:
            counter.recall()
            self.known[number].add(digest)  # state and ledger are on the disk before the frame is counted
            self.server.dies = dies
            if dies == "copied meanwhile":
                self.server.during = lambda: copied.append(number) or self.copy(number) if not copied else None
            counter.count(digest)
        except (Crash, TransportError) as e:
            if isinstance(e, Crash):
                self.restart(number)
            return False
        finally:
            self.server.dies, self.server.during = "", lambda: None
        self.sent.add(digest)
        return True


DIES = st.sampled_from(["", "", "before the claim", "before the answer", "copied meanwhile"])
ACTS = st.one_of(
    st.tuples(st.just("copy"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.integers(0, 3)),
    st.tuples(st.just("send"), st.integers(0, 3), DIES),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(ACTS, max_size=14))
def test_a_folder_that_lacks_what_has_left_sends_nothing(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[Any, ...]]
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for act, number, *more in acts:
        if number not in world.known:
            continue
        before = set(world.sent)
        left = getattr(world, act)(number, *more)
        if act == "send" and left:
            assert before <= world.known[number], "nothing had left that this folder does not know of"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.tuples(st.just("send"), DIES), st.tuples(st.just("put back"))), max_size=12))
def test_the_only_copy_is_never_refused(tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, ...]]) -> None:
    """Whatever older memory the server is put back to."""
    world = World(tmp_path_factory.mktemp("world"))
    memories = [counters.NOTHING]
    for act, *more in acts:
        if act == "put back":
            world.server.put_back(memories[len(memories) // 2])
        else:
            assert world.send(0, *more) is (not more[0].startswith("before"))
            memories.append(world.server.memory())
    assert world.send(0)
