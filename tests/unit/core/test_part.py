"""A part's signature is its schema, and its limits hold for every caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, MinLen

from edgewise.apps.cli import recipe_schema
from edgewise.core.errors import RecipeError
from edgewise.core.part import Doc, Part, part
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN, Catalogue, Extension, keys_of, look_up, make

SEEN: list[Any] = []


@part(name="mine")
def made(
    spec: Spec,
    share: Annotated[float, Gt(0), Le(1), Doc("how much travels")],
    names: Annotated[Sequence[str], MinLen(1)] = ("*",),
    rule: Literal["one", "two"] = "one",
    bits: Annotated[int | None, Ge(2)] = None,
) -> Stage:
    """Do something
    to an update.

    With a formula.
    """
    SEEN.append((spec, share, names, rule, bits))
    return Stage("mine", lambda s: s, lambda p, m, s, t: (p, m), lambda p, s, t: p, lambda b, a: "nothing")


MINE = Catalogue().extended(Extension((made,))).stages


def test_a_part_is_what_its_function_says() -> None:
    assert (made.name, made.given, tuple(made.fields)) == ("mine", ("spec",), ("share", "names", "rule", "bits"))
    schema = keys_of(made).model_json_schema()
    assert schema["description"] == "Do something to an update."
    assert schema["required"] == ["share"]
    share = {"description": "how much travels", "exclusiveMinimum": 0, "maximum": 1, "type": "number"}
    assert share.items() <= schema["properties"]["share"].items()


def test_a_table_becomes_a_call() -> None:
    spec = Spec.of([("a", (2,), "float32")])
    make(MINE, "[[stage]] 1", {"kind": "mine", "share": 1, "names": ["a"], "bits": 3}, spec)
    assert SEEN.pop() == (spec, 1, ["a"], "one", 3)
    assert look_up(MINE, "", {"kind": "mine", "share": 0.5})[1]["names"] == ("*",)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({}, "E-MISSING", "`share` is required"),
        ({"share": 0.5, "nmaes": ["a"]}, "E-KEY", "unknown key `nmaes`"),
        ({"share": "much"}, "E-TYPE", "`share` = 'much'"),
        ({"share": 2.0}, "E-VALUE", "`share` = 2.0"),
        ({"share": float("inf")}, "E-VALUE", "`share` = inf"),
        ({"share": 0.5, "names": []}, "E-VALUE", "`names`"),
        ({"share": 0.5, "rule": "three"}, "E-VALUE", "`rule` = 'three'"),
        ({"share": 0.5, "bits": 1}, "E-VALUE", "`bits` = 1"),
        ({"share": 0.5, "spec": 1}, "E-KEY", "unknown key `spec`"),
    ],
)
def test_a_table_is_refused_in_the_recipes_words(given: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make(MINE, "[[stage]] 1", {"kind": "mine", **given}, Spec(()))
    assert caught.value.code == code
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 0.0}, "mine: share is 0.0, must be above 0 and at most 1."),
        ({"share": float("nan")}, "mine: share is nan, must be finite."),
        ({"share": 1.0, "names": ()}, "mine: names is (), must be of 1 or more."),
        ({"share": 1.0, "rule": "three"}, "mine: rule is 'three'."),
        ({"share": 1.0, "bits": 1}, "mine: bits is 1, must be at least 2."),
    ],
)
def test_a_caller_in_python_meets_the_same_limits(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        made(Spec(()), **given)
    assert (caught.value.code, caught.value.what) == ("E-VALUE", said)


def test_every_part_of_the_catalogue_describes_itself_and_its_keys() -> None:
    for parts in (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies):
        for one in parts.values():
            assert one.summary.endswith("."), one
            assert all(schema.get("description") for schema in _properties(one).values()), one


def _properties(one: Part[Any, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = keys_of(one).model_json_schema().get("properties", {})
    return properties


def test_the_schema_of_editors_has_parts_of_ones_own() -> None:
    parts = BUILT_IN.extended(Extension((made,)))
    assert "share: number > 0 ≤ 1  how much travels" in recipe_schema.describe("stage.mine", parts)
    assert '"const": "mine"' in recipe_schema.everything(parts)
    with pytest.raises(RecipeError, match="did you mean"):
        recipe_schema.describe("stage.mine.shaer", parts)
    with pytest.raises(RecipeError, match="E-KEY"):
        recipe_schema.describe("stage.mine")


def test_what_is_no_part_is_refused() -> None:
    def plain() -> Stage:
        raise AssertionError

    @part
    def silent():  # type: ignore[no-untyped-def]
        return None

    for wrong in (plain, silent, part(name="clip")(made.function)):
        with pytest.raises(RecipeError, match="E-EXTENSION"):
            BUILT_IN.extended(Extension((wrong,)))  # type: ignore[arg-type]
