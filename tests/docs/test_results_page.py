"""The page of repeated tables equals the kept figures, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import write_results  # noqa: E402

from edgewise.apps.bench import cells, results, tables  # noqa: E402
from edgewise.apps.cli import main  # noqa: E402

PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith(("    edgewise", "    python"))]
KEPT = sorted(p.stem for p in (ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_page_is_what_its_script_writes() -> None:
    assert write_results.page() == PAGE, "run scripts/write_results.py"


@pytest.mark.parametrize("table", [t for t in tables.TABLES if t.name in KEPT], ids=lambda t: t.name)
def test_kept_figures_are_of_the_tables_recipes(table: tables.PaperTable, tmp_path: Path) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / f"{table.name}.json").read_text(encoding="utf-8"))
    planned = cells.table_cells(table, tmp_path, found["seeds"])
    assert [(c["row"], c["seed"], c["recipe_sha256"]) for c in found["cells"]] == [
        (c.row, c.seed, c.recipe_sha256) for c in planned
    ], "the recipe changed: play the table again"
    assert results.build_results(table, found["cells"]) == found


def test_commands_of_the_page_exist() -> None:
    ours = []
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "python":
            text = (ROOT / words[0]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), command
        else:
            assert words[:2] == ["bench", "reproduce"], command
            ours += words[2:]
    assert {*ours} == {"all", *(t.name for t in tables.TABLES)}
    ran = CliRunner().invoke(main.app, ["bench", "reproduce", *ours, "--list", "--json"])
    assert ran.exit_code == 0, ran.output
    listed = {f"    {one['command']}" for one in json.loads(ran.stdout)["tables"] if one["command"]}
    assert listed <= set(PAGE.splitlines())


def test_every_kept_file_has_a_section() -> None:
    assert re.findall(r"^## (T\d+):", PAGE, re.M) == sorted(
        {*KEPT, *(t.name for t in tables.TABLES)}, key=lambda name: int(name[1:])
    )
