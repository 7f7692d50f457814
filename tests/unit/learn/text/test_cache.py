"""Files of the cache: whole under their name, on the disk before they have it, nothing left behind."""

from __future__ import annotations

import os

import pytest

from edgewise.core.errors import StoreError
from edgewise.learn.text.cache import write_atomically


def test_the_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "made" / "rows.jsonl", [], os.fsync

    def look(fd: int) -> None:
        fsync(fd)
        synced.append((os.fstat(fd).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, lambda f: f.writelines([b"one\n", b"two\n"]))
    assert path.read_bytes() == b"one\ntwo\n"
    assert synced == [(8, False)]


def test_nothing_is_left_where_writing_fails(tmp_path):
    def fails(f):
        f.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "rows.jsonl", fails)
    with pytest.raises(StoreError, match="E-DISK"):
        write_atomically(tmp_path / "rows.jsonl", lambda f: (_ for _ in ()).throw(OSError(28, "full")))
    assert list(tmp_path.iterdir()) == []
