"""Submissions that end between the run's folder and its row: killed, refused by a full disk, or killed just after."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import RECIPE, device, submission

from edgewise.apps.server import submission as submissions
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import StoreError
from edgewise.drivers.fleet import served


class Killed(BaseException):
    """SIGKILL: nothing after it runs, so no handler of the code under test may catch it."""


def submit(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, written: bool) -> list[str]:
    """Submit a run and raise ``error`` in place of the write of its row, or just after it.

    Returns the names in the folder of runs when the server has stopped.
    """

    def fails(*_: object) -> None:
        raise error

    with HttpServer(folder) as server, monkeypatch.context() as patch:
        device(server, folder.parent / "device").close()
        wanted = submission({**RECIPE, "round": {"rounds": 1, "minimum": 1.0}}, server)
        if written:
            patch.setattr(submissions, "discard", fails)
        else:
            patch.setattr(server.service.database, "write", fails)
        with pytest.raises(type(error)):
            submissions.begin(server.service, wanted, "me")
    return names(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs").iterdir())


@pytest.mark.slow
def test_the_next_start_removes_the_folder_of_a_submission_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = submit(tmp_path / "server", monkeypatch, Killed(), written=False)
    assert len(before) == 2
    (tmp_path / "server" / "runs" / ("0" * 32)).mkdir()  # without a mark: a restored database may not know the run
    with HttpServer(tmp_path / "server"):
        assert names(tmp_path / "server") == ["0" * 32]


@pytest.mark.slow
def test_a_submission_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = StoreError("E-DISK", "the disk is full.", "make room.")
    assert submit(tmp_path / "server", monkeypatch, full, written=False) == []


@pytest.mark.slow
def test_a_run_whose_row_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = submit(tmp_path / "server", monkeypatch, Killed(), written=True)
    assert len(before) == 2
    with HttpServer(tmp_path / "server") as server:
        with server.service.database.read() as c:
            (row,) = served.listed(c)
        assert names(tmp_path / "server") == [row.run[:32]] == before[:1]
        assert (submissions.folder(server.service, row.run) / "recipe.toml").is_file()
