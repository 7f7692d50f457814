"""What a distillation between rounds does not go with, and what it says about privacy."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe, from_plain

DISTILL = {"every": 2, "teacher": "teacher", "public": "plays-public"}


def made(**tables: object) -> Recipe:
    return from_plain({"privacy": "none", "distill": DISTILL, **tables})


@pytest.mark.parametrize(
    ("tables", "code", "what"),
    [
        ({"distill": {"every": 2, "public": "x.txt"}}, "E-MISSING", "distill.teacher is required"),
        ({"distill": {"every": 2, "teacher": "x"}}, "E-MISSING", "distill.public is required"),
        ({"distill": {"steps": 9}}, "E-COMBO", "distill.every = 0"),
        ({"distill": {**DISTILL, "data": 0.1}}, "E-VALUE", "distill.data"),
        ({"round": {"rounds": 1}}, "E-COMBO", "more than the 1 rounds"),
        ({"strategy": {"kind": "scaffold"}}, "E-COMBO", "control variates"),
        ({"strategy": {"kind": "feddyn"}}, "E-COMBO", "a correction for each device"),
        ({"trainable": {"kind": "lora", "rule": "fedex"}}, "E-COMBO", "move the base itself"),
        ({"split": {"cut": 1}}, "E-COMBO", "no whole model"),
        ({"personal": {"method": "fedper", "blocks": 1}}, "E-COMBO", "no whole model to distil"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tables: dict[str, object], code: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as e:
        made(**tables)
    assert code in {fault.code for fault in e.value.faults}


def test_a_recipe_without_the_section_keeps_its_identity_and_one_with_it_has_another() -> None:
    plain = from_plain({"privacy": "none"})
    assert "distill" not in plain.resolved()
    assert made().sha256() != plain.sha256()
    assert made().distill.due(1)
    assert not made().distill.due(2)
    assert not plain.distill.due(1)
    assert "plays-public, which must be public" in made().distill.says
