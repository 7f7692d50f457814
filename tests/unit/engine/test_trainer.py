"""A trainer is asked once what it can do, where it is made."""

from __future__ import annotations

import ast

import pytest
from toy import ToyTrainer
from toy_recipe import make_recipe

from arch.source import dotted, nodes, where
from edgewise.core.errors import RecipeError
from edgewise.engine.trainer import Registered, registered


def test_a_trainer_has_the_ports_that_it_defines() -> None:
    toy = ToyTrainer(make_recipe())
    assert registered(toy) == Registered(toy, describes=toy, measures=toy, fits_blocks=toy)


@pytest.mark.parametrize(("given", "taken"), [(0.25, 0.25), (0.0, None), (-1.0, None), (None, None)])
def test_a_time_of_a_step_is_above_0_or_unknown(given: float | None, taken: float | None) -> None:
    class Timed(ToyTrainer):
        def step_s(self) -> float | None:  # type: ignore[override]
            return given

    assert registered(Timed(make_recipe())).step_s() == taken


def test_what_is_no_trainer_is_refused_by_what_it_lacks() -> None:
    class Half:
        spec = ToyTrainer(make_recipe()).spec

        def fit(self, request: object) -> object:
            return request

    with pytest.raises(RecipeError, match=r"E-EXTENSION: Half .* lacks initial, devices, evaluate, sizes"):
        registered(Half())  # type: ignore[arg-type]


@pytest.mark.slow
def test_nobody_else_looks_what_a_trainer_can_do() -> None:
    """By ``hasattr``, ``getattr`` or ``isinstance`` of a trainer, or by a method's signature."""
    doors = []
    for path, node in nodes(ast.Call):
        if not node.args:
            continue
        called, of = dotted(node.func), dotted(node.args[0])
        if called in ("hasattr", "getattr", "isinstance") and of.split(".")[-1] in ("trainer", "_trainer"):
            doors.append(where(path))
        if called == "inspect.signature" and "trainer" in ast.unparse(node.args[0]):
            doors.append(where(path))
    assert set(doors) == {"src/edgewise/engine/trainer.py"}
