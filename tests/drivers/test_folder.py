"""A run writes and deletes only in folders that edgewise made; what lies in others stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgewise.core.errors import StoreError
from edgewise.drivers.storage import folder
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.checkpoint import Checkpoint
from edgewise.strategies.base import State

# Names that lie where a run keeps its own files, or end as its own do.
THEIRS = (
    "notes.txt", ".notes.tmp", "blobs/photo.jpg", "blobs/.photo.tmp", "journal/2024-05-01.log", "devices/a.tmp",
    "devices/phones/list.txt", "plots/quality.png", "report.html", "recipe.toml",
)  # fmt: skip


def put(out: Path) -> dict[str, str]:
    for name in THEIRS:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"theirs: {name}", encoding="utf-8")
    return everything(out)


def everything(out: Path) -> dict[str, str]:
    """Each file and folder below ``out``, with what it holds."""
    return {str(p.relative_to(out)): p.read_text("latin-1") if p.is_file() else "" for p in out.rglob("*")}


def commits(out: Path, rounds: int = 5) -> None:
    """A run begins in ``out`` and commits; old models are swept meanwhile."""
    with RunStore(out) as store:
        store.create("run", "toy", {}, {})
        for n in range(rounds):
            store.commit(Checkpoint(n, State(np.full(5, n, np.float32), {}, n), 0), ())


@pytest.mark.parametrize("theirs", ["notes.txt", "run.db", "witness.json", "blobs/photo.jpg", "edgewise.json/x"])
def test_a_folder_of_somebody_else_is_refused_and_not_touched(tmp_path: Path, theirs: str) -> None:
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("theirs", encoding="utf-8")
    before = everything(tmp_path)
    with pytest.raises(StoreError, match="edgewise did not make it") as caught:
        RunStore(tmp_path)
    assert (caught.value.code, "--out" in caught.value.fix) == ("E-FOLDER", True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["run", "a/b/run"])
def test_a_new_or_empty_folder_is_marked_before_anything_else(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name == "run":
        out.mkdir()
    folder.claim(out)
    assert [p.name for p in out.iterdir()] == [folder.MARKER]
    folder.claim(out)
    commits(out)
    assert folder.made(out)
    assert not folder.is_foreign_folder(out)


def test_what_a_run_removes_has_a_name_that_edgewise_gives(tmp_path: Path) -> None:
    """Also in its own folder: people keep things beside a run."""
    folder.claim(tmp_path)
    before = put(tmp_path)
    old = tmp_path / "devices/000003-00000000"
    old.mkdir()
    for name in ("journal/round-000009.log", "blobs/" + "a" * 64, f"blobs/.{'b' * 64}.77.tmp", ".summary.json.77.tmp"):
        (tmp_path / name).write_text("of a killed process", encoding="utf-8")
    commits(tmp_path)
    with RunStore(tmp_path) as store:
        store.load()
    after = everything(tmp_path)
    assert before.items() <= after.items()
    assert not [name for name, text in after.items() if text == "of a killed process"]
    assert not old.exists()


def test_a_run_of_before_there_were_markers_goes_on(tmp_path: Path) -> None:
    commits(tmp_path)
    (tmp_path / folder.MARKER).unlink()
    assert folder.made(tmp_path)
    assert not (tmp_path / folder.MARKER).exists(), "looking marks nothing"
    with RunStore(tmp_path) as store:
        assert store.load() is not None
    assert folder.is_marked_folder(tmp_path)


@pytest.mark.parametrize("gone", ["run.db", "witness.json"])
def test_half_of_a_run_without_its_marker_is_not_known(tmp_path: Path, gone: str) -> None:
    commits(tmp_path)
    for name in (folder.MARKER, gone):
        (tmp_path / name).unlink()
    with pytest.raises(StoreError, match="E-FOLDER"):
        RunStore(tmp_path)


def test_a_torn_marker_marks_the_folder(tmp_path: Path) -> None:
    (tmp_path / folder.MARKER).touch()
    commits(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="a link needs a right of its own there")
def test_a_file_or_a_dead_link_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    for name in ("file", "link"):
        with pytest.raises(StoreError, match="E-DISK"):
            RunStore(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]
