"""The words of privacy: each alone is a complete recipe, and a word of before names the one to write."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgewise.apps.simulate import check, check_screen
from edgewise.core.errors import RecipeError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN, with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.plan.recipe.recipe import Recipe, from_plain

SPEC = Spec.of([("w", (400,), "float32"), ("v", (60, 10), "float32")])
DP: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
ALONE: dict[str, dict[str, Any]] = {
    "none": {"privacy": "none"},
    "hidden": {"privacy": "hidden"},
    "central_dp": {"privacy": "central_dp", "dp": DP},
    "distributed_dp": {"privacy": "distributed_dp", "dp": DP},
    "local_dp": {"privacy": "local_dp", "dp": DP},
    "local_dp for examples": {
        "privacy": "local_dp",
        "dp": {**DP, "epsilon": 1.0, "unit": "example", "sample_rate": 0.1},
    },
}


def plan(plain: dict[str, Any], population: int = 100) -> Plan:
    return compile(from_plain(plain), SPEC, population, BUILT_IN)


@pytest.mark.parametrize("population", [4, 100, 1000])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("examples" in n)) for n in ALONE])
def test_a_word_alone_is_a_complete_recipe(name: str, population: int) -> None:
    plain = ALONE[name]
    made = plan({**plain, "dp": {**plain["dp"], "delta": 1e-6}} if "dp" in plain else plain, population)
    assert made.promise.hidden == (name in ("hidden", "distributed_dp"))
    assert made.promise.unit == (None if "dp" not in ALONE[name] else "example" if "examples" in name else "device")
    assert (made.spend is None) == (made.promise.who_noises is Noiser.NOBODY)


@pytest.mark.parametrize("name", ALONE)
def test_what_a_word_chose_can_be_written_into_the_recipe_and_changes_nothing(name: str) -> None:
    recipe = from_plain(ALONE[name])
    written: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in ALONE[name].items()}
    for key, value in recipe.chosen.items():
        section, _, last = key.partition(".")
        if last:
            written.setdefault(section, {})[last] = value
        else:
            written[section] = value
    again = from_plain(written)
    assert again.resolved() == recipe.resolved()
    assert again.chosen == {}
    assert bool(recipe.chosen) == (name != "none")


def test_hidden_sums_of_the_default_grid_are_near_the_updates() -> None:
    made = plan({"privacy": "hidden"})
    space = made.at(0).encoded
    assert made.recipe.merge == {"kind": "secure_sum"}
    assert space.summable
    assert space.linf <= 4.001 * 4.0 / SPEC.dim**0.5
    other = plan({"privacy": "hidden", "merge": {"kind": "shared_sum"}})
    assert other.hides is not None
    assert not other.hides.interactive
    assert other.recipe.stage == made.recipe.stage


def test_a_key_that_is_given_is_never_changed() -> None:
    given = {**ALONE["distributed_dp"], "merge": {"kind": "shared_sum"}, "trainable": {"kind": "full", "rank": 4}}
    recipe = from_plain(given)
    assert (recipe.merge, recipe.trainable.kind) == ({"kind": "shared_sum"}, "full")
    assert set(recipe.chosen) == {"metrics", "stage"}
    poisson = from_plain({**ALONE["central_dp"], "round": {"sampling": "poisson", "cohort": 5}})
    assert poisson.chosen["round.minimum"] == poisson.round.minimum == 0.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("central", 'privacy = "central_dp"'),
        ("distributed", 'privacy = "distributed_dp"'),
        ("local", 'privacy = "local_dp"'),
        ("record", 'privacy = "local_dp", and unit = "example" in [dp]'),
    ],
)
def test_a_word_of_before_is_refused_with_the_one_to_write(old: str, new: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_plain({"privacy": old, "dp": DP})
    assert caught.value.code == "E-VALUE"
    assert f"write {new}." in caught.value.fix


@pytest.mark.parametrize("word", [["hidden"], 3, None, {"kind": "hidden"}])
def test_what_is_no_word_at_all_is_an_error_and_no_crash(word: Any) -> None:
    with pytest.raises(RecipeError):
        from_plain({"privacy": word})


def test_all_missing_numbers_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        from_plain({"privacy": "local_dp"})
    assert all(key in caught.value.what for key in ("dp.epsilon (or dp.noise_multiplier)", "dp.delta", "dp.clip_l2"))


def test_check_prints_what_the_word_chose_as_a_recipe_would_have_it(tmp_path: Path) -> None:
    asked = {"privacy": "hidden", "data": {"partition": "iid", "devices": 8}}
    found = check.examine(from_plain(asked), tmp_path, with_extensions(["toy"]), fast=True)
    console = Console(width=200, file=StringIO())
    check_screen.show_check(console, found, "r.toml")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert 'chosen by privacy = "hidden"' in said
    assert 'merge.kind  "secure_sum"' in said
    assert '[{kind = "weigh"}, {kind = "clip", l2 = 4.0}, {kind = "rotate"}, {kind = "clamp", stds = 4.0}, ' in said
    adapters = check.examine(
        from_plain({**asked, "trainable": {"kind": "lora"}}), tmp_path, with_extensions(["toy"]), fast=True
    )
    check_screen.show_check(console, adapters, "r.toml")
    assert 'trainable.rule  "fedit"' in console.file.getvalue()  # type: ignore[attr-defined]
    assert "linear, as a hidden sum needs" in console.file.getvalue()  # type: ignore[attr-defined]
    plain = check.examine(from_plain({**asked, "privacy": "none"}), tmp_path, with_extensions(["toy"]), fast=True)
    assert plain["chosen"] == {}


def test_recipes_with_one_meaning_are_equal_in_what_decides() -> None:
    one, two = from_plain({"privacy": "hidden"}), from_plain({"privacy": "hidden", "merge": {"kind": "secure_sum"}})
    assert isinstance(one, Recipe)
    assert one.resolved() == two.resolved()
    assert plan({"privacy": "hidden"}).run == plan({"privacy": "hidden", "merge": {"kind": "secure_sum"}}).run
