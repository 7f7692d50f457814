"""A device whose disk is full: it says so, waits with growing pauses, and goes on with the same mail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from owned import ended, owned, seen, submitted, working
from served import invite, joined, running
from small_disk import fill, small_disk

from edgewise.apps.device import control, record
from edgewise.core import frame
from edgewise.core.errors import StoreError
from edgewise.drivers.http import attend as attending
from edgewise.drivers.http.attend import Watch, attend
from edgewise.drivers.http.link import Mail

FULL = StoreError("E-DISK", "no space left.", "free some space.")


class Waits(Watch):
    """It counts pauses. The owner's record is not written either, the first ``record_fails`` times."""

    def __init__(self, record_fails: int) -> None:
        self.waited: list[float] = []
        self._fails = record_fails

    def leaving(self, part: object, frame: bytes) -> None:
        self._fails -= 1
        if self._fails >= 0:
            raise FULL

    def disk_full(self, error: StoreError, wait_s: float) -> None:
        self.waited.append(wait_s)


def play(watch: Watch, fails: int, error: StoreError = FULL) -> tuple[list[bytes], list[int]]:
    """Attend to one mail, for whose answer the device's state is saved after ``fails`` attempts.

    Returns the sent frames, and the numbers after which mail was asked for.
    """
    sent: list[bytes] = []
    polled: list[int] = []
    left = [fails]

    def poll(after: int, wait_s: float) -> Mail | None:
        polled.append(after)
        return Mail(7, frame.dump(invite())) if after < 7 else None

    def answer(*_: object) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return SimpleNamespace(frame=b"the answer")

    send, speed = lambda run, round, raw: sent.append(raw), SimpleNamespace(up_mbit=1.0)
    frames = SimpleNamespace(recall=lambda: None)
    link: Any = SimpleNamespace(name="d", poll=poll, standing=dict, speed=speed, send=send, frames=frames)
    devices = SimpleNamespace(wanted=lambda *_: (), answer=answer, plan=None)
    part: Any = SimpleNamespace(devices=devices, downloads=None, blobs=Path())
    attend(link, lambda run: part, lambda: bool(polled) and polled[-1] == 7, 0.0, watch)
    return sent, polled


@pytest.fixture
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "broadcast", SimpleNamespace(most_bytes=lambda plan: 0))


@pytest.mark.usefixtures("no_limits")
def test_the_same_mail_is_taken_again_after_growing_pauses() -> None:
    watch = Waits(0)
    sent, polled = play(watch, fails=9)
    assert (sent, polled) == ([b"the answer"], [0] * 10 + [7])
    assert [attending.FIRST_S * 2**n / 2 <= s <= attending.FIRST_S * 2**n for n, s in enumerate(watch.waited[:6])] == [
        True
    ] * 6
    assert max(watch.waited) <= attending.LONGEST_S


@pytest.mark.usefixtures("no_limits")
def test_a_frame_waits_in_memory_for_its_line_in_the_record() -> None:
    """A device that trained anew could not send it: an update leaves once."""
    watch = Waits(3)
    sent, polled = play(watch, fails=0)
    assert (sent, polled, len(watch.waited)) == ([b"the answer"], [0, 7], 3)


@pytest.mark.usefixtures("no_limits")
def test_a_damaged_state_ends_the_device() -> None:
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        play(Waits(0), 1, StoreError("E-CHECKPOINT", "damaged.", "restore it."))


@pytest.mark.slow
def test_an_agent_on_a_full_disk_says_so_and_takes_part_again_when_there_is_room(tmp_path: Path) -> None:
    words = "[privacy]\nwords = ['none']\ncohort = 1\n"
    with (
        small_disk(tmp_path / "disk", 100) as disk,
        running(tmp_path) as server,
        joined(server, tmp_path / "admin", "admin") as admin,
    ):
        home = owned(server, disk / "home", words)
        first = submitted(server, admin, **{"round.rounds": 1, "round.minimum": 0.1})
        with working(home) as threads:
            assert ended(admin, first) == "finished"
            before = record.device_record_lines(home)
            fill(disk, 0)
            second = submitted(server, admin, **{"round.rounds": 1, "round.minimum": 0.1, "seed": 2})
            assert seen(lambda: "E-DISK" in ((said.why if (said := control.running_agent(home)) else None) or ""))
            (disk / "filler").unlink()
            assert ended(admin, second) == "finished"
            assert threads[0].is_alive()
            assert record.device_record_lines(home)[: len(before)] == before
