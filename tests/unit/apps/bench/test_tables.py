"""The tables themselves: their claims name their rows, and their recipes are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.apps.bench import cells, tables
from edgewise.apps.bench.table import PaperTable
from edgewise.core.errors import EdgewiseError


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda t: t.name)
def test_claims_name_rows_and_sources(table: PaperTable) -> None:
    names = {row.name for row in table.rows}
    assert table.claims
    for claim in table.claims:
        assert {claim.better, claim.worse} <= names
        assert table.published[claim.source].link.startswith("https://")


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda t: t.name)
def test_recipes_of_a_table_are_valid(table: PaperTable, tmp_path: Path) -> None:
    assert len(cells.table_cells(table, tmp_path, (0,))) == len(table.rows)


def test_tables_are_chosen_by_name() -> None:
    assert [t.name for t in tables.chosen_tables(("t9", "T3", "T3"))] == ["T9", "T3"]
    assert tables.chosen_tables(("all",)) == tables.TABLES
    for names, code, words in (
        ((), "E-MISSING", "no table was named"),
        (("T8",), "E-UNKNOWN", "another program measures T8"),
        (("T5",), "E-UNKNOWN", "nothing measures T5"),
        (("table3",), "E-UNKNOWN", "no table is called 'TABLE3'"),
    ):
        with pytest.raises(EdgewiseError, match=words) as raised:
            tables.chosen_tables(names)
        assert raised.value.code == code


def test_each_table_is_in_one_list() -> None:
    names = [*(t.name for t in tables.TABLES), *(t.name for t in tables.MEASURED_ELSEWHERE), *tables.NOT_MEASURED]
    assert sorted(names, key=lambda name: int(name[1:])) == [f"T{n}" for n in range(1, 13)]
