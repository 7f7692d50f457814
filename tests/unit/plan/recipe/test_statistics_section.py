"""The section [statistics]: what it goes with, and that recipes without it keep their identity."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe import recipe as recipes

COUNTED = 'name = "r"\nprivacy = "none"\n[statistics]\nof = "{of}"\n[round]\nrounds = {rounds}\n'
ALONE = COUNTED + '[trainable]\nkind = "full"\n'


@pytest.mark.parametrize(("of", "rounds"), [("text", 2), ("loss", 1)])
def test_statistics_take_their_rounds(of: str, rounds: int) -> None:
    made = recipes.parse(ALONE.format(of=of, rounds=rounds))
    assert made.resolved()["statistics"] == {"of": of}
    with pytest.raises(RecipeError, match="such statistics take"):
        recipes.parse(ALONE.format(of=of, rounds=3))


@pytest.mark.parametrize(
    "more",
    ['[retriever]\npairs = "turns"', '[personal]\nmethod = "fine_tune"', '[strategy]\nkind = "fedavgm"',
     "[training]\nlocal_epochs = 1"],
)  # fmt: skip
def test_what_is_for_training_does_not_go_with_statistics(more: str) -> None:
    with pytest.raises(RecipeError, match=r"E-COMBO.*statistics\.of.*which is for training"):
        recipes.parse(ALONE.format(of="text", rounds=2) + more)


def test_a_recipe_that_trains_has_no_such_section() -> None:
    assert "statistics" not in recipes.parse('name = "r"\nprivacy = "none"').resolved()
