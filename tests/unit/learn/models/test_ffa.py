"""FFA-LoRA, ReFFA and RoLoRA: which factors move, and that the others stay to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.codecs.project.products import product_matrices as adapted_matrices
from edgewise.codecs.select.segments import factor_groups, factors
from edgewise.core.errors import CompositionError, ModelError, RecipeError
from edgewise.core.factors import columns, fold
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.vector import Spec
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.between import take_out_between
from edgewise.learn.models.fingerprint import frozen_digest
from edgewise.learn.train import fit
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain, parse
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection


def model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, head_dim=4, max_position_embeddings=32)
        )  # fmt: skip


def adapted(rule: str, key: int = 0, rank: int = 4):
    return make_trainable(
        model(), TrainableSection(kind="lora", rule=rule, rank=rank, alpha=8.0), root(key), torch.float32
    )


def test_modules_train_whole_beside_adapters_and_begin_as_they_are():
    from edgewise.learn.models.adapters import without_adapter

    section = TrainableSection(kind="lora", rule="ffa", rank=4, modules_to_save=["norm", "lm_head"])
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model()(input_ids=ids).logits
    wrapped, flat = make_trainable(model(), section, root(0), torch.float32)
    whole = {s.name: p for s, p in flat.pairs() if "lora_" not in s.name}
    assert set(whole) == {"model.norm.modules_to_save.weight", "lm_head.modules_to_save.weight"}
    loss = wrapped(input_ids=ids, labels=ids)
    torch.testing.assert_close(loss.logits, before)
    loss.loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in whole.values())
    assert set(without_adapter(wrapped)) == {"model.embed_tokens.weight"}, (
        "the weights that it replaces are not counted"
    )


def test_magnitudes_are_one_more_segment_and_begin_at_the_lengths_of_rows():
    section = TrainableSection(kind="lora", rule="ffa", rank=4, magnitudes=True)
    wrapped, flat = make_trainable(model(), section, root(0), torch.float32)
    rows = {s.name: p for s, p in flat.pairs() if "magnitude" in s.name}
    assert len(rows) == 7
    weights = dict(model().named_parameters())
    for name, p in rows.items():
        whole = weights[name.replace("lora_magnitude_vector.", "")]
        torch.testing.assert_close(p.detach(), whole.detach().norm(dim=1))
    ids = torch.arange(8)[None]
    out = wrapped(input_ids=ids, labels=ids)
    torch.testing.assert_close(out.logits, model()(input_ids=ids).logits)
    out.loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in rows.values())
    with pytest.raises(RecipeError, match="magnitudes"):
        from_plain({"privacy": "none", "trainable": {"kind": "lora", "rule": "fed_sb", "magnitudes": True}})


@pytest.mark.parametrize(
    ("modules", "says"), [("lm_head", "shares its weights"), ("mlp", "matches nothing"), ("norms", "did you mean")]
)
def test_a_module_that_cannot_train_whole_is_named(modules, says):
    tied = model()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    section = TrainableSection(kind="lora", rule="fedit", modules_to_save=[modules])
    with pytest.raises(ModelError, match="modules_to_save") as e:
        make_trainable(tied, section, root(0), torch.float32)
    assert (e.value.code, says in f"{e.value.what} {e.value.fix}") == ("E-TARGETS", True)


@pytest.mark.parametrize("more", [{"rule": "rolora"}, {"rule": "flora"}, {"kind": "full", "rule": "auto"}])
def test_whole_modules_are_refused_where_rounds_carry_factors_alone(more):
    plain = {"kind": "lora", "modules_to_save": ["norm"], **more}
    with pytest.raises(RecipeError, match="modules_to_save") as e:
        from_plain({"privacy": "none", "trainable": plain})
    assert e.value.code == "E-COMBO"


def a_of(wrapped: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in wrapped.named_parameters() if "lora_A" in n}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 12])  # also wider than the layer: o_proj has 8 inputs
def test_a_is_orthonormal_fixed_and_the_same_for_all(rank):
    wrapped, flat = adapted("ffa", rank=rank)
    assert all("lora_B" in s.name for s in flat.spec.segments)
    first, second, other = a_of(wrapped), a_of(adapted("ffa", rank=rank)[0]), a_of(adapted("ffa", 1, rank)[0])
    assert first
    for name, a in first.items():
        short = a if a.shape[0] <= a.shape[1] else a.T
        np.testing.assert_allclose(short @ short.T, np.eye(short.shape[0]), atol=1e-5)
        np.testing.assert_array_equal(a, second[name])
        assert not np.array_equal(a, other[name])
    x = torch.arange(10)[None]
    np.testing.assert_allclose(  # B begins at zero: the model is the base
        wrapped(input_ids=x).logits.detach().numpy(), model()(input_ids=x).logits.detach().numpy(), atol=1e-5
    )
    flat.write(np.full(flat.spec.dim, 0.1, np.float32))
    for name, a in a_of(wrapped).items():
        np.testing.assert_array_equal(a, first[name])


@pytest.mark.slow
def test_rolora_takes_turns():
    _, flat = adapted("rolora")
    b, a = factor_groups(flat.spec)
    assert {s.name for s in (*a, *b)} == {s.name for s in flat.spec.segments}
    text = 'privacy = "none"\n[trainable]\nkind = "lora"\nrule = "rolora"\nrank = 4\n[round]\nrounds = 4\n'
    plan = compile(parse(text), flat.spec, 3, BUILT_IN)
    for round in range(4):
        names = set(plan.rule(round).segments)
        assert names == {s.name for s in (b, a)[round % 2]}
        assert {s.name for s in plan.frozen(round)} == {s.name for s in (a, b)[round % 2]}
        assert plan.at(round).encoded.dim == sum(s.size for s in (b, a)[round % 2])


def test_factors_keep_one_and_decode_zeros_for_the_other():
    _, flat = adapted("rolora")
    x = np.arange(1, flat.spec.dim + 1, dtype=np.float32)
    space, turn = Space(flat.spec.dim, Quorum(1, 2)), Turn(0, root(0))
    parts = []
    for phase in (0, 1):
        stage = factors(flat.spec, phase)
        sent, _ = stage.encode(Payload(x, np.zeros(0)), Memory(), space, turn)
        parts.append(stage.decode(sent, space, turn).body)
    np.testing.assert_array_equal(parts[0] + parts[1], x)
    assert not (parts[0] * parts[1]).any()


def test_factors_need_factors():
    with pytest.raises(CompositionError) as caught:
        factors(Spec.of([("w", (4,), "float32")]))
    assert caught.value.code == "E-SEGMENT"


def test_a_device_of_lower_rank_trains_its_columns_only():
    wrapped, flat = adapted("ffa")
    ids = torch.arange(10)[None]

    def loss(m: nn.Module, batch: torch.Tensor):
        return m(input_ids=batch, labels=batch).loss, 9

    training = TrainingSection(lr=0.1, weight_decay=0.1)
    start = np.full(flat.spec.dim, 0.1, np.float32)
    rule = LocalRule(steps=2, lr=0.1)
    x = fit(wrapped, loss, [[ids], [ids]], flat, start, rule, training, root(0), rank=3).x
    np.testing.assert_array_equal(x != 0, columns(flat.spec) < 3)


REFFA = 'privacy = "none"\n[trainable]\nkind = "lora"\nrule = "reffa"\nrank = 4\nfolds = 3\n[round]\nrounds = 7\n'


def test_reffa_trains_one_adapter_after_another():
    recipe = parse(REFFA)
    wrapped, flat = make_trainable(model(), recipe.trainable, root(0), torch.float32)
    plan = compile(recipe, flat.spec, 3, BUILT_IN)
    assert [plan.phase(r) for r in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert [plan.turns.first(p) for p in range(3)] == [0, 3, 5]
    for round in range(7):
        assert {fold(name) for name in plan.rule(round).segments} == {plan.phase(round)}
        assert plan.at(round).encoded.dim == flat.spec.dim // 3
        assert len(plan.frozen(round)) == 2 * len(plan.rule(round).segments)
    starts = [a for name, a in a_of(wrapped).items() if "q_proj" in name]
    assert len(starts) == 3
    assert not np.array_equal(starts[0], starts[1])


def test_frozen_adapters_are_the_same_as_folded_weights():
    """Training the second adapter beside a frozen first one equals training one adapter on a base with it folded in."""
    recipe = parse(REFFA)
    wrapped, flat = make_trainable(model(), recipe.trainable, root(0), torch.float32)
    rng, x = np.random.default_rng(1), np.zeros(flat.spec.dim, np.float32)
    for s in flat.spec.segments:
        if fold(s.name) < 2:
            x[s.start : s.stop] = rng.normal(0, 0.1, s.size)
    flat.write(x)
    ids = torch.arange(10)[None]
    wanted = wrapped(input_ids=ids).logits.detach().numpy()
    plain = model()
    for s in flat.spec.segments:
        if fold(s.name) < 2:
            word = "default" if not fold(s.name) else f"fold{fold(s.name)}"
            name = s.name.split(".lora_B")[0]
            a = a_of(wrapped)[f"base_model.model.{name}.lora_A.{word}.weight"]
            b = x[s.start : s.stop].reshape(s.shape)
            plain.get_parameter(f"{name}.weight").data += torch.from_numpy(16 / 4 * b @ a)
    np.testing.assert_allclose(plain(input_ids=ids).logits.detach().numpy(), wanted, atol=1e-5)


def test_a_rank_above_every_matrix_is_refused():
    with pytest.raises(ModelError, match=r"rank = 17 is above .* 16 at most"):
        adapted("fedit", rank=17)


@pytest.mark.parametrize(
    ("section", "rounds", "words"),
    [
        ({"rule": "reffa", "folds": 8}, 4, "need a round each, and round.rounds = 4"),
        ({"rule": "ffa", "folds": 8}, 20, "has one adapter"),
    ],
)
def test_folds_that_cannot_be(section, rounds, words):
    with pytest.raises(RecipeError, match=words):
        from_plain({"privacy": "none", "trainable": {"kind": "lora", **section}, "round": {"rounds": rounds}})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrices_of_fedex_are_part_of_the_model_and_never_train(dtype):
    section = TrainableSection(kind="lora", rule="fedex", rank=4)
    wrapped, flat = make_trainable(model(), section, root(0), dtype)
    bases = [s for s in flat.spec.segments if s.name.endswith(".base_layer.weight")]
    assert len(bases) * 3 == len(flat.spec.segments)
    assert len(adapted_matrices(flat.spec)) == len(bases)
    plain, start = model(), flat.read()
    for s in bases:
        weight = plain.get_parameter(s.name.replace(".base_layer", "")).detach().numpy()
        np.testing.assert_array_equal(start[s.start : s.stop].reshape(s.shape), weight)
    ids = torch.arange(10)[None]

    def loss(m: nn.Module, batch: torch.Tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return m(input_ids=batch, labels=batch).loss, 9

    for optimizer in ("adamw", "muon", "sgd"):
        training = TrainingSection(lr=0.1, weight_decay=0.1, optimizer=optimizer)
        x = fit(wrapped, loss, [[ids]], flat, start, LocalRule(steps=1, lr=0.1), training, root(0)).x
        moved = {s.name for s in flat.spec.segments if x[s.start : s.stop].any()}
        assert moved
        assert not moved & {s.name for s in bases}
    before = loss(wrapped, ids)[0].item()
    flat.write(start + np.float32(0.05))
    assert loss(wrapped, ids)[0].item() != before, "a new base is computed with"


def test_the_mean_of_products_needs_matrices_of_their_own():
    tied = TrainableSection(kind="lora", rule="fedex", rank=4, targets=["embed_tokens"])
    with pytest.raises(ModelError, match="is of the kind Embedding, another layer"):
        make_trainable(model(), tied, root(0), torch.float32)


def test_a_gguf_file_holds_the_adapters_of_all_folds(tmp_path):
    gguf = pytest.importorskip("gguf")
    assert gguf
    from edgewise.learn.models.gguf import files

    wrapped, flat = make_trainable(model(), parse(REFFA).trainable, root(0), torch.float32)
    flat.write(np.random.default_rng(0).normal(0, 0.1, flat.spec.dim).astype(np.float32))
    files.write_adapter(wrapped, tmp_path / "a.gguf", "float32", {})
    found = files.read(tmp_path / "a.gguf")
    layer = wrapped.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    wanted = sum(layer.get_delta_weight(name).detach().numpy() for name in layer.lora_A)
    owner = next(name for name in found if "ffn_up" in name).rsplit(".", 1)[0]
    product = found[f"{owner}.lora_b"] @ found[f"{owner}.lora_a"]
    np.testing.assert_allclose(16 / 4 * product, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fed_sb_trains_a_small_matrix_between_fixed_factors(dtype):
    section = TrainableSection(kind="lora", rule="fed_sb", rank=4, alpha=8.0)
    wrapped, flat = make_trainable(model(), section, root(0), dtype)
    assert {s.shape for s in flat.spec.segments} == {(4, 4)}
    ids = torch.arange(10)[None]
    if dtype is torch.float32:  # R = 0: the model is the base
        wanted = model()(input_ids=ids).logits.detach().numpy()
        np.testing.assert_allclose(wrapped(input_ids=ids).logits.detach().numpy(), wanted, atol=1e-5)
    layer = wrapped.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    for r in (layer.lora_A["default"].inner.weight, layer.lora_B["default"].weight.T):
        np.testing.assert_allclose((r @ r.T).detach().numpy(), np.eye(4), atol=1e-5)
    updates = [np.random.default_rng(i).normal(0, 0.1, flat.spec.dim).astype(np.float32) for i in range(3)]
    products = []
    for x in (*updates, np.mean(updates, axis=0)):
        flat.write(x)
        products.append(layer.get_delta_weight("default").detach().numpy())
    np.testing.assert_allclose(products[3], np.mean(products[:3], axis=0), atol=1e-5)
    again = make_trainable(model(), section, root(0), dtype)[0]
    assert frozen_digest(wrapped) == frozen_digest(again)


def test_fed_sb_is_exported_as_a_plain_adapter(tmp_path):
    from peft import PeftModel

    wrapped, flat = make_trainable(
        model(), TrainableSection(kind="lora", rule="fed_sb", rank=4), root(0), torch.float32
    )
    flat.write(np.random.default_rng(0).normal(0, 0.3, flat.spec.dim).astype(np.float32))
    ids = torch.arange(10)[None]
    wanted = wrapped(input_ids=ids).logits.detach().numpy()
    take_out_between(wrapped)
    wrapped.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model(), tmp_path)
    np.testing.assert_allclose(loaded(input_ids=ids).logits.detach().numpy(), wanted, atol=1e-5)


def test_fed_sb_needs_layers_that_multiply():
    with pytest.raises(ModelError, match="looks rows up instead"):
        make_trainable(
            model(), TrainableSection(kind="lora", rule="fed_sb", targets=["embed_tokens"]), root(0), torch.float32
        )
