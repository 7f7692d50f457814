"""Stages of a cut model: forward pass and gradients are those of the whole model, for every shape and every cut."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional as F

from edgewise.core.errors import ModelError
from edgewise.learn.models.architecture import logits
from edgewise.learn.models.cut import check_cut, cut_model, cut_modules, is_head_tied, untied_head

SMALL = {**tiny_models.SMALL, "num_hidden_layers": 3}
KINDS = {
    "llama": tiny_models._of("Llama", **SMALL, tie_word_embeddings=False),
    "llama-tied": tiny_models._of("Llama", **SMALL, tie_word_embeddings=True),
    "mistral": tiny_models._of("Mistral", **SMALL, num_key_value_heads=1, sliding_window=4),
    "qwen2": tiny_models._of("Qwen2", **SMALL, num_key_value_heads=1, use_sliding_window=True, sliding_window=4,
                             max_window_layers=1),
    "gpt2": tiny_models._of("GPT2", vocab_size=300, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=0,
                            eos_token_id=0),
}  # fmt: skip
IDS = torch.randint(0, 300, (3, 12), generator=torch.Generator().manual_seed(1))
PACKED = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]).expand(3, 12)
PADDED = torch.tensor([[1] * 12, [1] * 9 + [0] * 3, [1] * 5 + [0] * 7])


def made(kind):
    torch.manual_seed(0)
    return KINDS[kind]().eval()


def loss(logits_BTV, mask_BT=None):
    kept = slice(None) if mask_BT is None else mask_BT[:, 1:].flatten() > 0
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1)[kept], IDS[:, 1:].flatten()[kept])


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def handed_over(parts, *context):
    """Train by stages that exchange plain tensors, as two machines do. Returns the loss."""
    sent = parts.device(IDS, *context)
    arrived = sent.detach().requires_grad_()
    out = parts.server(arrived, *context)
    if parts.top is None:
        found = loss(out, context[1] if len(context) > 1 else None)
        found.backward()
    else:
        back = out.detach().requires_grad_()
        found = loss(parts.top(back, *context), context[1] if len(context) > 1 else None)
        found.backward()
        out.backward(back.grad)
    sent.backward(arrived.grad)
    return found.detach()


@pytest.mark.quick(sample=6)
@pytest.mark.parametrize("context", [(), (PACKED,), (None, PADDED)], ids=["plain", "packed", "padded"])
@pytest.mark.parametrize("shape", ["U", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_whole_model_at_every_cut(kind, shape, context):
    model = made(kind)
    if shape == "head":
        untied_head(model)
    more = dict(zip(("position_ids", "attention_mask"), context, strict=False))
    expected = loss(model(input_ids=IDS, use_cache=False, **more).logits, more.get("attention_mask"))
    expected.backward()
    truth = gradients(model)
    for block in range(3):
        model.zero_grad()
        found = handed_over(cut_model(model, block, shape), *context)
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(gradients(model), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", ["U", "head"])
def test_each_parameter_is_on_one_side_and_adapters_stay_with_their_block(shape):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(made("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    parts = cut_model(adapted, 1, shape)
    here, there = parts.sides(adapted)
    assert len(here) + len(there) == len(list(adapted.named_parameters()))
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in here
    assert "model.layers.1.self_attn.q_proj.lora_A.weight" in there
    assert ("lm_head.weight" in here) == (shape == "U")
    torch.testing.assert_close(parts.whole(IDS), logits(adapted, IDS))


def test_a_tied_head_goes_to_the_server_only_as_a_tensor_of_its_own():
    model = made("llama-tied")
    with pytest.raises(ModelError, match="embedding itself") as refused:
        cut_model(model, 1, "head")
    assert refused.value.code == "E-CUT"
    before = logits(model, IDS)
    untied_head(model)
    assert not is_head_tied(model)
    torch.testing.assert_close(cut_model(model, 1, "head").whole(IDS), before)


@pytest.mark.parametrize("block", [-1, 3])
def test_a_cut_that_does_not_exist_is_refused(block):
    with pytest.raises(ModelError, match="from 0 to 2") as refused:
        cut_model(made("llama"), block, "U")
    assert refused.value.code == "E-CUT"


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_accepts_what_the_stages_compute(kind):
    model = made(kind)
    check_cut(model, cut_model(model, 1, "U"), IDS, packed=True)


def test_the_probe_refuses_stages_that_compute_something_else():
    """Granite multiplies what it is given by a constant, and every stage would do so again."""
    torch.manual_seed(0)
    model = tiny_models._of("Granite", **SMALL, num_key_value_heads=1, embedding_multiplier=3.0)().eval()
    with pytest.raises(ModelError, match="other logits") as refused:
        check_cut(model, cut_model(model, 1, "U"), IDS)
    assert refused.value.code == "E-CUT"
    with pytest.raises(ModelError) as refused:
        cut_model(tiny_models.BUILDERS["xlnet"](), 1, "U")
    assert refused.value.code == "E-CUT"


def test_another_model_is_cut_by_the_names_of_its_modules():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    parts = cut_modules(net, ["0", "1"], ["2", "3"], ["4"])
    torch.testing.assert_close(parts.whole(x), net(x))
    assert parts.sides(net) == (["0.weight", "0.bias", "4.weight", "4.bias"], ["2.weight", "2.bias"])
    for device, server, what in (["0"], ["9"], "no module"), (["0"], [], "no module"), (["0"], ["2"], "in no part"):
        with pytest.raises(ModelError, match=what):
            cut_modules(net, device, server)
