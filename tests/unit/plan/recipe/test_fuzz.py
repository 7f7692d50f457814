"""Whatever a recipe says: it is refused with a code, or it can be explained."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from explained import explained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long import examples

from edgewise.core.errors import RecipeError
from edgewise.plan.catalogue import BUILT_IN, keys_of
from edgewise.plan.recipe import loading, recipe
from edgewise.plan.recipe.places import Origin
from edgewise.plan.recipe.privacy import DP_WORDS


def _base(privacy: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"privacy": privacy, "data": {"partition": "iid", "devices": 40}}
    if privacy in DP_WORDS:
        plain["dp"] = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
    if privacy in ("hidden", "distributed_dp"):
        plain["merge"] = {"kind": "secure_sum"}
    return plain


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 40, 64, 100, 1000, -1, 2**31, 2**53, 2**62]),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 1.5, 8.0, 1e-30, 1e-9, 1e5, 1e30, 1e308, -0.5]),
    st.floats(0, 20, allow_nan=False),
    st.integers(-2, 70),
)
SCALARS = st.one_of(NUMBERS, st.booleans(), st.text(max_size=8), st.sampled_from(["", "*", "model.layers.*", "a\0b"]))


def _words(schema: dict[str, Any]) -> list[Any]:
    """Values that a field's schema names, and some that it does not."""
    return schema.get("enum", []) + ([schema["const"]] if "const" in schema else [])


def _fields(model: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(k, v) for k, v in model.model_json_schema().get("properties", {}).items()]


def _value(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly of the type that the schema names, and about a fifth anything."""
    kinds = {one.get("type") for one in [schema, *schema.get("anyOf", [])]}
    small = st.sampled_from([1, 2, 3, 4, 8, 16, 100])
    right = st.one_of(
        *([st.sampled_from(words)] if (words := _words(schema)) else []),
        *([small] if "integer" in kinds else []),
        *([st.floats(0.01, 4.0), small] if "number" in kinds else []),
        *([st.booleans()] if "boolean" in kinds else []),
        *([st.lists(st.sampled_from(["*", "model.*", "nowhere"]), min_size=1, max_size=2)] if "array" in kinds else []),
    )
    odd = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=4), SCALARS, max_size=2))
    return odd if right.is_empty else st.one_of(right, right, right, right, odd)


@st.composite
def _parts(draw: st.DrawFn, entries: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(entries)))
    table: dict[str, Any] = {"kind": draw(st.sampled_from([kind] * 40 + ["", [1], {}, 3]))}
    fields = _fields(keys_of(entries[kind]))
    needed = [k for k, info in keys_of(entries[kind]).model_fields.items() if info.is_required()]
    for name, field in fields:
        if name in needed or draw(st.integers(0, 5)) == 0:
            table[name] = draw(_value(field))
    return table


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Plain tables: a recipe that is right, some of whose keys have other values."""
    plain = _base(draw(st.sampled_from(["none", "hidden", *DP_WORDS])))
    for key, entries in (("stage", BUILT_IN.stages), ("downlink", BUILT_IN.stages), ("post", BUILT_IN.posts)):
        if draw(st.integers(0, 2)) == 0:
            plain[key] = draw(st.lists(_parts(entries), max_size=4))
    for key, entries in (("strategy", BUILT_IN.strategies), ("merge", BUILT_IN.merges)):
        if draw(st.integers(0, 3)) == 0:
            plain[key] = draw(_parts(entries))
    sections = {k: f.annotation for k, f in recipe.Recipe.model_fields.items() if hasattr(f.annotation, "model_fields")}
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(sections)))
        key, field = draw(st.sampled_from(_fields(sections[name])))
        plain.setdefault(name, {})
        plain[name] = {**plain[name], key: draw(_value(field))}
    if draw(st.integers(0, 9)) == 0:
        plain[draw(st.sampled_from(["name", "seed", "codec", "metrics", "schema", "stage", "dp"]))] = draw(_value({}))
    return plain


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes(), st.sampled_from([1, 2, 40, 1000]))
def test_a_recipe_is_refused_with_a_code_or_explained(plain: dict[str, Any], population: int) -> None:
    # The refusal is the point: any other exception fails the test. No model is needed for what is refused early.
    early = None
    try:
        loading.build_checked_recipe(plain, BUILT_IN, Origin("fuzzed"))
    except RecipeError as e:
        early = e
    assert "Input should" not in str(early), "no sentence of the validator's"
    with np.errstate(all="ignore"), suppress(RecipeError):
        explained(recipe.from_plain(plain), population)
        assert early is None, "refused early, and the plan has no fault"
