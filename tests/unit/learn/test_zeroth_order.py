"""Seeds and scalars only: directions, the two-point step, the trainer behind the port, whole runs, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.models import export
from edgewise.apps.report import summary
from edgewise.apps.simulate import check, simulation
from edgewise.core.errors import EdgewiseError, RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Turn, root
from edgewise.core.training import POOLED, FitRequest
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import registered
from edgewise.learn import directions
from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.zeroth_order import ZerothOrderTrainer
from edgewise.plan.catalogue import BUILT_IN, Extension, with_extensions
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.strategies.zeroth_order import zeroth_order

MASK = (1 << 64) - 1


# -- directions -------------------------------------------------------------------------------------------------------


def signs(seed: int, dim: int) -> np.ndarray:
    """The definition in plain Python integers: bit (i mod 64) of SplitMix64's word (i div 64)."""
    out = np.empty(dim, np.float32)
    for i in range(dim):
        z = (seed + (i // 64 + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out[i] = 1.0 if (z ^ (z >> 31)) >> (i % 64) & 1 else -1.0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 63, 64, 65, 2048, 2048 + 97, 3 * 2048 + 1])
def test_directions_are_the_bits_of_the_stream(dim: int) -> None:
    for seed in (0, 1, 2**63 - 1, 2**64 - 1):
        z = np.zeros(dim, np.float32)
        directions.move_along_direction(z, 1.0, np.uint64(seed))
        np.testing.assert_array_equal(z, signs(seed, dim))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5000), st.integers(1, 9), st.integers(0, 2**32))
def test_expanding_is_a_float32_sum_in_order(dim: int, count: int, draw: int) -> None:
    rng = np.random.default_rng(draw)
    base, a = (rng.normal(0, scale, n).astype(np.float32) for n, scale in ((dim, 1.0), (count, 1e-3)))
    a[rng.random(count) < 0.3] = 0.0
    seeds = rng.integers(0, 2**63, count).astype(np.uint64)
    total = np.zeros(dim, np.float32)
    for k in range(count):
        if a[k]:
            total += a[k] * signs(int(seeds[k]), dim)
    before = base.copy()
    np.testing.assert_array_equal(directions.expand_directions(base, a, seeds), total + base)
    np.testing.assert_array_equal(base, before)


@pytest.mark.slow
def test_directions_are_almost_orthogonal() -> None:
    dim, seeds = 20_000, directions.direction_seeds(root(0), 24)
    z = np.stack([signs(int(s), dim) for s in seeds])
    assert len(set(seeds.tolist())) == 24
    cosines = (z @ z.T / dim)[~np.eye(24, dtype=bool)]
    assert np.abs(cosines).max() < 5 / np.sqrt(dim)
    assert np.abs(z.mean(0)).max() < 1  # no coordinate has the same sign in all of them
    assert abs(z.mean()) < 5 / np.sqrt(z.size)


# -- the step ---------------------------------------------------------------------------------------------------------

DIM, COUNT, EPS = 70, 32, 1e-2
TARGET = torch.from_numpy(np.random.default_rng(1).normal(0, 1, DIM).astype(np.float32))


