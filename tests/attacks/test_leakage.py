"""Token attacks succeed on a single plain update, and fail on a noised sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.core.keys import generator, root
from edgewise.learn.attacks import reconstruction
from edgewise.learn.flat import Flat
from edgewise.learn.models.load import TextLoss

pytestmark = pytest.mark.slow  # every test here loads a model


@pytest.fixture(scope="module")
def model():
    return _model()


def _model():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64)
        )  # fmt: skip


def update(model, rows: np.ndarray) -> tuple[np.ndarray, Flat]:
    """Update of one plain gradient step."""
    flat = Flat(list(model.named_parameters()))
    flat.zero_grad()
    batch = torch.from_numpy(rows)
    loss, _ = TextLoss(torch.float32)(model, (batch, batch.numel()))
    loss.backward()
    return -0.01 * flat.g_D.numpy().copy(), flat


def rows(which: int) -> np.ndarray:
    return generator(root(which)).integers(0, 400, (1, 33))


def recall(scores: np.ndarray, tokens: np.ndarray) -> float:
    return reconstruction.token_leak(scores, tokens.tolist(), np.ones(400)).recall


def test_one_plain_update_gives_its_tokens_away(model):
    x, flat = update(model, rows(1))
    tokens = rows(1)[0, :-1]
    inputs = reconstruction.first_layer_inputs(model)
    assert (
        recall(reconstruction.span_scores(x, flat.spec, reconstruction.first_layer_segment(flat.spec), inputs), tokens)
        > 0.95
    )
    assert (
        recall(reconstruction.row_scores(x, flat.spec, reconstruction.embedding_segment(flat.spec, 400)), tokens) > 0.8
    )


def test_a_noised_sum_gives_no_more_than_guessing(model):
    updates = [update(model, rows(i))[0] for i in range(1, 13)]
    _, flat = update(model, rows(1))
    total = np.sum(updates, axis=0)
    total += generator(root(99)).normal(0, np.linalg.norm(updates[0]), total.size).astype(np.float32)
    tokens, inputs = rows(1)[0, :-1], reconstruction.first_layer_inputs(model)
    guess = np.unique(tokens).size / 400
    assert (
        recall(
            reconstruction.span_scores(total, flat.spec, reconstruction.first_layer_segment(flat.spec), inputs), tokens
        )
        < guess + 0.2
    )
    assert (
        recall(reconstruction.row_scores(total, flat.spec, reconstruction.embedding_segment(flat.spec, 400)), tokens)
        < guess + 0.2
    )


def test_membership_and_exposure():
    rng = generator(root(2))
    apart = reconstruction.membership_inference(rng.normal(1, 0.1, 300), rng.normal(2, 0.1, 300))
    assert apart.auc > 0.999
    assert apart.tpr_at_1 > 0.99
    same = reconstruction.membership_inference(rng.normal(1, 1, 3000), rng.normal(1, 1, 3000))
    assert same.auc == pytest.approx(0.5, abs=0.03)
    assert reconstruction.membership_inference(np.ones(4), np.ones(4)).auc == 0.5
    alike = [reconstruction.membership_inference(rng.normal(size=12), rng.normal(size=20)) for _ in range(2000)]
    assert np.std([found.auc for found in alike]) == pytest.approx(alike[0].chance, rel=0.1)
    others = np.arange(1.0, 256.0)
    assert reconstruction.secret_exposure(0.5, others) == 8.0
    assert reconstruction.secret_exposure(300.0, others) == 0.0


def test_layouts_without_a_first_layer_have_nothing_to_attack():
    from edgewise.core.vector import Spec

    spec = Spec.of([("model.layers.0.self_attn.q_proj.lora_B.weight", (8, 4), "float32")])
    assert reconstruction.first_layer_segment(spec) is None
    assert reconstruction.embedding_segment(spec, 400) is None
