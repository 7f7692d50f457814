"""The processor that trains, and its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from edgewise.core.errors import RecipeError
from edgewise.learn import hardware
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import SMALL, autocast_dtype, bfloat16_gains, chosen, moved
from edgewise.learn.train import LocalOptimizer
from edgewise.plan.recipe.engine import EngineSection
from edgewise.plan.recipe.sections import TrainingSection

META = torch.device("meta")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert chosen("auto") == chosen("cpu") == torch.device("cpu")
    gpus(monkeypatch, 2)
    assert chosen("cpu") == torch.device("cpu")
    assert [chosen("auto", worker).index for worker in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(RecipeError, match=rf'E-HARDWARE.*engine.device = "{asked}".*"auto"'):
        chosen(asked)


def test_own_code_trains_on_the_cpu() -> None:
    assert EngineSection().on_cpu("your own loop").device == "cpu"
    with pytest.raises(RecipeError, match=r'E-HARDWARE.*"cuda" with your own loop'):
        EngineSection(device="cuda").on_cpu("your own loop")


def test_small_models_compute_in_float32_on_any_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("float32", SMALL) is torch.float32
    assert autocast_dtype("bfloat16", 1) is torch.bfloat16
    for gains in (True, False):
        monkeypatch.setattr(hardware, "bfloat16_gains", lambda _, gains=gains: gains)
        assert autocast_dtype("auto", SMALL - 1) is torch.float32
        assert autocast_dtype("auto", SMALL) is (torch.bfloat16 if gains else torch.float32)


@pytest.mark.parametrize(
    ("flags", "gains"),
    [
        ("AuthenticAMD avx512f avx512_bf16", True),
        ("GenuineIntel avx512f avx512_bf16", False),
        ("GenuineIntel avx512_bf16 amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("AuthenticAMD avx2", False),
    ],
)
def test_bfloat16_is_for_hardware_that_is_faster_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, gains: bool
) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert not bfloat16_gains()
    (tmp_path / "cpuinfo").write_text(flags)
    assert bfloat16_gains() is gains


class Pair(NamedTuple):
    x: torch.Tensor
    n: int


def test_batches_move_with_their_structure() -> None:
    batch = {"pair": Pair(torch.zeros(2), 3), "rest": [torch.ones(1), "word"]}
    assert moved(batch, torch.device("cpu")) is batch
    there = moved(batch, META)
    assert isinstance(there["pair"], Pair)
    assert (there["pair"].x.device, there["rest"][0].device) == (META, META)
    assert (there["pair"].n, there["rest"][1]) == (3, "word")


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_a_moved_model_trains_where_it_is(kind: str) -> None:
    """Torch refuses an operation on tensors of two processors, so a step that ran used one."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).to(META)
    flat = Flat([(f"layers.{n}", p) for n, p in net.named_parameters()])
    flat.move(META)
    training = TrainingSection(optimizer=kind, momentum=0.9 if kind == "sgd" else 0.0)
    optimizer = LocalOptimizer(training, flat)
    flat.zero_grad()
    net(torch.zeros(5, 4, device=META)).sum().backward()
    assert all(p.device == p.grad.device == META and p.grad._base is flat.g_D for p in net.parameters())
    optimizer.step(0.1)
    assert {x.device for x in optimizer.state} == {META}
