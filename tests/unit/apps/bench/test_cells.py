"""Cells of a table are played once, go on where they were, and leave their figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.apps.bench import cells, tables
from edgewise.core.errors import StoreError

TABLE = tables.LORA_RULES
PLAYED: list[tuple[str, int]] = []


def play(cell: cells.Cell) -> cells.Cell:
    """The cell with a federation that plays nothing and tells that it was asked."""

    def run(out: Path, resume: bool, progress: bool) -> Any:
        PLAYED.append((cell.row, cell.seed))
        out.mkdir(parents=True)
        quality = {"federated": {"weighted_mean": 100.0 + cell.seed, "worst_decile": None}}
        return SimpleNamespace(
            summary={
                "model_sha256": "ab", "versions": {"edgewise": "1", "platform": "a machine"}, "seconds": {"train": 1.5},
                "perplexity": quality, "bytes": {"up_total": 2_000_000, "down_total": 0},
            }
        )  # fmt: skip

    federation = SimpleNamespace(recipe=cell.federation.recipe, run=run)
    return cells.Cell(cell.row, cell.seed, federation, cell.file, cell.run_dir)  # type: ignore[arg-type]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[cells.Cell]:
    PLAYED.clear()
    monkeypatch.setattr(cells, "remove", lambda run_dir: run_dir.rmdir())
    return [play(cell) for cell in cells.table_cells(TABLE, tmp_path, (0, 1))[:2]]


def test_rows_come_first_seed_by_seed(tmp_path: Path) -> None:
    found = cells.table_cells(TABLE, tmp_path, (0, 1))
    names = [row.name for row in TABLE.rows]
    assert [(c.row, c.seed) for c in found] == [(name, seed) for seed in (0, 1) for name in names]
    assert len({c.file for c in found}) == len({c.recipe_sha256 for c in found}) == len(found)


def test_other_rounds_are_other_cells(tmp_path: Path) -> None:
    own, fewer = (cells.table_cells(TABLE, tmp_path, (0,), rounds)[0] for rounds in (None, 2))
    assert fewer.federation.recipe.round.rounds == 2
    assert own.file != fewer.file


def test_a_finished_cell_is_not_played_again(planned: list[cells.Cell]) -> None:
    first = list(cells.play_cells(TABLE, planned[:1]))
    assert first[0]["figures"] == {"perplexity": 100.0, "worst tenth": None, "MB up": 2.0, "MB down": 0.0}
    assert first[0]["versions"] == {"edgewise": "1"}
    assert not planned[0].run_dir.exists()
    assert list(cells.play_cells(TABLE, planned))[:1] == first
    assert [(cell.row, cell.seed) for cell in planned] == PLAYED


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"recipe_sha256": "another", "figures": {}})])
def test_a_damaged_file_of_a_cell_is_refused(planned: list[cells.Cell], text: str) -> None:
    planned[0].file.parent.mkdir(parents=True)
    planned[0].file.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match="damaged") as raised:
        list(cells.play_cells(TABLE, planned))
    assert raised.value.code == "E-RESUME"
    assert not PLAYED


@pytest.mark.slow
def test_a_cell_plays_the_real_engine_and_removes_its_run(tmp_path: Path) -> None:
    cell = cells.table_cells(TABLE, tmp_path, (0,), 1)[0]
    (found,) = cells.play_cells(TABLE, [cell])
    assert 1 < found["figures"]["perplexity"] < 700
    assert found["figures"]["MB up"] > 1
    assert len(found["model_sha256"]) == 64
    assert not cell.run_dir.exists()
