"""Output of libraries: all of a little, beginning and end of much, also while they still print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time

import pytest

from edgewise.apps.terminal import sessions
from edgewise.drivers import captured_output
from edgewise.drivers.captured_output import PrintedNoise
from edgewise.drivers.storage import folder

LIMIT = 4096


def test_little_is_kept_whole():
    with PrintedNoise(LIMIT) as kept:
        os.write(kept.fileno(), b"one\n")
        subprocess.run([sys.executable, "-c", "print('two')"], stdout=kept.fileno(), check=True)
        assert kept.read() == b"one\ntwo\n"


def test_of_much_the_beginning_and_the_end_are_kept():
    with PrintedNoise(LIMIT, interval_s=3600.0) as kept:
        for i in range(3):
            os.write(kept.fileno(), b"".join(b"%05d\n" % n for n in range(i * 2000, (i + 1) * 2000)))
            text = kept.read()
            assert len(text) <= LIMIT
            assert text.startswith(b"00000\n00001\n")
            assert text.endswith(b"%05d\n" % ((i + 1) * 2000 - 1))
            left_out = re.findall(rb"\n\[\.\.\. (\d+) bytes are left out here \.\.\.\]\n", text)
            assert len(left_out) == 1
        assert int(left_out[0]) > 6000 * 6 - LIMIT


@pytest.mark.skipif(os.name == "nt", reason="needs files that all writers append to")
def test_the_file_does_not_outgrow_its_limit_while_it_is_written():
    with PrintedNoise(LIMIT, interval_s=0.01) as kept:
        end_s = time.monotonic() + 60.0
        os.write(kept.fileno(), b"x" * 50 * LIMIT)
        while os.fstat(kept.fileno()).st_size > LIMIT and time.monotonic() < end_s:
            time.sleep(0.01)
        assert os.fstat(kept.fileno()).st_size <= LIMIT


@pytest.mark.skipif(os.name == "nt", reason="needs files that all writers append to")
def test_the_log_of_a_run_is_bounded(tmp_path, capfd, monkeypatch):
    folder.claim(tmp_path)
    with sessions.quiet_screen(tmp_path / "log.txt"):
        for _ in range(20):
            os.write(1, b"x" * 2**20)
    assert (tmp_path / "log.txt").stat().st_size <= captured_output.LIMIT_BYTES
    assert capfd.readouterr().out == ""


def test_without_room_it_is_dropped(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with PrintedNoise(LIMIT) as kept:
        os.write(kept.fileno(), b"one\n")
        assert kept.read() == b""
