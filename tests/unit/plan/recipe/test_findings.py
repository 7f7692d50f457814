"""Everything that is wrong with a recipe comes in one message: with its line, in words of our own, and what to do."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import edgewise as ew
from edgewise.core.errors import Fault, RecipeError
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe import loading
from edgewise.plan.recipe.aliases import ALIASES, MOVED
from edgewise.plan.recipe.places import Origin
from edgewise.plan.recipe.recipe import Recipe

EVERYTHING = """privacy = "central"
learning_rate = 0.1
[training]
epochs = 3
lr = "fast"
local_epochs = 2
[round]
rounds = 0
noise_multiplier = 1.1
[data]
path = 3
[dp]
epsilon = 8
noise_multiplier = 1.0
[merge]
kind = "secure_sum"
[[stage]]
kind = "clip"
l2 = -1
bla = 3
[[stage]]
kind = "quantise"
[[stage]]
kind = "fedadam"
[strategy]
kind = "scaffold"
"""
FOUND = [
    (1, "E-VALUE", "privacy = \"central\" has another name", 'write privacy = "central_dp".'),
    (2, "E-KEY", "unknown key `learning_rate`", "write `training.lr`."),
    (4, "E-KEY", "unknown key `training.epochs`", "write `local_epochs`."),
    (5, "E-TYPE", "`training.lr` = 'fast' is not a number above 0", "see `edgewise schema --field training.lr`."),
    (6, "E-COMBO", "training.local_epochs with privacy", "give training.local_steps."),
    (8, "E-VALUE", "`round.rounds` = 0 is not a whole number from 1 to 1000000", "see `edgewise schema"),
    (9, "E-KEY", "unknown key `round.noise_multiplier`", "write `dp.noise_multiplier`."),
    (11, "E-TYPE", "`data.path` = 3 is not text or a list of text", "see `edgewise schema --field data.path`."),
    (12, "E-MISSING", 'needs dp.delta and dp.clip_l2', "add to [dp]: delta"),
    (13, "E-COMBO", "dp.epsilon = 8 and dp.noise_multiplier = 1", "give one"),
    (19, "E-VALUE", "[[stage]] 1 (clip): `l2` = -1 is not a number from", "schema --field stage.clip.l2`."),
    (20, "E-KEY", "[[stage]] 1 (clip): unknown key `bla`", "it knows: l2."),
    (22, "E-NAME", "[[stage]] 2: no part is called `quantise`", "did you mean `quantize`?"),
    (24, "E-NAME", "[[stage]] 3: no part is called `fedadam`", "it belongs into [strategy]."),
    (26, "E-COMBO", 'strategy "scaffold" cannot be used with differential privacy', "use fedavg"),
]  # fmt: skip


def faults(text: str) -> tuple[Fault, ...]:
    with pytest.raises(RecipeError) as e:
        loading.build_checked_recipe(tomllib.loads(text), BUILT_IN, Origin("mine.toml", text))
    assert "Input should" not in str(e.value), "no sentence of the validator's"
    return e.value.faults


def test_everything_is_found_at_once_in_the_order_of_lines() -> None:
    found = faults(EVERYTHING)
    assert [(one.line, one.code) for one in found] == [(line, code) for line, code, _, _ in FOUND]
    for one, (line, _, what, fix) in zip(found, FOUND, strict=True):
        assert one.what.startswith(f"mine.toml:{line}: ")
        assert what in one.what
        assert fix in one.fix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('privacy = "none"\n[training]\nbatch = 6\naccumulate = 4\nlr = "x"', ["4 E-COMBO", "5 E-TYPE"]),
        ('privacy = "none"\n[training]\nbatch = "x"\naccumulate = 4', ["3 E-TYPE"]),
        ('privacy = "nothing"\n[round]\nminimum = 0\npatience = 2\n[eval]\nevery = 0', ["1 E-VALUE", "4 E-COMBO"]),
        ('[round]\nroundz = 0', ["None E-MISSING", "2 E-KEY"]),
        ('privacy = "central_dp"\n[dp]\nepsilonn = 1\ndelta = 1e-5\nclip_l2 = 1.0', ["3 E-KEY"]),
        ('privacy = "none"\n[lora]\nrank = 4\n[stage]\nkind = "clip"', ["2 E-KEY", "4 E-TYPE"]),
        ('privacy = "none"\n[merge]\nkind = "secure_sum"\n[metrics]', ["3 E-COMBO", "4 E-VALUE"]),
        ('privacy = "none"\n[[stage]]\nkind = 3\n[strategy]\nkind = "scaffold"', ["3 E-TYPE", "5 E-COMBO"]),
        ('privacy = "none"\n[trust]\nserver = "curious"\n[merge]\nkind = "sam"', ["5 E-NAME"]),
        ('privacy = "none"\n[trust]\nserver = "curious"', ["2 E-COMBO"]),
        ('privacy = "none"\n[[metric]]\nname = "loss"\nlower = 3.0\nupper = 1.0', ["2 E-VALUE", "2 E-VALUE"]),
        ('privacy = "hidden"\n[training]\nlr = 0\n[[stage]]\nkind = "clip"\nl2 = 1.0\n[[stage]]\nkind = "top_k"\n'
         "fraction = 0.1",
         ["3 E-VALUE", "8 E-TOPK-SECAGG"]),
        ('privacy = "none"\n[[stage]]\nkind = "quantize"\n[[stage]]\nkind = "rotate"\n[eval]\nevry = 1',
         ["5 E-NOT-REAL", "7 E-KEY"]),
        ('privacy = "none"\n[[metric]]\nname = "A"\nlower = 3.0\nupper = 1.0', ["2 E-VALUE", "3 E-VALUE"]),
        ('privacy = "none"\n[data]\nsource = "x"\nseparator = ",,"\ntime_format = "a"',
         ["3 E-VALUE", "4 E-VALUE", "5 E-COMBO"]),
    ],
)  # fmt: skip
def test_a_rule_is_judged_as_far_as_its_values_are_right(text: str, expected: list[str]) -> None:
    assert [f"{one.line} {one.code}" for one in faults(text)] == expected


def test_every_alias_names_a_key_and_none_is_a_key_of_that_table() -> None:
    for name, keys in {**ALIASES, **{k: (v,) for k, v in MOVED.items()}}.items():
        for key in keys:
            section, _, last = key.rpartition(".")
            info = Recipe.model_fields[section or last]
            fields = info.annotation.model_fields if section else Recipe.model_fields  # type: ignore[union-attr]
            assert last in fields, name
            assert name not in fields, name


def test_the_source_of_a_model_is_its_base_and_not_that_of_data() -> None:
    (one,) = faults('privacy = "none"\n[model]\nsource = "mine"')
    assert (one.code, one.fix) == ("E-KEY", "write `base`.")


def test_keywords_and_settings_are_answered_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ew.EdgewiseError) as e:
        ew.Recipe(privacy="none", learning_rate=0.1, num_rounds=0, lora_r=8, cohortt=3)
    fixes = {one.what: one.fix for one in e.value.faults}
    assert fixes["unknown key `learning_rate`."] == "write `training.lr`."
    assert fixes["unknown key `num_rounds`."] == "write `round.rounds`."
    assert fixes["unknown key `lora_r`."] == "write `trainable.rank`."
    assert fixes["unknown key `cohortt`."] == "did you mean `cohort`?"
    assert any(what.startswith("`round.rounds` = 0 is not") for what in fixes), (
        "and it is judged as the key that is meant"
    )
    path = tmp_path / "mine.toml"
    path.write_text('privacy = "none"\n[training]\nlr = 0.1\n', encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        loading.load(path, {"learning_rate": 1.0, "stage.7.l2": 1.0, "training.lr": "x"}, BUILT_IN)
    found = [(one.what.split(":")[0], one.fix, one.file, one.line) for one in refused.value.faults]
    assert ("--set learning_rate", "write `training.lr`.", None, None) in found
    assert {label for label, *_ in found} == {"--set learning_rate", "--set stage.7.l2", "--set training.lr"}
