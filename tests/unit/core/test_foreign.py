"""Boundary around foreign parsers, quotes in messages, and recipes that no parser accepts."""

from __future__ import annotations

import pytest
import toy_recipe
from explained import explained

from edgewise.apps.runs.recipe_file import assignments
from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.core.foreign import foreign
from edgewise.plan.recipe import recipe, toml


@pytest.mark.parametrize("e", [RecursionError("too deep"), ZeroDivisionError(), KeyError("x"), OSError(2, "gone")])
def test_whatever_a_parser_raises_is_named(e: Exception) -> None:
    with (
        pytest.raises(RecipeError, match=r"^E-VALUE: it: .+\. Fix: mend it\.$") as caught,
        foreign(RecipeError, "E-VALUE", "it", "mend it."),
    ):
        raise e
    assert caught.value.__cause__ is e


def test_errors_of_ours_and_exits_pass() -> None:
    for e in (EdgewiseError("E-NAN", "was named already."), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(e)) as caught, foreign(RecipeError, "E-VALUE", "it"):
            raise e
        assert caught.value is e


def test_messages_cannot_flood_or_steer_a_terminal() -> None:
    e = EdgewiseError("E-KEY", f"unknown key `{'k' * 10**6}` \x1b[2J.", "word " * 10**6)
    assert len(str(e)) < 3000
    assert "unknown key `kkk" in e.what
    assert "\x1b" not in str(e)
    assert EdgewiseError("E-KEY", "two\nlines.").what == "two\nlines."


PLAIN = toy_recipe.TEXT
HOSTILE = {
    "list for a kind": (PLAIN.replace('kind = "weigh"', "kind = [1]"), "E-TYPE"),
    "table for a kind": (PLAIN.replace('kind = "weigh"', "kind = {}"), "E-TYPE"),
    "text for a number": (PLAIN.replace("lr = 0.3", 'lr = "0.3"'), "E-TYPE"),
    "text for a number of a part": (PLAIN.replace("cap = 160", 'cap = "160"'), "E-TYPE"),
    "truth for a number": (PLAIN.replace("rounds = 4", "rounds = true"), "E-TYPE"),
    "nested lists": (PLAIN.replace("lr = 0.3", "lr = " + "[" * 5000 + "]" * 5000), "E-RECIPE-SYNTAX"),
    "nested tables": (PLAIN.replace("cap = 160", "cap = " + "{a = " * 20 + "1" + "}" * 20), "E-VALUE"),
    "many digits": (PLAIN.replace("lr = 0.3", "lr = " + "1" * 5000), "E-RECIPE-SYNTAX"),
    "many hexadecimal digits": (PLAIN.replace("lr = 0.3", "lr = 0x" + "F" * 5000), "E-VALUE"),
    "a key of many parts": (PLAIN + "\n" + ".".join(["a"] * 50_000) + " = 1", "E-RECIPE-SYNTAX"),
    "an inner key of many parts": (PLAIN + "\nx = {" + ".".join(['"a"'] * 40_000) + " = 1}", "E-RECIPE-SYNTAX"),
    "a long key": (PLAIN + "\n" + "k" * 200_000 + " = 1", "E-KEY"),
    "a long text": (PLAIN + "#" * 10**6, "E-RECIPE-SYNTAX"),
    "quotes": ('"' * 200_000, "E-RECIPE-SYNTAX"),
    "many rounds": (PLAIN.replace("rounds = 4", "rounds = 100_000_000"), "E-VALUE"),
}


@pytest.mark.parametrize(("text", "code"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_recipes_are_refused(text: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        explained(recipe.parse(text))
    assert caught.value.code == code


def test_values_of_the_command_line_are_read_with_the_same_care() -> None:
    for hostile in ("[" * 5000, "1" * 5000, "{" + ".".join(["a"] * 50_000) + " = 1}"):
        with pytest.raises(RecipeError, match=r"^E-RECIPE-SYNTAX: --set training\.lr"):
            assignments([f"training.lr={hostile}"])
    with pytest.raises(RecipeError, match="E-KEY"):
        recipe.parse(PLAIN, overrides={".".join(["a"] * 50_000): 1})
    with pytest.raises(RecipeError, match="E-TYPE"):
        explained(recipe.parse(PLAIN, overrides={"stage.0.kind": [1]}))
    assert assignments(["name=a\nprivacy = 1"]) == {
        "name": "a\nprivacy = 1"
    }  # A line break in a value starts no second key.


@pytest.mark.parametrize("part", ["w", '"', "'a'.", "a ", ".", "a.", "[", "\\"])
def test_reading_ends_soon(part: str) -> None:
    """Reading time is linear in the text. Comparing every position with every earlier one would take hours here."""
    with pytest.raises(RecipeError):
        toml.read(part * (toml.LONGEST // len(part)), "recipe")


@pytest.mark.parametrize(
    ("privacy", "more"),
    [
        ("central_dp", {}),
        ("local_dp", {}),
        ("distributed_dp", {"merge": {"kind": "secure_sum"}}),
        ("central_dp", {"stage": [{"kind": "segments", "cycle": 3}]}),
    ],
)
def test_what_many_rounds_cost_is_known_at_once(privacy: str, more: dict[str, object]) -> None:
    plain = {"privacy": privacy, "data": {"partition": "iid", "devices": 40}, "round": {"rounds": 1_000_000}, **more}
    assert explained(recipe.from_plain(plain | {"dp": {"epsilon": 1000.0, "delta": 1e-5, "clip_l2": 1.0}}))


@pytest.mark.parametrize("privacy", ["central_dp", "distributed_dp", "local_dp"])
@pytest.mark.parametrize("epsilon", [1e5, 1e6])
def test_a_budget_that_needs_hardly_any_noise(privacy: str, epsilon: float) -> None:
    plain = {"privacy": privacy, "data": {"partition": "iid", "devices": 40}}
    plain |= {"dp": {"epsilon": epsilon, "delta": 1e-5, "clip_l2": 1.0}}
    plain |= {"merge": {"kind": "secure_sum"}} if privacy == "distributed_dp" else {}
    assert explained(recipe.from_plain(plain))
