"""A trainer that holds training data back, and the share of a personal model that a device chooses by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from edgewise.core.errors import RecipeError, TrainingError
from edgewise.core.training import HeldOut
from edgewise.core.vector import Vector
from edgewise.drivers.workers.personal import personalised
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import registered
from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.catalogue import BUILT_IN, with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.personal import personal_training
from edgewise.plan.recipe.recipe import Recipe, from_plain

SGD = {"optimizer": "sgd", "lr": 0.1, "local_steps": 2, "batch": 64, "clip_grad": 0.0}


def recipe(**personal: object) -> Recipe:
    tables = {"method": "interpolate", "steps": 40, "lr": 0.1, **personal}
    return from_plain({"privacy": "none", "training": SGD, "personal": tables})


def trainer(ends_as_it_begins: bool) -> TorchTrainer:
    """y = 1 in the first four fifths of a device's data, and then 1 or -1."""
    y = torch.ones(50, 1)
    if not ends_as_it_begins:
        y[40:] = -1.0
    shard = TensorShard((torch.ones(50, 1), y), (torch.ones(5, 1), torch.ones(5, 1)))
    net = torch.nn.Linear(1, 1)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()

    def loss(m: torch.nn.Module, b: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
        return mse_loss(m(b[0]), b[1]), float(len(b[0]))

    return TorchTrainer(net, loss, {"a": shard}, recipe().training)


def output(params: Vector) -> float:
    return float(params.sum())  # of x = 1


@pytest.mark.parametrize(("alike", "share"), [(True, 1.0), (False, 0.0)])
def test_a_device_takes_as_much_of_its_own_model_as_its_held_back_text_says(alike: bool, share: float) -> None:
    one = trainer(alike)

    def made(weight: float) -> Vector:
        plan = compile(recipe(weight=weight), one.spec, 1, BUILT_IN)
        wanted = personal_training(plan, "a")
        assert wanted is not None
        return personalised(plan, registered(one), "a", one.initial(), bytes(32), wanted)

    own, whole = made(0.0), made(1.0)
    assert output(own) == pytest.approx(share * output(whole), abs=1e-6)
    if alike:
        assert output(own) == pytest.approx(1.0, abs=1e-3)


def test_held_back_data_is_measured_and_not_trained_on_and_comes_back() -> None:
    one = trainer(ends_as_it_begins=False)
    zero = np.zeros(one.spec.dim, np.float32)
    zero[-1] = 1.0
    with one.holding_back():
        assert one.records("a") == 40
        assert one.evaluate("a", zero) == HeldOut(pytest.approx(40.0), 10), "(1 - -1)^2 on ten rows"
    assert one.records("a") == 50
    assert one.evaluate("a", zero) == HeldOut(pytest.approx(0.0), 5)


def test_what_cannot_hold_back_is_refused() -> None:
    with pytest.raises(RecipeError, match="trainer holds back"):
        make_trainer(recipe(weight=0.0), None, None, with_extensions(["toy"]))  # type: ignore[arg-type]

    class Bare:
        count, size = 1.0, 1

    one = TorchTrainer(torch.nn.Linear(1, 1), lambda m, b: (b, 1), {"a": Bare()}, recipe().training)  # type: ignore[dict-item]
    with one.holding_back(), pytest.raises(TrainingError, match="no method apart"):
        one.records("a")
