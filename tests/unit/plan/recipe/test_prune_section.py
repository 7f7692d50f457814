"""The schedule of pruning between rounds, and what it does not go with."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe, from_plain

PRUNE = {"to": 0.5, "start": 2, "end": 10, "every": 2}


def made(**tables: object) -> Recipe:
    return from_plain({"privacy": "none", "prune": PRUNE, "round": {"rounds": 12}, **tables})


def test_the_schedule_is_cubic_in_steps_and_ends_exactly() -> None:
    shares = [made().prune.pruned(played, 12) for played in range(13)]
    steps = [0.5 * (1 - (1 - t / 4) ** 3) for t in range(4)]
    assert shares[:3] == [0.0, 0.0, 0.0]
    assert shares[3:10] == pytest.approx([0.0, *(s for s in steps[1:] for _ in range(2))])
    assert shares[10:] == [0.5, 0.5, 0.5]
    assert made(prune={"to": 0.25}).prune.pruned(12, 12) == 0.75


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"prune": {"every": 2}}, "prune.to = 1"),
        ({"prune": {"to": 0.5, "end": 13}}, "name no rounds"),
        ({"prune": {"to": 0.5, "start": 12}}, "name no rounds"),
        ({"prune": {"to": 0.5, "every": 13}}, "more than the 12 rounds"),
        ({"strategy": {"kind": "scaffold"}}, "control variates"),
        ({"trainable": {"kind": "lora"}}, "all weights of a matrix"),
        ({"downlink": [{"kind": "quantize", "bits": 8}]}, "whose zeros are others"),
        ({"distill": {"every": 2, "teacher": "t", "public": "plays-public"}}, r"with \[distill\]"),
        ({"personal": {"method": "ditto"}}, r"with \[personal\]"),
        ({"split": {"cut": 1}}, r"with \[split\]"),
        ({"round": {"rounds": 12, "keep": "best"}}, "round.patience"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tables: dict[str, object], what: str) -> None:
    with pytest.raises(RecipeError, match=what) as e:
        made(**tables)
    assert "E-COMBO" in {fault.code for fault in e.value.faults}


def test_a_recipe_without_the_section_keeps_its_identity() -> None:
    plain = from_plain({"privacy": "none"})
    assert "prune" not in plain.resolved()
    assert made().resolved()["prune"] == PRUNE
    assert plain.prune.pruned(3, 3) == 0.0
    assert "no epsilon is spent on it" in made().prune.says
