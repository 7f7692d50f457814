"""Devices trained together: each result is that of the device alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
import torch
from msgspec.structs import replace as changed
from torch import nn

from edgewise.core.errors import DataError, RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import Correction, FitRequest, Update
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.learn.batched import OnePass, joined_batch
from edgewise.learn.device_axis import DeviceLayers
from edgewise.learn.flat import Flat
from edgewise.learn.models.load import TextLoss
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import Recipe, from_plain

LORA = {"kind": "lora", "rank": 2, "rule": "fedit"}
FULL, SOME = {"kind": "full"}, {"kind": "layers", "layers": ["*self_attn*", "*norm*"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    texts = {
        "ann": "".join(f"the fox {i} jumps\n" for i in range(200)),
        "bob": "def add(a, b): return a + b\n" * 20,
        "cat": "hi there",
        "eve": "\n",
    }
    for name, text in texts.items():
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text(text)
    (folder / "notes" / "eve" / "1.txt").write_text("")
    return folder


def recipe(**sections: dict) -> Recipe:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 16},
        "training": {"batch": 4, "lr": 0.5, "optimizer": "sgd"},
        "trainable": LORA,
    }
    plain |= {k: {**plain.get(k, {}), **v} for k, v in sections.items() if k != "trainable"}
    adapters = {**LORA, **sections.get("trainable", {})}
    return from_plain(
        {**plain, "trainable": sections["trainable"] if "kind" in sections.get("trainable", {}) else adapters}
    )


def trainer(place: Path, **sections: dict) -> TextTrainer:
    return make(recipe(**sections), place, place / "cache")


def requests(t: TextTrainer, names: str = "ann bob cat", **more: object) -> list[FitRequest]:
    """Devices with other starts, numbers of steps and rows."""
    found = []
    for i, name in enumerate(names.split()):
        start = t.initial() + np.float32(0.02 * (i + 1))
        rule = LocalRule(steps=3 - i % 3, lr=t.training.lr)
        found.append(FitRequest(name, 0, start, rule, root(i), root(i), **more))
    return found


def assert_alike(one: Update | Exception, other: Update, atol: float = 3e-5) -> None:
    assert isinstance(one, Update), one
    np.testing.assert_allclose(one.x, other.x, atol=atol)
    assert one.head == pytest.approx(other.head, rel=1e-3)
    assert one.count == other.count


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(
    ("sections", "more"),
    [
        ({}, {}),
        ({"trainable": FULL}, {}),
        ({"trainable": FULL, "training": {"clip_grad": 0.1, "accumulate": 2, "checkpointing": True}}, {}),
        ({"trainable": SOME}, {"correction": Correction(pull=0.5)}),
        ({"training": {"momentum": 0.5, "weight_decay": 0.1, "accumulate": 2}}, {}),
        ({"training": {"clip_grad": 0.1}}, {}),
        ({}, {"correction": Correction(pull=0.5)}),
        ({}, {"rank": 1}),
        ({"trainable": {"rule": "ffa"}}, {}),
    ],
)
def test_together_is_one_by_one_in_any_order(place: Path, sections: dict, more: dict) -> None:
    t = trainer(place, **sections)
    asked = requests(t, **more)
    alone = [t.fit(one) for one in asked]
    assert all(np.abs(update.x).max() > 1e-3 for update in alone)
    for order in ((0, 1, 2), (2, 0, 1)):
        together = t.fit_many([asked[i] for i in order])
        for i, update in zip(order, together, strict=True):
            assert_alike(update, alone[i])
    np.testing.assert_array_equal(t.fit(asked[0]).x, alone[0].x)  # A pass leaves the model as it was.


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_keep_a_state_for_each_device(place: Path, optimizer: str) -> None:
    """A step of these is as large for a gradient near zero as for any other, and the rounding of such a one counts."""
    t = trainer(place, training={"optimizer": optimizer, "lr": 0.01})
    for one, update in zip(requests(t), t.fit_many(requests(t)), strict=True):
        alone = t.fit(one)
        assert isinstance(update, Update)
        assert np.linalg.norm(update.x - alone.x) < 0.1 * np.linalg.norm(alone.x)


@pytest.mark.slow
def test_devices_that_train_other_layers_train_too(place: Path) -> None:
    t = trainer(place)
    names = [s.name for s in t.spec.segments]
    asked = requests(t)
    asked = [replace(one, rule=changed(one.rule, segments=tuple(names[i::2]))) for i, one in enumerate(asked[:2])]
    for one, update in zip(asked, t.fit_many(asked), strict=True):
        assert_alike(update, t.fit(one))
        trained = {s.name for s in t.spec.segments if update.x[s.start : s.stop].any()}
        assert trained <= set(one.rule.segments)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [{}, FULL, SOME], ids=["lora", "full", "layers"])
def test_bfloat16_together_is_close(place: Path, trained: dict) -> None:
    t = trainer(place, model={"precision": "bfloat16"}, training={"clip_grad": 0.0}, trainable=trained)
    assert t.apart() is None
    for one, update in zip(requests(t), t.fit_many(requests(t)), strict=True):
        alone = t.fit(one)
        assert isinstance(update, Update)
        assert np.linalg.norm(update.x - alone.x) < 0.05 * np.linalg.norm(alone.x)


@pytest.mark.slow
def test_a_device_that_fails_ends_no_other(place: Path) -> None:
    t = trainer(place)
    asked = requests(t, "ann eve bob cat")
    asked[2].params[:] = np.nan
    found = t.fit_many(asked)
    assert isinstance(found[1], DataError)
    assert isinstance(found[2], TrainingError)
    assert found[2].code == "E-NAN"
    for i in (0, 3):
        assert_alike(found[i], t.fit(asked[i]))


def test_batches_are_joined_with_padding_that_is_not_predicted() -> None:
    s_NS = joined_batch([torch.ones(1, 3, dtype=torch.int64), None, torch.ones(2, 2, dtype=torch.int64)])
    assert s_NS.tolist() == [[1, 1, 1], [~0] * 3, [~0] * 3, [~0] * 3, [1, 1, ~0], [1, 1, ~0]]


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"privacy": "local_dp", "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0,
          "sample_rate": 0.1}}, "each record by itself"),
        ({"strategy": {"kind": "zeroth_order"}}, "one device at a time"),
    ],
)  # fmt: skip
def test_training_that_cannot_be_batched_is_refused(place: Path, sections: dict, why: str) -> None:
    plain = {**recipe().resolved(), **sections, "engine": {"batch_devices": 4}}
    with pytest.raises(RecipeError, match=rf"E-COMBO.*engine.batch_devices = 4.*{why}.*batch_devices = 1"):
        make_trainer(from_plain(plain), place, place, BUILT_IN)


class _Own(nn.Module):
    """A causal model of one linear layer, whose weight is used in its own way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(attention_dropout=0.1 if way == "config" else 0.0)
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.way = way
        self.scale = nn.Parameter(torch.ones(4)) if way == "parameter" else 1.0
        self.norm = nn.BatchNorm1d(4) if way == "mixing" else nn.Identity()
        self.experts = nn.ModuleList([nn.Linear(4, 4)] if way == "experts" else [])

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        x = self.table(input_ids) * self.scale
        x = x.mean(0, keepdim=True).expand_as(x) if self.way == "mean" else x
        out = x @ self.head.weight.T if self.way == "weight" else self.head(x)
        out = self.head(x.transpose(0, 1)).transpose(0, 1) if self.way == "order" else out
        return SimpleNamespace(logits=out)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("plain", None),
        ("config", "attention_dropout, which draws at random"),
        ("parameter", "scale changes in a run, and it is no weight of"),
        ("mixing", "norm mixes rows"),
        ("experts", "is an expert"),
        ("mean", "do not compute row by row"),
        ("weight", "do not compute row by row"),
        ("order", "do not compute row by row"),
    ],
)
def test_models_that_mix_devices_are_refused_by_name(way: str, why: str | None) -> None:
    model = _Own(way)
    flat = Flat(list(model.named_parameters()))
    start = flat.read()
    found = OnePass(model, TextLoss(torch.float32), flat).apart
    assert found == why if why is None or found is None else why in found
    np.testing.assert_array_equal(flat.read(), start)


def test_a_padding_row_takes_no_gradient() -> None:
    model = _Own("plain")
    model.table = nn.Embedding(9, 4, padding_idx=2)
    flat = Flat([(n, p) for n, p in model.named_parameters() if n == "table.weight"])
    w_nD = torch.from_numpy(flat.read())[None].repeat(2, 1)
    g_nD = torch.zeros_like(w_nD)
    with DeviceLayers(model, flat).devices(w_nD, 2, g_nD):
        model(torch.tensor([[1, 2], [2, 3]]), False).logits.sum().backward()
    moved_nV = g_nD.view(2, 9, 4).abs().sum(2) > 0
    assert moved_nV.nonzero().tolist() == [[0, 1], [1, 3]]
