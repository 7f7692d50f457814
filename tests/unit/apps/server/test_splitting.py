"""Recipes with [split] that a server refuses, each with what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from toy_recipe import make_recipe

from edgewise.apps.server import splitting
from edgewise.core.errors import RecipeError, TransportError
from edgewise.core.vector import Spec

FROZEN = {"cut": 1, "server_parts": "frozen"}
ONCE = {"cut": 1, "shape": "head", "held_by": "gateway", "device_part": "frozen"}


def service(shared: bool = False, rests: object = object()) -> Any:
    return SimpleNamespace(database=SimpleNamespace(shared=shared), rests=rests)


def recipe(split: dict[str, Any]) -> Any:
    return make_recipe({"split": split, "strategy": {"kind": "fedavg"}, "eval.on_devices": False})


@pytest.mark.parametrize(
    ("split", "here", "measured", "what"),
    [
        ({"cut": 1}, service(), False, 'server_parts = "each"'),
        ({"cut": 1, "server_parts": "in_turn"}, service(), False, 'server_parts = "in_turn"'),
        ({**FROZEN, "held_by": "gateway"}, service(), False, 'held_by = "gateway"'),
        (ONCE, service(), False, 'held_by = "gateway"'),
        (FROZEN, service(shared=True), False, "several servers"),
        (FROZEN, service(rests=None), False, "does not listen"),
        (FROZEN, service(), True, "text of its own"),
    ],
)
def test_what_a_server_cannot_play_is_refused_by_name(
    split: dict[str, Any], here: Any, measured: bool, what: str
) -> None:
    with pytest.raises(RecipeError, match=what) as refused:
        splitting.check(here, recipe(split), measured)
    assert refused.value.code == "E-COMBO"
    assert refused.value.fix


def test_a_base_in_8_bits_is_refused_because_it_is_not_read_in_parts() -> None:
    made = recipe(FROZEN)
    coded = made.model_copy(update={"model": made.model.model_copy(update={"quantize": "int8"})})
    with pytest.raises(RecipeError, match=r'E-COMBO: .*"int8".*nf4'):
        splitting.check(service(), coded, False)


def test_a_frozen_rest_is_played() -> None:
    splitting.check(service(), recipe(FROZEN), False)


@pytest.mark.parametrize("facts", [{}, {"whole_spec": [["w", [2], "float32"]]}, {"whole_spec": 7}])
def test_a_layout_that_is_not_that_of_the_model_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(TransportError) as refused:
        splitting.submitted(service(), None, facts, recipe(FROZEN), Spec.of([("other", (2,), "float32")]))
    assert refused.value.code == "E-REQUEST"
