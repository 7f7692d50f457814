"""Two adapters of a matrix, of which a device's own is behind a gate."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe.recipe import from_plain

torch = pytest.importorskip("torch")


def test_a_gate_weighs_each_token_of_the_own_adapter() -> None:
    from torch import nn

    from edgewise.learn.models.gated import Gated

    torch.manual_seed(0)
    a, x_BTI = nn.Linear(4, 2, bias=False), torch.randn(3, 5, 4)
    gated = Gated(a)
    assert torch.allclose(gated(x_BTI), a(x_BTI) / 2), "at first half of it, for every token"
    u, c = torch.randn(4), 0.3
    with torch.no_grad():
        gated.gate.copy_(torch.cat([u, torch.tensor([c])]))
    wanted = torch.stack([torch.sigmoid(u @ x + c) * a(x) for x in x_BTI.flatten(0, 1)]).view(3, 5, 2)
    assert torch.allclose(gated(x_BTI), wanted, atol=1e-6)
    assert gated.weight is a.weight


def test_both_adapters_add_up_and_the_own_one_starts_at_nothing() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgewise.learn.models.adapters import make_trainable

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, max_position_embeddings=32, **sizes))
    recipe = from_plain(DUAL)
    _, flat = make_trainable(plain, recipe.trainable, bytes(32), torch.float32, "token")
    parts = own_part(recipe, flat.spec)
    assert parts is not None
    place = "model.layers.0.self_attn.q_proj."
    kinds = {name.removeprefix(place) for s in parts.own.segments if (name := s.name).startswith(place)}
    assert kinds == {"lora_A.own.inner.weight", "lora_A.own.gate", "lora_B.own.weight"}
    kinds = {name.removeprefix(place) for s in parts.shared.segments if (name := s.name).startswith(place)}
    assert kinds == {"lora_A.weight", "lora_B.weight"}
    layer = plain.model.layers[0].self_attn.q_proj
    w = layer.base_layer.weight.detach()
    x = torch.randn(2, w.shape[1])
    assert torch.allclose(layer(x), x @ w.T, atol=1e-5)
    at = {s.name.removeprefix(place): p.detach() for s, p in flat.pairs() if s.name.startswith(place)}
    for tensor in at.values():
        tensor.normal_()
    shared = at["lora_B.weight"] @ at["lora_A.weight"]
    own = at["lora_B.own.weight"] @ at["lora_A.own.inner.weight"]
    gate = torch.sigmoid(x @ at["lora_A.own.gate"][:-1] + at["lora_A.own.gate"][-1])
    wanted = x @ w.T + recipe.trainable.scale * (x @ shared.T + gate[:, None] * (x @ own.T))
    assert torch.allclose(layer(x), wanted, atol=1e-3)


DUAL = {
    "privacy": "none", "personal": {"method": "dual"},
    "trainable": {"kind": "lora", "rule": "fedit", "rank": 2, "targets": ["q_proj"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"trainable": {}}, "puts a second adapter beside"),
        ({"trainable": {"kind": "lora", "rule": "fed_sb"}}, "puts a second adapter beside"),
        ({"trainable": {"kind": "lora", "rule": "reffa"}}, "puts a second adapter beside"),
        ({"trainable": {"kind": "lora", "rule": "ffa", "ranks": {"d*": 4}}}, "puts a second adapter beside"),
        ({"personal": {"method": "fedrep", "gate": "none"}}, "gate is not read"),
        ({"personal": {"method": "dual", "blocks": 2}}, "blocks and personal.parts are not read"),
    ],
)
def test_what_does_not_go_with_a_second_adapter_is_refused(tables: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        from_plain({**DUAL, **tables})
