"""Play the cells of a table, a row with a seed each, and keep their figures in a folder.

    OUT/T3/cells/fedit-0-1a2b3c4d.json      figures of a finished cell
    OUT/T3/runs/fedit-0-1a2b3c4d            folder of an unfinished run

The last word is the beginning of the recipe's digest. A cell with its file is not played again, so another number of
rounds makes other cells. An unfinished run goes on where it was. A finished run is removed, because its figures and the
digest of its model are in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.apps.bench.table import Method, PaperTable, read_column
from edgewise.apps.federation import settings
from edgewise.apps.federation.federation import Federation
from edgewise.apps.federation.playing import has_run, remove
from edgewise.core.errors import StoreError
from edgewise.core.safe_repr import outline
from edgewise.drivers.storage import folder
from edgewise.drivers.storage.files import write_durably

VERSIONS = ("edgewise", "python", "numpy", "torch")
_UNSAFE = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Cell:
    """A row with a seed, and the federation that plays it."""

    row: str
    seed: int
    federation: Federation
    file: Path
    run_dir: Path

    __repr__ = outline

    @property
    def recipe_sha256(self) -> str:
        """The digest of the recipe."""
        return self.federation.recipe.sha256()


def table_cells(table: PaperTable, out: Path, seeds: Sequence[int], rounds: int | None = None) -> list[Cell]:
    """List the cells of a table: all rows with the first seed, then with the second, and so on.

    Args:
        out: the folder of all tables.
        rounds: rounds of each run; None for the table's own.
    Raises:
        RecipeError: where a recipe with these rounds cannot run.
    """
    return [_cell(table, row, out / table.name, seed, rounds) for seed in seeds for row in table.rows]


def _cell(table: PaperTable, row: Method, at: Path, seed: int, rounds: int | None) -> Cell:
    """Make a cell."""
    changed = {**row.settings, "seed": seed, "name": f"{table.name}-{_file_word(row.name)}"}
    changed |= {} if rounds is None else {"round.rounds": rounds}
    federation = Federation(settings.put(table.recipe, changed))
    word = f"{_file_word(row.name)}-{seed}-{federation.recipe.sha256()[:8]}"
    return Cell(row.name, seed, federation, at / "cells" / f"{word}.json", at / "runs" / word)


def _file_word(name: str) -> str:
    """Write a row's name as part of a file's name."""
    return _UNSAFE.sub("-", name.lower()).strip("-")


def play_cells(table: PaperTable, cells: Sequence[Cell]) -> Iterator[Mapping[str, Any]]:
    """Play the cells that have no file, and yield the figures of each in order.

    Yields:
        ``row``, ``seed``, ``recipe_sha256``, ``model_sha256``, ``versions``, ``seconds`` (of training, on one core) and
        ``figures`` (by column; null where the run has none).
    Raises:
        EdgewiseError: the errors of a run. StoreError: E-RESUME for a damaged file of a cell.
    """
    for cell in cells:
        found = _finished_cell(cell)
        if found is None:
            run = cell.federation.run(cell.run_dir, resume=has_run(cell.run_dir), progress=False)
            found = _figures(table, cell, run.summary)
            cell.file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(cell.file, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
            remove(cell.run_dir)
        yield found


def claim_folders(out: Path, tables: Sequence[PaperTable]) -> None:
    """Make the folders of tables. Raises StoreError(E-FOLDER) for a folder that edgewise did not make."""
    for at in (out, *(out / table.name for table in tables)):
        folder.claim(at)


def _finished_cell(cell: Cell) -> dict[str, Any] | None:
    """Read the file of a finished cell; None without one."""
    try:
        found = json.loads(cell.file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("recipe_sha256") != cell.recipe_sha256 or "figures" not in found:
        what = f"{cell.file} is damaged, or belongs to another recipe."
        raise StoreError("E-RESUME", what, "remove the file to play its cell again.")
    return found


def _figures(table: PaperTable, cell: Cell, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Read what a table keeps of a run."""
    return {
        "row": cell.row,
        "seed": cell.seed,
        "recipe_sha256": cell.recipe_sha256,
        "model_sha256": summary["model_sha256"],
        "versions": {name: version for name, version in summary["versions"].items() if name in VERSIONS},
        "seconds": summary["seconds"]["train"],
        "figures": {column.name: read_column(column, summary) for column in table.columns},
    }
