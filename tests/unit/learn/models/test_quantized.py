"""Quantized bases: gradients before and after an evaluation, sizes, the cached copy, numerics, and the run's digest."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import tiny_models
import torch

from edgewise.core.errors import ModelError, RecipeError
from edgewise.core.keys import root
from edgewise.learn.models import quantized
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.architecture import logits, probe_token_ids
from edgewise.learn.models.fingerprint import frozen_digest
from edgewise.learn.models.load import TextLoss, load
from edgewise.learn.training_costs import model_weights_bytes
from edgewise.plan.recipe.recipe import TrainableSection, from_plain

# Found, not imported: that takes 4 s in each process that collects the tests.
pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

KINDS = ["nf4", "int8"]
LORA = TrainableSection(kind="lora", rule="fedit", rank=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("llama-wide", tmp_path_factory.mktemp("base"))


def gradients(model: torch.nn.Module, flat) -> torch.Tensor:
    """The gradient of all adapters on one batch, from adapters that are no longer at their start."""
    params = np.random.default_rng(0).normal(0, 0.05, flat.spec.dim).astype(np.float32)
    flat.write(params)
    model.zero_grad()
    model.train()
    ids = torch.arange(2 * 17).reshape(2, 17) % 300
    loss, _ = TextLoss(torch.float32)(model, (ids, 32))
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def evaluated(model: torch.nn.Module) -> None:
    with torch.no_grad():
        logits(model.eval(), torch.arange(16)[None])


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_changes_no_gradient(folder: Path, kind: str, dtype: torch.dtype) -> None:
    model, flat = make_trainable(load(str(folder), folder, dtype, kind).model, LORA, root(0), dtype)
    before = gradients(model, flat)
    evaluated(model)
    assert torch.equal(gradients(model, flat), before)


def test_the_guard_is_what_keeps_the_gradients(folder: Path) -> None:
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU does not repack weights")
    model, flat = make_trainable(load(str(folder), folder, torch.float32, "nf4").model, LORA, root(0), torch.float32)
    before = gradients(model, flat)
    for layer in quantized.quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = True
    evaluated(model)
    assert float((gradients(model, flat) - before).norm()) > 0.1 * float(before.norm())


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-wide", "gpt2-wide"])
def test_logits_are_those_of_the_decoded_weights(tmp_path: Path, name: str, kind: str) -> None:
    where = tiny_models.save(name, tmp_path)
    loaded = load(str(where), where, torch.float32, kind)
    plain = load(str(where), where, torch.float32).model
    ids = probe_token_ids(loaded.tokens, 2, 32, 300)
    with torch.no_grad():
        got, base = logits(loaded.model.eval(), ids), logits(plain.eval(), ids)
        decoded = logits(quantized.load_decoded_model(where, kind).eval(), ids)
    assert float((got - decoded).abs().max()) < 1e-5 * float(base.abs().max())
    assert not torch.allclose(got, base)
    for name, layer in quantized.quantized_layers(loaded.model).items():
        target = plain.get_submodule(name).weight
        wanted = target if isinstance(plain.get_submodule(name), torch.nn.Linear) else target.T
        error = float((quantized.decoded_weight(layer) - wanted).norm() / wanted.norm())
        assert 0.05 < error < 0.12 if kind == "nf4" else 0.001 < error < 0.02


def test_int8_logits_depend_on_no_later_token(folder: Path) -> None:
    loaded = load(str(folder), folder, torch.float32, "int8")
    ids = probe_token_ids(loaded.tokens, 2, 32, 300)
    ids[1, :16] = ids[0, :16]
    with torch.no_grad():
        first, second = (logits(loaded.model.eval(), ids[row : row + 1])[:, :16] for row in (0, 1))
    assert torch.equal(first, second)


def test_a_size_that_the_kernel_does_not_accept_is_refused_by_name(tmp_path: Path) -> None:
    where = tiny_models.save("llama-odd", tmp_path)
    with pytest.raises(ModelError) as e:
        load(str(where), where, torch.float32, "nf4")
    assert e.value.code == "E-QUANTIZE"
    assert "gate_proj has 88 outputs and 64 inputs" in e.value.what
    assert "96 x 64" in e.value.what
    load(str(where), where, torch.float32, "int8")


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_copy_gives_the_same_model_and_a_damaged_one_is_made_again(
    tmp_path: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "user"))

    def digest() -> str:
        model = load(str(folder), folder, torch.float32, kind, tmp_path).model
        return frozen_digest(make_trainable(model, LORA, root(0), torch.float32)[0])

    fresh = digest()
    (weights,) = tmp_path.glob("quantized/*/model.safetensors")
    with monkeypatch.context() as m:
        m.setattr(quantized, "_rounded", None)  # A second load must not quantize.
        assert digest() == fresh
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    assert digest() == fresh
    assert weights.read_bytes() != raw
    assert [p.name for p in (tmp_path / "quantized").iterdir()] == [weights.parent.name]


@pytest.mark.slow
def test_a_copy_that_an_examination_kept_serves_every_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "user"))
    load(str(folder), folder, torch.float32, "int8", quantized.user_cache())
    monkeypatch.setattr(quantized, "_rounded", None)  # No load after the first quantizes.
    for place in (quantized.user_cache(), tmp_path / "run"):
        load(str(folder), folder, torch.float32, "int8", place)
    assert not (tmp_path / "run").exists()


def test_a_user_folder_that_cannot_be_written_ends_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "file"))
    load(str(folder), folder, torch.float32, "int8", quantized.user_cache())


@pytest.mark.slow
def test_the_frozen_digest_covers_codes_and_scales(folder: Path) -> None:
    for kind in KINDS:
        model, _ = make_trainable(load(str(folder), folder, torch.float32, kind).model, LORA, root(0), torch.float32)
        before = frozen_digest(model)
        layer = next(iter(quantized.quantized_layers(model).values()))
        next(t for _, t in quantized.quantized_scales(model)).view(-1)[0] += 1
        assert frozen_digest(model) != before
        layer.weight.data.view(-1)[0] += 1


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_told_without_weights(folder: Path, kind: str) -> None:
    model = load(str(folder), folder, torch.float32, kind).model
    plain = load(str(folder), folder, torch.float32).model
    assert sum(map(quantized.count, model.parameters())) == sum(p.numel() for p in plain.parameters())
    found = quantized.quantized_layers(model)
    assert len(found) == 14
    stored = sum(quantized.quantized_layer_bytes(kind, m.out_features, m.in_features) for m in found.values())
    rest = sum(4 * p.numel() for p in model.parameters() if p.is_floating_point())
    assert model_weights_bytes(model) == stored + rest


@pytest.mark.slow
def test_a_folder_that_is_quantized_already_is_used_as_it_is_or_refused(tmp_path: Path, folder: Path) -> None:
    load(str(folder), folder, torch.float32, "nf4", tmp_path)
    (copy,) = tmp_path.glob("quantized/*")
    tiny_model.tokenizer().save_pretrained(copy)
    for kind, word in (("none", 'write model.quantize = "nf4"'), ("int8", 'write model.quantize = "nf4"')):
        with pytest.raises(ModelError, match="quantized already") as e:
            load(str(copy), copy, torch.float32, kind)
        assert word in e.value.fix
    again = load(str(copy), copy, torch.float32, "nf4").model
    ids = torch.arange(16)[None]
    with torch.no_grad():
        fresh = load(str(folder), folder, torch.float32, "nf4").model
        assert torch.equal(logits(again.eval(), ids), logits(fresh.eval(), ids))


def test_full_training_of_a_quantized_base_is_refused() -> None:
    tables = {"schema": 1, "privacy": "none", "model": {"quantize": "nf4"}}
    with pytest.raises(RecipeError, match="rounded weights cannot take"):
        from_plain(tables)
    from_plain({**tables, "trainable": {"kind": "lora"}})


def test_a_recipe_without_later_keys_keeps_its_identity() -> None:
    plain = from_plain({"schema": 1, "privacy": "none"}).resolved()
    assert "quantize" not in plain["model"]
    used = from_plain({"schema": 1, "privacy": "none", "model": {"quantize": "int8"}, "trainable": {"kind": "lora"}})
    assert used.resolved()["model"]["quantize"] == "int8"


@pytest.mark.slow  # a process of its own, since a library is imported once
def test_no_code_is_fetched_while_the_library_is_imported(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(f"def get_kernel(*a, **k): open({str(tmp_path / 'fetched')!r}, 'w')")
    script = "from edgewise.learn.models import quantized as q; q.import_bitsandbytes(); import kernels, bitsandbytes"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=True)
    assert not (tmp_path / "fetched").exists()
