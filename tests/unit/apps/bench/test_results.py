"""Figures over seeds, and whether the published order of methods holds."""

from __future__ import annotations

from typing import Any

import pytest

from edgewise.apps.bench import results
from edgewise.apps.bench.table import Claim, Column, Method, PaperTable, Published, read_column

LOSS = Column("loss", ("quality", "loss"), 2.0)
TABLE = PaperTable(
    name="T99", title="Two methods", minutes=1, recipe={"round": {"rounds": 4}},
    rows=(Method("old", {}), Method("new", {})), columns=(LOSS,),
    published=(Published("Somebody 2020", "https://example.org", "a task", "new 1, old 2"),),
    claims=(Claim("new", "old"),), differs="All is smaller.",
)  # fmt: skip


def cells(old: list[float | None], new: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"row": name, "seed": seed, "figures": {"loss": value}}
        for name, values in (("old", old), ("new", new))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("old", "new", "agrees"),
    [
        ([2.0, 3.0], [1.0, 2.0], "yes"),
        ([1.0, 2.0], [2.0, 3.0], "no"),
        ([1.0, 3.0], [2.0, 2.0], "undecided"),
        ([2.0, 2.0], [2.0, 2.0], "no"),
        ([2.0, None], [1.0, 9.0], "yes"),
        ([None], [1.0], "undecided"),
    ],
)
def test_a_claim_holds_with_every_seed_with_none_or_with_some(
    old: list[float | None], new: list[float | None], agrees: str
) -> None:
    assert results.claim_agrees(TABLE, Claim("new", "old"), cells(old, new)) == agrees


def test_a_margin_lets_the_better_method_be_a_little_worse() -> None:
    found = cells([100.0, 100.0], [101.0, 102.0])
    assert results.claim_agrees(TABLE, Claim("new", "old"), found) == "no"
    assert results.claim_agrees(TABLE, Claim("new", "old", margin=0.02), found) == "yes"
    assert results.claim_agrees(TABLE, Claim("new", "old", margin=0.01), found) == "undecided"


def test_the_order_agrees_where_all_claims_hold() -> None:
    assert results.order_agrees(["yes", "yes"]) == "yes"
    assert results.order_agrees(["no", "no"]) == "no"
    assert results.order_agrees(["undecided", "undecided"]) == "undecided"
    assert results.order_agrees(["yes", "no"]) == results.order_agrees(["no", "undecided"]) == "partly"


def test_a_figure_is_read_from_a_summary() -> None:
    assert read_column(LOSS, {"quality": {"loss": 3.0}}) == 1.5
    assert read_column(LOSS, {"quality": None}) is None


def test_the_page_of_a_table_has_means_deviations_and_claims() -> None:
    found = results.build_results(TABLE, cells([2.0, 4.0], [1.0, 1.0]))
    page = results.markdown(TABLE, found)
    assert "| old | 3.0 ± 1.4 |" in page
    assert "| new | 1.0 |" in page
    assert "4 rounds, seeds 0, 1." in page
    assert "[Somebody 2020](https://example.org), a task: new 1, old 2." in page
    assert "**Order agrees: yes (1 of 1 claims).**" in page
    assert "new better than old (Somebody 2020): yes" in page
    assert found["rounds"] == 4
    assert results.build_results(TABLE, cells([1.0], [2.0]), 2)["rounds"] == 2
