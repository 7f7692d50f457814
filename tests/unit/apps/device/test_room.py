"""The disk space of other runs on a device: bounded by bytes and by age, and never that of the run in use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgewise.apps.device import room
from edgewise.apps.device.personal import WANTED

NOW, DAY = time.time(), 86400.0


def make(folder: Path, days: float, size: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(bytes(size))
    os.utime(folder, (NOW - days * DAY, NOW - days * DAY))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three runs, each with blobs, a cache and a model: ``a`` is the oldest."""
    for days, run in ((30.0, "a"), (20.0, "b"), (10.0, "c")):
        make(tmp_path / "runs" / run / "blobs", days)
        make(tmp_path / "runs" / run / "cache", days - 1)
        make(tmp_path / "models" / f"of-{run}", days - 2)
        (tmp_path / "runs" / run / "state.safetensors").write_bytes(b"codec memory and answered rounds")
        room.note_model_use(tmp_path / "runs" / run, f"of-{run}")
    return tmp_path


def left(home: Path) -> set[str]:
    found = [*home.glob("runs/*/blobs"), *home.glob("runs/*/cache"), *home.glob("models/*")]
    return {str(path.relative_to(home)) for path in found}


def test_the_least_recently_used_goes_until_the_rest_fits(home: Path) -> None:
    removed = room.sweep_device_folders(home, set(), 6000, 1e9, NOW)
    assert [str(path.relative_to(home)) for path in removed] == ["runs/a/blobs", "runs/a/cache", "models/of-a"]
    assert len(left(home)) == 6
    assert len(list(home.glob("runs/*/state.safetensors"))) == 3


def test_what_is_too_old_goes_though_there_is_room(home: Path) -> None:
    room.note_folders_used(home / "models" / "of-b")
    room.sweep_device_folders(home, set(), 1e9, 15 * DAY, NOW)
    assert left(home) == {"models/of-b", "models/of-c", "runs/c/blobs", "runs/c/cache"}


def test_what_is_in_use_stays_whatever_the_limits(home: Path) -> None:
    (home / "runs" / "b" / WANTED).write_bytes(b"b")
    make(home / "models" / ("0" * 64), 1.0)  # of a download that was killed
    room.sweep_device_folders(home, {"a"}, 0, 0.0, NOW)
    assert left(home) == {"runs/a/blobs", "runs/a/cache", "models/of-a", "models/of-b"}


def test_a_home_without_runs_has_nothing_to_remove(tmp_path: Path) -> None:
    assert room.sweep_device_folders(tmp_path, set(), 0, 0.0, NOW) == []
