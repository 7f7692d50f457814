"""Every command that writes refuses a folder that edgewise did not make, and leaves it as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_recipe import PLAIN
from typer.testing import CliRunner

from edgewise.apps.cli import main, recipe_commands
from edgewise.apps.terminal import sessions
from edgewise.core.errors import REGISTRY
from edgewise.drivers.fleet.backup import DATABASE
from edgewise.drivers.storage import folder
from unit.made_run import make_run

THEIRS = (
    "blobs/photo.jpg", "journal/2024-05-01.log", ".notes.tmp", "devices/a.tmp", "report.html", "summary.json",
    "plots/quality.png", "log.txt", "audit.html", "README.md", "run.db",
)  # fmt: skip
WRITING = {
    "sim": ("sim", "toy.toml", "--extension", "toy", "--out", "mine"),
    "demo": ("demo", "--out", "mine"),
    "audit": ("audit", "toy.toml", "--out", "mine"),
    "distill": ("distill", "bundled", "--to", "1M", "--on", "plays", "--out", "mine"),
    "shrink": ("shrink", "bundled", "--by", "prune", "--to", "0.5", "--out", "mine"),
    "index": ("index", "--documents", "toy.toml", "--out", "mine"),
    "export": ("export", "made", "--dest", "mine"),
    "report": ("report", "mine"),
    "compare": ("compare", "made", "other", "--out", "mine/report.html"),
    "recipes": ("recipes", "private", "--to", "mine/README.md"),
    "backup": ("backup", "served", "mine"),
    "stats": ("stats", "toy.toml", "--out", "mine"),
    "sweep": ("sweep", "toy.toml", "training.lr=0.01,0.02", "--extension", "toy", "--out", "mine"),
    "edge_llm": ("bench", "edge-llm", "--out", "mine"),
    "reproduce": ("bench", "reproduce", "T3", "--out", "mine"),
}
CODES = {
    "export": "E-EXPORT",
    "report": "E-RESUME",
    "compare": "E-FILE-EXISTS",
    "recipes": "E-FILE-EXISTS",
    "index": "E-FILE-EXISTS",
    "backup": "E-FILE-EXISTS",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody else, beside a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(PLAIN, encoding="utf-8")
    for name in THEIRS:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"theirs: {name}", encoding="utf-8")
    return tmp_path / "mine"


def everything(out: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(out)): (p.read_text("utf-8") if p.is_file() else "", p.stat().st_mtime_ns)
        for p in out.rglob("*")
    }


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("command", WRITING)
def test_a_folder_of_somebody_else_is_refused_and_not_touched(mine: Path, command: str) -> None:
    if command in ("export", "compare"):
        make_run(mine.parent / "made")
    if command == "compare":
        make_run(mine.parent / "other")
    if command == "backup":
        (mine.parent / "served").mkdir()
        for name in ("server.key", DATABASE):
            (mine.parent / "served" / name).touch()
    before = everything(mine)
    result = CliRunner().invoke(main.app, [*WRITING[command], "--json"])
    error = json.loads(result.stdout)["error"]
    assert error["code"] == CODES.get(command, "E-FOLDER"), error
    assert result.exit_code == REGISTRY[error["code"]].exit_status
    assert error["fix"]
    assert everything(mine) == before


def test_every_command_that_writes_is_tried() -> None:
    """A command with an option that names a folder to write in belongs into WRITING."""
    writes = {
        command.callback.__name__
        for command in (*main.app.registered_commands, *recipe_commands.bench.registered_commands)
        if command.callback and {"out", "dest", "run_dir", "to"} & set(command.callback.__annotations__)
    }
    assert writes == set(WRITING)


def test_what_libraries_say_and_crash_files_stay_out_of_it(mine: Path) -> None:
    before = everything(mine)
    with sessions.quiet_screen(mine / "log.txt"):
        print("library chatter", flush=True)
    assert sessions.write_crash("text", mine).parent != mine
    assert everything(mine) == before
    folder.claim(mine.parent / "ours")
    assert sessions.write_crash("text", mine.parent / "ours").parent == mine.parent / "ours"
