"""MOON's contrast of representations: its gradient against float64, and what may not have it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

from edgewise.core.errors import RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import Contrast, Correction, FitRequest, Update
from edgewise.core.vector import Vector
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import Recipe, from_plain

MU, TAU = 3.0, 0.5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    for name in ("ann", "bob"):
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text("".join(f"{name} sees the fox {i}\n" for i in range(60)))
    return folder


def recipe(**sections: dict) -> Recipe:
    return from_plain({
        "privacy": "none", "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 32}, "training": {"batch": 4, "lr": 0.01},
        "strategy": {"kind": "moon", "mu": MU, "tau": TAU}, **sections,
    })  # fmt: skip


def moved(t: TextTrainer, seed: int) -> Vector:
    w = t.initial()
    return w + np.random.default_rng(seed).normal(0, 0.1, w.shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_gradient_is_that_of_the_papers_loss_in_float64(place: Path, kind: str) -> None:
    t = make(recipe(trainable={"kind": kind}), place, place / "cache")
    w, start, previous = (moved(t, seed) for seed in range(3))
    contrast = Contrast(MU, TAU, previous)
    request = FitRequest("ann", 1, start, LocalRule(steps=1, lr=0.01), root(0), root(0), Correction(contrast=contrast))
    (micro,) = list(t.work(request)[0])
    (batch,) = micro
    batch[0][0, -5:] = torch.where(batch[0][0, -5:] < 0, batch[0][0, -5:], ~batch[0][0, -5:])  # Some do not count.
    t.flat.write(w)
    t.flat.zero_grad()
    t.model.train()
    loss, _ = t.loss_of(request)(t.model, batch)
    loss.backward()
    assert t.flat.read().tobytes() == w.tobytes(), "the weights are as before"

    def copied(x: Vector) -> torch.nn.Module:
        t.flat.write(x)
        return deepcopy(t.model).double().train()

    own, other, old = copied(w), copied(start), copied(previous)
    x_BT, y_BT, _ = t.loss.inputs(batch[0])

    def z(model: torch.nn.Module) -> torch.Tensor:
        h_BTH = model(input_ids=x_BT, use_cache=False, output_hidden_states=True).hidden_states[-1]
        return torch.stack([h_TH[y_T >= 0].mean(0) for h_TH, y_T in zip(h_BTH, y_BT, strict=True)])

    logp = torch.log_softmax(own(input_ids=x_BT, use_cache=False).logits, -1)
    ce = -logp[y_BT >= 0].gather(1, y_BT[y_BT >= 0][:, None]).mean()
    with torch.no_grad():
        z_glob, z_prev = z(other), z(old)

    def e(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) / TAU)

    mine = z(own)
    l_con = -torch.log(e(mine, z_glob) / (e(mine, z_glob) + e(mine, z_prev))).mean()
    names_of = {id(p): name for name, p in t.model.named_parameters()}
    names = [names_of[id(p)] for _, p in t.flat.pairs()]
    by_name = dict(own.named_parameters())

    def gradient(value: torch.Tensor) -> np.ndarray:
        found = torch.autograd.grad(value, [by_name[n] for n in names], retain_graph=True, allow_unused=True)
        return np.concatenate([
            (torch.zeros_like(by_name[n]) if g is None else g).numpy().ravel()
            for n, g in zip(names, found, strict=True)
        ])  # fmt: skip

    got, term = t.flat.g_D.numpy(), gradient(MU * l_con)
    assert np.abs(term).max() > 1e-3
    np.testing.assert_allclose(got, gradient(ce) + term, rtol=1e-3, atol=2e-5 * np.abs(got).max())
    assert loss.item() == pytest.approx(ce.item(), rel=1e-5), "the reported loss is that of the text"


def test_a_request_without_a_previous_model_trains_as_fedavg(place: Path) -> None:
    t = make(recipe(), place, place / "cache")
    request = FitRequest("ann", 0, t.initial(), LocalRule(steps=2, lr=0.01), root(0), root(0))
    plain = t.fit(request).x
    contrasted = t.fit(replace(request, correction=Correction(contrast=Contrast(MU, TAU, moved(t, 1))))).x
    assert t.fit(request).x.tobytes() == plain.tobytes() != contrasted.tobytes()


def test_devices_in_one_pass_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    assert make_trainer(recipe(), place, tmp_path, BUILT_IN).contrasts is not None
    with pytest.raises(RecipeError, match=r"E-COMBO.*moon.*batch_devices = 2") as caught:
        make_trainer(recipe(engine={"batch_devices": 2}), place, tmp_path, BUILT_IN)
    assert caught.value.fix


def test_a_pass_of_several_devices_refuses_a_contrast_of_one(place: Path) -> None:
    """The recipe is refused before. This pass would train the contrasted device as FedAvg."""
    t = make(recipe(strategy={"kind": "fedavg"}, engine={"batch_devices": 2}), place, place / "cache")
    ann, bob = (
        FitRequest(name, 0, t.initial(), LocalRule(steps=1, lr=0.01), root(0), root(0)) for name in ("ann", "bob")
    )
    assert all(isinstance(update, Update) for update in t.fit_many([ann, bob]))
    contrasted = replace(bob, correction=Correction(contrast=Contrast(MU, TAU, moved(t, 1))))
    with pytest.raises(ValueError, match="contrast of representations trains one device at a time"):
        t.fit_many([ann, contrasted])
