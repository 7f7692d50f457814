"""Models from disk, what is trained of them, and how their loss is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from torch.nn import functional as F

from edgewise.core.errors import ModelError
from edgewise.core.keys import root
from edgewise.learn.models import load as models
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.load import TextLoss, float32_attention, load, stored_parameters
from edgewise.plan.recipe.trainable import TrainableSection

KEY = root(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "m"))


def chosen(saved: Path, frozen: torch.dtype = torch.float32, seed: int = 0, **section: object):
    rule = {"rule": "fedit"} if section.get("kind") == "lora" else {}
    return make_trainable(load(str(saved), saved).model, TrainableSection(**rule, **section), root(seed), frozen)


def test_local_folder_relative_to_the_recipe(saved: Path) -> None:
    loaded = load(saved.name, saved.parent)
    assert loaded.name == saved.name
    assert loaded.tokens.size == 300
    assert loaded.tokens.start == loaded.tokens.end == 0
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


def test_bundled_model_loads_where_it_is_built() -> None:
    loaded = load("bundled", Path())
    assert loaded.tokens.size <= loaded.model.config.vocab_size
    assert sum(p.numel() for p in loaded.model.parameters()) > 1e5


@pytest.mark.parametrize(("scaling", "scale"), [("rank", 2.0), ("root", 4.0)])
def test_the_scale_of_adapters_is_that_of_the_section(saved: Path, scaling: str, scale: float) -> None:
    given = {"kind": "lora", "rank": 4, "alpha": 8.0, "scaling": scaling}
    model, _ = chosen(saved, **given)
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {scale}
    assert TrainableSection(**given).scale == scale


def truncate(m: Path) -> None:
    raw = (m / "model.safetensors").read_bytes()
    (m / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def drop_tensor(m: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(m / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, m / "model.safetensors", metadata={"format": "pt"})


def pickled(m: Path) -> None:
    (m / "model.safetensors").rename(m / "pytorch_model.bin")


def remote_code(m: Path) -> None:
    config = json.loads((m / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (m / "config.json").write_text(json.dumps(config))
    (m / "own.py").write_text("raise SystemExit('remote code ran')")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda m: shutil.rmtree(m), "no model folder"),
        (lambda m: (m / "config.json").unlink(), r"no config\.json"),
        (lambda m: (m / "config.json").write_text("{"), "cannot be read"),
        (lambda m: (m / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (pickled, "pickled weights"),
        (truncate, "cannot be loaded"),
        (drop_tensor, "missing keys.*up_proj"),
        (remote_code, "cannot be loaded"),
        (lambda m: (m / "tokenizer.json").write_text('{"model": 1}'), "tokenizer"),
    ],
)
def test_unusable_models_are_refused_with_the_reason(copy: Path, damage, match: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=f"E-MODEL: .*{match}"):
        load(str(copy), copy.parent)


def test_hub_model_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"E-MODEL-REMOTE.*HF_HUB_OFFLINE"):
        load("hub:nobody/no-such-model", tmp_path)
    with pytest.raises(ModelError, match="E-MODEL-REMOTE"):
        load("hub:not a name", tmp_path)


def test_full_has_tied_weights_once(saved: Path, tmp_path: Path) -> None:
    model, flat = chosen(saved)
    names = [s.name for s in flat.spec.segments]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert flat.spec.dim == sum(p.numel() for p in model.parameters())
    flat.write(np.full(flat.spec.dim, 0.5, np.float32))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr() == flat.w_D.data_ptr()
    assert model.lm_head.weight[0, 0].item() == 0.5
    _, untied = chosen(tiny_model.save(tmp_path, tie=False))
    assert untied.spec.dim == flat.spec.dim + 300 * 32


def test_layers_train_what_matches_and_nothing_else(saved: Path) -> None:
    model, flat = chosen(saved, torch.bfloat16, kind="layers", layers=["model.layers.1.*", "model.norm.weight"])
    names = [s.name for s in flat.spec.segments]
    assert names[-1] == "model.norm.weight"
    assert all(n.startswith(("model.layers.1.", "model.norm")) for n in names)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if name in names else torch.bfloat16)
        assert p.requires_grad == (name in names)
    with pytest.raises(ModelError, match=r"E-TARGETS.*did you mean `model\.layers\.1\.mlp"):
        chosen(saved, kind="layers", layers=["model.layer.1.mlp.up_proj"])


def test_lora_spec_start_and_freezing(saved: Path) -> None:
    model, flat = chosen(saved, torch.bfloat16, kind="lora", rank=2, targets=["q_proj", "up_proj"])
    names = [s.name for s in flat.spec.segments]
    assert len(names) == 2 * 2 * 2
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in names
    by_name = dict(zip(names, flat.spec.segments, strict=True))
    assert by_name["model.layers.1.mlp.up_proj.lora_B.weight"].shape == (64, 2)
    x = flat.read()
    for name, s in by_name.items():
        assert bool(x[s.start : s.stop].any()) == ("lora_A" in name)  # B starts at zero
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    np.testing.assert_array_equal(x, chosen(saved, kind="lora", rank=2, targets=["q_proj", "up_proj"])[1].read())
    other = chosen(saved, seed=1, kind="lora", rank=2, targets=["q_proj", "up_proj"])[1]
    assert not np.array_equal(x, other.read())
    assert other.spec.digest() == flat.spec.digest()  # precision and seed do not change the layout


def test_lora_starts_as_the_base_and_changes_with_b(saved: Path) -> None:
    x = torch.arange(12)[None]
    base = load(str(saved), saved).model(x).logits
    model, flat = chosen(saved, kind="lora", rank=2)
    assert len(flat.spec.segments) == 2 * 7 * 2  # all-linear: seven per layer, never the head
    torch.testing.assert_close(model(x).logits, base)
    flat.write(flat.read() + np.float32(0.1))
    assert (model(x).logits - base).abs().max() > 1e-3


def test_lora_targets_that_match_nothing(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"E-TARGETS.*`q_prj`.*did you mean `q_proj`"):
        chosen(saved, kind="lora", targets=["q_prj"])


def batch() -> tuple[torch.Tensor, int]:
    s_BS = torch.arange(2 * 13).reshape(2, 13) + 2
    s_BS[0, :5] = ~s_BS[0, :5]
    s_BS[1, 9:] = ~s_BS[1, 9:]
    return s_BS, 8 + 8


def test_text_loss_counts_marked_predictions_only(saved: Path) -> None:
    model = load(str(saved), saved).model
    s_BS, n = batch()
    mean, terms = TextLoss(torch.float32)(model, (s_BS, n))
    x_BS = torch.where(s_BS < 0, ~s_BS, s_BS)
    target_BS = torch.where(s_BS < 0, -100, s_BS)
    expected = F.cross_entropy(model(x_BS[:, :-1]).logits.flatten(0, 1), target_BS[:, 1:].flatten(), reduction="sum")
    assert terms == n == int((target_BS[:, 1:] >= 0).sum())
    assert mean.item() * n == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_bfloat16_gradients_are_close_to_float32(saved: Path, kind: str) -> None:
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(str(saved), saved)
        if dtype is torch.bfloat16:
            float32_attention(loaded.model)
            assert loaded.model.config._attn_implementation == models.FP32_ATTENTION
        model, flat = make_trainable(
            loaded.model, TrainableSection(kind=kind, rule="fedit" if kind == "lora" else "auto"), KEY, dtype
        )
        flat.write(flat.read() + np.float32(0.01) * (kind == "lora"))
        flat.zero_grad()
        TextLoss(dtype)(model, batch())[0].backward()
        gradients.append(flat.g_D.clone())
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05


def test_the_weights_are_counted_without_loading_them(saved: Path) -> None:
    assert stored_parameters(saved) == sum(p.numel() for p in load(str(saved), saved).model.parameters())


def config_says(**changes: object):
    def change(m: Path) -> None:
        config = json.loads((m / "config.json").read_text())
        (m / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def nested_config(m: Path) -> None:
    (m / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (config_says(num_hidden_layers=1), r"9 unexpected keys.*model\.layers\.1"),  # a layer would be dropped
        (config_says(num_hidden_layers=10**6), r"num_hidden_layers = 1e\+06 makes more than"),
        (config_says(num_labels=10**9), r"num_labels = 1e\+09 makes more than"),
        (config_says(text_config={"num_experts": 30_000, "num_layers": 30_000}), "makes more than"),
        (config_says(num_attention_heads=0), "cannot be loaded: ZeroDivisionError"),
        (config_says(num_attention_heads=7), "cannot be loaded"),
        (config_says(hidden_size="x"), "cannot be loaded"),
        (config_says(model_type=[1]), "cannot be loaded"),
        (nested_config, r"config\.json cannot be read: RecursionError"),
        (lambda m: (m / "tokenizer.json").write_text("[" * 100_000), "tokenizer"),
        (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 1000), "cannot be loaded"),
    ],
)
def test_models_that_lie_are_refused_at_once(copy: Path, damage, match: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=f"E-MODEL: .*{match}"):
        load(str(copy), copy.parent)


@pytest.mark.parametrize("base", ["a\0b", "~nobody-of-that-name/model", "loop"])
def test_paths_that_lead_nowhere(tmp_path: Path, base: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelError, match="E-MODEL: "):
        load(base, tmp_path)


def test_what_is_computed_anew_may_be_stored(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # tied
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert sum(p.numel() for p in load(str(copy), copy.parent).model.parameters()) > 10_000
