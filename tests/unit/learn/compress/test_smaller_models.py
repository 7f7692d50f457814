"""Smaller models: masks, factors, fewer heads, channels and blocks; their folders, their training, and what travels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from edgewise.core.errors import EdgewiseError, ModelError, RecipeError
from edgewise.core.keys import derive, root
from edgewise.core.training import FitRequest, LocalRule
from edgewise.learn.compress import factorize as factorizing
from edgewise.learn.compress import structured
from edgewise.learn.compress.distill import distillation_divergence
from edgewise.learn.compress.heal import HealingPlan, heal_model
from edgewise.learn.compress.measure import calibration_layer_inputs, model_perplexity
from edgewise.learn.compress.prune import magnitude_scores, mask_of_scores, prune_layers, wanda_scores
from edgewise.learn.models import compact
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.architecture import logits
from edgewise.learn.models.blocks import decoder_block_layers
from edgewise.learn.models.load import Loaded, TextLoss
from edgewise.learn.models.smaller_layers import MaskedLinear, densify_layers, layer_masks, put_layer_masks
from edgewise.learn.models.suited import check_model_suits
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection

TEXT = np.random.default_rng(3).integers(3, 299, (6, 13)).astype(np.int32)
IDS = torch.from_numpy(TEXT[:2, :-1].astype(np.int64))
FULL = TrainableSection()


def made(kind: str = "llama"):
    torch.manual_seed(0)
    return tiny_models.BUILDERS[kind]().eval()


def pruned(kind: str = "llama"):
    model = made(kind)
    prune_layers(model, wanda_scores(model, TEXT), 0.5)
    return model


def read(model):
    with torch.no_grad():
        return logits(model.eval(), IDS)


def flat_of(model, section=FULL):
    return make_trainable(model, section, derive(root(0), "model"), torch.float32)


def fitted(model, flat, steps=3):
    class Shard:
        count = size = 6

        def batches(self, steps, training, key):
            return ([(torch.from_numpy(TEXT.astype(np.int64)), 72)] for _ in range(steps))

    trainer = TorchTrainer(
        model, TextLoss(torch.float32), {"a": Shard()}, TrainingSection(optimizer="adamw"), flat=flat
    )
    return trainer.fit(FitRequest("a", 0, flat.read(), LocalRule(steps=steps, lr=0.01), bytes(32), bytes(32))).x


def test_a_mask_keeps_the_largest_scores_of_each_row_and_the_first_of_equal_ones() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 9.0]])
    assert mask_of_scores(scores, 0.5).tolist() == [[False, True, True, False], [True, False, False, True]]
    assert mask_of_scores(scores, 0.01).sum(1).tolist() == [1, 1]


def test_a_second_mask_of_a_trained_model_lies_inside_the_first_and_shortens_the_vector() -> None:
    model = made()
    prune_layers(model, magnitude_scores(model), 0.75)
    first = layer_masks(model)
    trained_model, flat = flat_of(model)
    before = flat.spec.dim
    fitted(trained_model, flat)
    released = densify_layers(trained_model)  # As a run exports it: zeros, and the server knows nothing else.
    for name in first:
        del released.get_submodule(name).mask
    scores = magnitude_scores(released)
    prune_layers(released, scores, 0.5)
    second = layer_masks(released)
    assert not any(bool((second[name] & ~first[name]).any()) for name in first)
    assert flat_of(released)[1].spec.dim < before


def test_wanda_scores_weights_by_the_norms_of_their_inputs() -> None:
    model = made()
    name = "model.layers.1.mlp.down_proj"
    read_by: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda module, inputs: read_by.append(inputs[0].reshape(-1, 24)))
    with torch.no_grad():
        logits(model, torch.from_numpy(TEXT[:, :-1].astype(np.int64)))
    hook.remove()
    torch.testing.assert_close(wanda_scores(model, TEXT)[name], layer.weight.abs() * torch.cat(read_by).norm(dim=0))


def test_masked_weights_neither_train_nor_travel() -> None:
    model = pruned()
    by_name, whole = layer_masks(model), sum(p.numel() for p in model.parameters())
    outside = sum(int((~mask).sum()) for mask in by_name.values())
    before = read(model)
    model, flat = flat_of(model)
    assert flat.spec.dim == whole - outside
    torch.testing.assert_close(read(model), before)
    x = fitted(model, flat)
    assert x.shape == (flat.spec.dim,)
    assert np.count_nonzero(x) > 0.5 * x.size
    dense = densify_layers(model)
    assert set(layer_masks(dense)) == set(by_name) == set(decoder_block_layers(dense))
    for name, mask in by_name.items():
        assert not dense.get_submodule(name).weight[~mask].any()
        assert dense.get_submodule(name).weight[mask].all()


def test_a_masked_layer_has_the_gradient_of_the_dense_one_inside_its_mask() -> None:
    layer = nn.Linear(5, 4)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    layer.weight.data[~mask] = 0.0
    layer.register_buffer("mask", mask, persistent=False)
    masked, x = MaskedLinear.of(layer), torch.randn(3, 5)
    layer(x).square().sum().backward()
    masked(x).square().sum().backward()
    torch.testing.assert_close(masked.weight.grad, layer.weight.grad[mask])
    each = torch.vmap(lambda w: torch.func.functional_call(masked, {"weight": w}, (x,)))(
        torch.stack([masked.weight] * 2)
    )
    torch.testing.assert_close(each[1], layer(x))


@pytest.mark.parametrize("how", ["mask", "factors"])
def test_a_compact_folder_is_read_back_and_has_the_bytes_it_needs(how: str, tmp_path: Path) -> None:
    model = pruned()
    if how == "factors":
        model = made()
        factorizing.factorize_model(model, 0.5, TEXT)
    size = compact.write_compact(model, tmp_path / "compact", torch.float32)
    again = compact.read_compact(tmp_path / "compact", torch.float32)
    assert torch.equal(read(again), read(model))
    assert set(layer_masks(again)) == set(layer_masks(model))
    blocks = sum(layer.weight.numel() for layer in decoder_block_layers(made()).values())
    rest = sum(p.numel() for p in made().parameters()) - blocks
    assert size < 4 * (rest + blocks * (0.5 + 1 / 32)) + 8192  # values, one bit for each weight, and the header
    assert compact.compact_layers(tmp_path / "compact").parameters == rest + blocks
    compact.write_dense_model(again, tmp_path / "dense", torch.float32)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    torch.testing.assert_close(read(plain), read(model))
    assert set(layer_masks(compact.attach_masks(plain, tmp_path / "dense"))) == set(layer_masks(model))


def test_a_damaged_compact_folder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compact.write_compact(pruned(), tmp_path, torch.float32)
    tensors = {name: x.clone() for name, x in load_file(tmp_path / compact.WEIGHTS).items()}
    name = "model.layers.0.mlp.up_proj.weight.bits"
    for change in ({name: tensors[name][:-1]}, {name: 255 - tensors[name] * 0}, {"more": tensors[name].clone()}):
        save_file({**tensors, **change}, tmp_path / compact.WEIGHTS)
        with pytest.raises(ModelError) as e:
            compact.read_compact(tmp_path, torch.float32)
        assert e.value.code == "E-MODEL"


def test_factors_have_the_smallest_error_on_what_the_layer_reads() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 16, generator=generator).double()
    x_TI = torch.randn(400, 16, generator=generator).double() * torch.logspace(0, -2, 16).double()

    def error(gram: torch.Tensor | None) -> float:
        left, right = factorizing.matrix_factors(weight, 4, gram, ridge=1e-12)
        return float((x_TI @ (weight - left @ right).T).norm())

    best = torch.linalg.svdvals(x_TI @ weight.T)[4:].norm()
    assert error(x_TI.T @ x_TI) == pytest.approx(float(best), rel=1e-6)
    assert error(None) > 1.5 * best
    left, right = factorizing.matrix_factors(weight, 12)
    torch.testing.assert_close(left @ right, weight)


def test_one_factor_trains_and_travels_like_an_adapter() -> None:
    model = made()
    ranks = factorizing.factorize_model(model, 0.25)
    before = copy.deepcopy(model.state_dict())
    model, flat = flat_of(model, TrainableSection(kind="layers", layers=["*.left.weight"]))
    assert {s.name for s in flat.spec.segments} == {f"{name}.left.weight" for name in ranks}
    assert flat.spec.dim == sum(rank * before[f"{name}.left.weight"].shape[0] for name, rank in ranks.items())
    assert np.count_nonzero(fitted(model, flat))
    for name in ranks:
        assert torch.equal(model.state_dict()[f"{name}.right.weight"], before[f"{name}.right.weight"])


def test_a_narrow_model_keeps_the_heads_and_channels_with_the_largest_activations() -> None:
    model = made()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.v_proj.weight[:8] = 0.0  # The first of two heads writes nothing,
            block.mlp.up_proj.weight[::2] = 0.0  # and neither does every second channel.
    narrow = structured.narrow_model(model, TEXT, 0.5)
    assert (narrow.config.num_attention_heads, narrow.config.num_key_value_heads, narrow.config.head_dim) == (1, 1, 8)
    assert narrow.config.intermediate_size == 12
    torch.testing.assert_close(read(narrow), read(model))


def test_heads_that_share_keys_go_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_models._of("Qwen3", **{**tiny_models.SMALL, "num_attention_heads": 4, "num_key_value_heads": 2,
                                        "head_dim": 8})().eval()  # fmt: skip
    narrow = structured.narrow_model(model, TEXT, 0.5)
    assert (narrow.config.num_attention_heads, narrow.config.num_key_value_heads) == (2, 1)
    narrow.save_pretrained(tmp_path)
    assert torch.equal(read(type(model).from_pretrained(tmp_path)), read(narrow))


def test_a_shallow_model_drops_the_block_that_matters_least() -> None:
    torch.manual_seed(0)
    model = tiny_models._of("Llama", **{**tiny_models.SMALL, "num_hidden_layers": 3})().eval()
    shallow = structured.shallow_model(model, TEXT, 0.67)
    assert shallow.config.num_hidden_layers == 2
    without = [
        model_perplexity(structured._of_blocks(model, "model.layers", kept), TEXT) for kept in ([1, 2], [0, 2], [0, 1])
    ]
    assert model_perplexity(shallow, TEXT) == pytest.approx(min(without))
    assert max(without) > min(without)
    assert [block.self_attn.layer_idx for block in shallow.model.layers] == [0, 1]


def test_healing_brings_a_masked_model_nearer_to_its_teacher_and_leaves_zeros() -> None:
    torch.manual_seed(0)
    teacher = tiny_models.WIDE["llama-wide"]().eval()
    model = copy.deepcopy(teacher)
    prune_layers(model, magnitude_scores(model), 0.5)
    counted = torch.ones_like(IDS, dtype=torch.bool)
    before = distillation_divergence(read(model), read(teacher), counted)
    heal_model(model, teacher, TEXT, HealingPlan(steps=12, batch=4, lr=3e-3, distilled=1.0))
    assert distillation_divergence(read(model), read(teacher), counted) < 0.8 * before
    for name, mask in layer_masks(model).items():
        assert not model.get_submodule(name).weight[~mask].any()


@pytest.mark.parametrize(("kind", "act"), [
    ("gpt2", lambda model: magnitude_scores(model)),
    ("mixtral", lambda model: structured.narrow_model(model, TEXT, 0.5)),
    ("llama", lambda model: factorizing.factorize_model(model, 0.999)),
])  # fmt: skip
def test_a_model_that_cannot_be_made_smaller_is_refused_by_name(kind: str, act) -> None:
    if kind == "llama":
        with pytest.raises(ModelError) as e:
            factorizing.matrix_factors(torch.ones(3, 3), 1, torch.zeros(3, 3).double())
    else:
        with pytest.raises(ModelError) as e:
            act(made(kind))
    assert e.value.code == "E-SHRINK"


def test_second_moments_are_sums_over_tokens() -> None:
    found = calibration_layer_inputs(made(), TEXT, ["model.layers.0.mlp.up_proj"], gram=True)[
        "model.layers.0.mlp.up_proj"
    ]
    assert found.gram_II is not None
    torch.testing.assert_close(found.gram_II.diagonal(), found.squares_I)


def test_a_model_without_masks_stays_as_it_is() -> None:
    model = made()
    layers = dict(model.named_modules())
    assert dict(put_layer_masks(model).named_modules()) == layers


def test_requests_without_a_way_are_refused(tmp_path: Path) -> None:
    from edgewise.apps.models.shrinking import ShrinkRequest, shrink

    for by, kept, how, steps in (
        ("prune", 1.5, "", 0), ("fold", 0.5, "", 0), ("prune", 0.5, "svd", 0), ("quantize", 0.5, "", 9),
        ("quantize", 0.2, "nf4", 0),
    ):  # fmt: skip
        with pytest.raises(EdgewiseError) as e:
            shrink(ShrinkRequest("bundled", by, kept, tmp_path / "new", how, healing=HealingPlan(steps)))
        assert e.value.code == "E-SHRINK"
        assert e.value.fix


def test_muon_is_refused_where_masked_weights_train() -> None:
    def checked(**section: object) -> None:
        asked = {
            "privacy": "none",
            "training": {"optimizer": "muon"},
            "trainable": section,
            "data": {"sequence_len": 32},
        }
        check_model_suits(Loaded(pruned(), None, "pruned", Path()), from_plain(asked))  # type: ignore[arg-type]

    with pytest.raises(RecipeError, match=r"E-COMBO: training.optimizer = \"muon\" turns whole matrices"):
        checked(kind="full")
    with pytest.raises(AttributeError):  # It goes on to look at the tokenizer, which stands for nothing here.
        checked(kind="lora")