class Bowl(nn.Module):
    """L(w) = |w - target|^2 / 2 for the batch's own targets; counts how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIM))
        self.calls: list[tuple[bool, bool]] = []


def bowl_loss(model: Bowl, batch: tuple[torch.Tensor]) -> tuple[torch.Tensor, float]:
    model.calls.append((torch.is_grad_enabled(), model.training))
    return (model.w - batch[0]).square().sum(1).mean() / 2, len(batch[0])


def bowl(clip_grad: float = 0.0, count: int = COUNT, rows: int = 8, **more: Any) -> ZerothOrderTrainer:
    training = TrainingSection(optimizer="sgd", clip_grad=clip_grad, batch=8, **more)
    shard = TensorShard([TARGET.repeat(rows, 1)], [TARGET[None]])
    inner = TorchTrainer(Bowl(), bowl_loss, {"a": shard, "b": shard, POOLED: shard}, training)
    directions = zeroth_order(count, EPS).directions
    assert directions is not None
    return ZerothOrderTrainer(registered(inner), directions, root(0))


def ask(t: Any, steps: int = 1, lr: float = 0.01, seed: int = 0, params: Any = None, device: str = "a") -> FitRequest:
    return FitRequest(
        device, 0, t.initial() if params is None else params, LocalRule(steps=steps, lr=lr), root(seed), root(seed)
    )


def test_one_step_is_the_gradient_along_one_direction() -> None:
    t = bowl()
    x = t.fit(ask(t, lr=0.1)).x
    (k,) = np.flatnonzero(x)
    z = t.weights(np.eye(COUNT, dtype=np.float32)[k])
    assert set(np.unique(z)) == {-1.0, 1.0}
    assert x[k] == pytest.approx(0.1 * float(z @ TARGET.numpy()), rel=1e-3)  # exact on a quadratic, up to float32
    assert x.dtype == np.float32


def test_what_travels_rebuilds_what_the_device_has() -> None:
    t = bowl()
    start = np.random.default_rng(3).normal(0, 1e-2, COUNT).astype(np.float32)
    x = t.fit(ask(t, steps=40, params=start)).x
    own = t.inner.flat.read()
    np.testing.assert_allclose(t.weights(start + x), own, atol=40 * 3 * np.spacing(np.abs(own).max()))
    assert np.abs(own - t.weights(start)).max() > 1e-2


def test_no_gradients_no_dropout_two_losses_a_step() -> None:
    t = bowl(accumulate=2)
    t.inner.model.train()
    t.fit(ask(t, steps=3))
    assert t.inner.model.calls == [(False, False)] * (3 * 2 * 2)
    assert not t.inner.flat.g_D.any()


def test_micro_batches_are_one_step() -> None:
    whole, split = bowl(), bowl(accumulate=4)
    np.testing.assert_allclose(split.fit(ask(split, steps=5)).x, whole.fit(ask(whole, steps=5)).x, rtol=1e-3, atol=1e-6)


def test_the_slope_is_cut_where_the_gradient_would_be() -> None:
    t = bowl(clip_grad=0.5)
    x = t.fit(ask(t, lr=0.1)).x
    assert np.abs(x).max() == np.float32(0.1 * 0.5)


def test_a_bowl_is_descended_and_means_of_devices_count() -> None:
    t = bowl(count=512)
    params, before = t.initial(), t.evaluate("a", t.initial()).nll
    for r in range(6):
        updates = [t.fit(ask(t, 60, 0.005, seed=10 * r + i, params=params, device=d)).x for i, d in enumerate("ab")]
        params = params + np.mean(updates, axis=0)
    assert t.evaluate("a", params).nll < 0.2 * before
    head = t.fit(ask(t, 60, 0.005)).head
    assert head["loss_last"] < head["loss_first"] == pytest.approx(before, rel=0.2)


def test_values_that_are_not_finite_and_data_that_ends() -> None:
    t = bowl()
    with pytest.raises(TrainingError, match="E-NAN"):
        t.fit(ask(t, steps=50, lr=1e30))
    short = bowl()
    short.inner._shard = lambda _: _Short()  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=r"E-TRAIN.*after 1 of 3"):
        short.fit(ask(short, steps=3))


class _Short:
    count = 8.0

    def batches(self, *_: Any) -> Any:
        return [[(TARGET[None],)]]


def test_sizes_count_neither_gradient_nor_optimizer() -> None:
    t = bowl()
    inner, own = t.inner.sizes(), t.sizes()
    assert own["trainable"] == own["parameters"] == DIM
    assert t.step_s() > 0
    assert own["memory_bytes"] == 4 * DIM * 3 + COUNT * 16 < inner["memory_bytes"] + COUNT * 16


# -- through recipes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    for name, text in {"ann": "the fox jumps over the dog\n", "bob": "def add(a, b): return a + b\n"}.items():
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text(text * 60)
    return folder


def plain(place: Path, **sections: Any) -> dict[str, Any]:
    base = {
        "privacy": "none",
        "name": "seeds",
        "model": {"base": str(place / "model"), "precision": "float32"},
        "data": {"source": "text", "path": str(place / "notes"), "sequence_len": 32},
        "round": {"rounds": 2},
        "training": {"optimizer": "sgd", "lr": 1e-3, "local_steps": 4, "batch": 2},
        "strategy": {"kind": "zeroth_order"},
        "eval": {"every": 0},
        "compare": {"local_only": False, "centralised": False},
    }
    return {**base, **{k: {**base[k], **v} if k in base and isinstance(v, dict) else v for k, v in sections.items()}}


def trainer(place: Path, **sections: Any) -> ZerothOrderTrainer:
    made = make_trainer(from_plain(plain(place, **sections)), place, place, BUILT_IN).trainer
    assert isinstance(made, ZerothOrderTrainer)
    return made


def play(place: Path, out: Path, **sections: Any) -> dict[str, Any]:
    simulation.run(from_plain(plain(place, **sections)), out=out, recipe_dir=place, report=False)
    with RunStore(out) as store:
        return summary.build(store)


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "lr", "gain"), [({"kind": "full"}, 2e-3, 0.1), ({"kind": "lora", "rank": 2}, 0.02, 0.02)]
)
def test_a_text_model_learns(place: Path, section: dict[str, Any], lr: float, gain: float) -> None:
    t = trainer(place, trainable=section)
    assert t.spec.dim == 4096 != t.sizes()["trainable"]
    params = t.initial()
    before = t.evaluate("ann", params)
    assert before == t.inner.evaluate("ann", t.inner.initial())
    for r in range(3):
        params = params + t.fit(ask(t, 80, lr, seed=r, params=params, device="ann")).x
    assert t.evaluate("ann", params).nll < before.nll - gain * before.tokens


def test_describe_tells_the_base_apart(place: Path) -> None:
    told, other = trainer(place).describe(), trainer(place, trainable={"kind": "lora"}).describe()
    assert told["trainable"] == told["parameters"] > 30_000
    assert told["base_sha256"] == trainer(place).describe()["base_sha256"] != other["base_sha256"]
    assert set(told["devices"]) == {"ann", "bob"}


@pytest.mark.slow
def test_a_run_its_bytes_and_its_comparisons(place: Path, tmp_path: Path) -> None:
    s = play(place, tmp_path / "run", compare={"local_only": True, "centralised": True})
    assert s["complete"]
    assert all(s["perplexity"][m]["devices"] == 2 for m in ("base", "federated", "local_only", "centralised"))
    assert len({found["weighted_mean"] for found in s["perplexity"].values() if found}) == 4
    b = s["bytes"]
    assert 4 * 4096 <= b["up_per_device_round"] <= 18_000
    assert 4 * 4096 <= b["down_per_device_round"] <= 18_000
    assert s["trainable"] == s["parameters"]
    assert b["up_ratio_update"] == pytest.approx(4 * s["parameters"] / b["up_per_device_round"])
    assert s["plan"]["trace"][0]["does"].startswith("float32, one per direction")


@pytest.mark.slow
def test_touched_coefficients_alone_are_the_same_round(place: Path) -> None:
    """top_k with room for local_steps coefficients loses nothing: at most so many are not zero."""
    t = trainer(place)
    stages = {"stage": [{"kind": "weigh"}, {"kind": "top_k", "fraction": 4 / 4096}]}
    dense, sparse = (compile_plan(from_plain(plain(place, **more)), t.spec, 2, BUILT_IN).at(0) for more in ({}, stages))
    update, turn = t.fit(ask(t, 4, 1e-3, device="ann")), Turn(0, b"p" * 32, b"k" * 32)
    means = []
    for pipe in (dense, sparse):
        payload, _ = pipe.encode(update.x, update.head, update.count, pipe.init(), turn)
        total = pipe.add(pipe.start_sum(), payload, turn)
        means.append(pipe.release(total, turn, bytes(32), pipe.start_memory())[0].mean)
    np.testing.assert_array_equal(means[0], means[1])
    assert np.count_nonzero(means[0])


@pytest.mark.slow
@pytest.mark.long(sample=0)
def test_pool_and_inproc_agree_to_the_byte(place: Path, tmp_path: Path) -> None:
    models = []
    for engine in ("inproc", "pool"):
        play(place, tmp_path / engine, simulation={"engine": engine})
        with RunStore(tmp_path / engine) as store:
            models.append(store.models())
    assert models[0] == models[1]
    assert len(models[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "to", "precision"),
    [
        ({"kind": "full"}, "merged", "float32"),
        ({"kind": "lora", "rank": 2}, "peft", "bfloat16"),
    ],
)
def test_exports_are_the_rebuilt_weights(
    place: Path, tmp_path: Path, section: dict[str, Any], to: str, precision: str
) -> None:
    from safetensors.numpy import load_file

    sections = {"trainable": section, "model": {"precision": precision}}
    play(place, tmp_path / "run", **sections)
    export.write_export(tmp_path / "run", tmp_path / "out", export.ExportRequest(to))
    with RunStore(tmp_path / "run") as store:
        params = store.blob(store.models()[2])
    t = trainer(place, **sections)
    weights = t.weights(params)
    assert np.abs(weights - t.inner.initial()).max() > 1e-5
    saved = load_file(tmp_path / "out" / f"{'model' if to == 'merged' else 'adapter_model'}.safetensors")
    for s in t.inner.spec.segments:
        name = s.name if to == "merged" else f"base_model.model.{s.name}"
        np.testing.assert_array_equal(saved[name].reshape(-1), weights[s.start : s.stop])
    assert "coefficients of the directions" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    tiny_model.save(place / "model", seed=1)
    try:
        with pytest.raises(EdgewiseError, match=r"E-EXPORT.*other (parameters|weights) than the run"):
            export.write_export(tmp_path / "run", tmp_path / "other", export.ExportRequest(to))
    finally:
        tiny_model.save(place / "model")


# -- refusals ---------------------------------------------------------------------------------------------------------

LAYOUT = Spec.of([("directions", (4096,), "float32")])


@pytest.mark.parametrize(
    ("training", "what", "fix"),
    [
        ({"optimizer": "adamw"}, "no gradient", 'training.optimizer = "sgd"'),
        ({"optimizer": "muon"}, "no gradient", 'training.optimizer = "sgd"'),
        ({"momentum": 0.5}, "no gradient", "training.momentum = 0"),
        ({"weight_decay": 0.1}, "weight decay", "training.weight_decay = 0"),
    ],
)
def test_what_needs_a_gradient_is_refused(place: Path, training: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=rf"E-COMBO: .*{what}") as refused:
        compile_plan(from_plain(plain(place, training=training)), LAYOUT, 2, BUILT_IN)
    assert fix in refused.value.fix
    assert compile_plan(from_plain(plain(place)), LAYOUT, 2, BUILT_IN).spec == LAYOUT


def test_a_trainer_without_a_torch_model_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe({"strategy": {"kind": "zeroth_order"}, "training.optimizer": "sgd"})
    catalogue = BUILT_IN.extended(Extension(trainer=ToyTrainer))
    t = make_trainer(recipe, tmp_path, tmp_path, catalogue).trainer
    assert isinstance(t, ToyTrainer)
    with pytest.raises(RecipeError, match=r"E-COMBO.*torch model"):
        compile_plan(recipe, t.spec, 8, catalogue)
    with pytest.raises(RecipeError, match=r"E-COMBO.*torch model"):
        check.examine(recipe, tmp_path, with_extensions(["toy"]), fast=True)


def test_layers_that_do_not_travel_are_refused(place: Path) -> None:
    recipe = from_plain(plain(place, stage=[{"kind": "segments", "names": ["model.layers.0.*"]}]))
    with pytest.raises(EdgewiseError, match="E-SEGMENT"):
        compile_plan(recipe, LAYOUT, 2, BUILT_IN)


@pytest.mark.slow
def test_check_counts_the_models_parameters(place: Path) -> None:
    found = check.examine(from_plain(plain(place)), place, fast=True)
    assert found["trainable"] == found["parameters"] > 30_000
    assert 4 * 4096 < found["bytes"]["down"] < 4 * 4096 + 1000  # and the frames around
    assert found["bytes"]["float32_update"] == 4 * found["parameters"]
