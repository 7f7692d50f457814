"""A trained head names tokens from what crosses the cut of a split model. Noise stops it, and labels need no attack."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.keys import generator, root
from edgewise.learn.attacks import inversion
from edgewise.learn.models.cut import cut_model
from edgewise.privacy.token_noise import TokenNoise

pytestmark = pytest.mark.slow  # every test here trains a head
HIDDEN, VOCABULARY = 16, 300


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_models.BUILDERS["llama-tied"]()


def rows(which, count):
    """Rows in which a few tokens are frequent, as in text. The last token of a row is read and not learnt."""
    drawn = generator(root(which)).zipf(1.3, (count, 17)) % VOCABULARY
    drawn[:, -1] = ~drawn[:, -1]
    return torch.from_numpy(drawn.astype(np.int64))


def attacked(model, kind, rounding="int8", z=0.0):
    parts = cut_model(model, 1, "U")
    device, other = (
        inversion.attacked_crossing(parts, rows(which, count))[kind] for which, count in ((1, 24), (2, 200))
    )
    longest = float(other.x_NTC.norm(dim=2).median())
    noise = TokenNoise(longest, z, HIDDEN) if z else None
    sent = inversion.noised_channel(TokenCodec(rounding, HIDDEN), noise)
    table = model.get_input_embeddings().weight
    return inversion.recover_tokens(device, other, table, root(0), sent, steps=250)


@pytest.mark.parametrize("kind", ["activations", "output_gradients"])
def test_tokens_come_back_at_the_first_cut_and_noise_hides_them(model, kind):
    plain, noised = attacked(model, kind), attacked(model, kind, z=2.0)
    assert plain.tokens == (24 * 16 if kind == "activations" else 24 * 15), "what is not learnt has no label"
    assert plain.top1 > 0.75 > 0.5 > plain.unigram
    assert noised.top1 < plain.unigram + 0.1
    assert noised.unigram == plain.unigram


def test_four_bits_hide_nothing(model):
    assert attacked(model, "activations", "int4").top1 > 0.7


def test_the_shape_with_the_head_sends_no_gradients_up(model):
    torch.manual_seed(0)
    untied = tiny_models.BUILDERS["llama"]()
    assert set(inversion.attacked_crossing(cut_model(untied, 1, "head"), rows(1, 2))) == {"activations"}


def test_an_attack_without_text_is_refused(model):
    empty = inversion.attacked_crossing(cut_model(model, 1, "U"), rows(1, 2))["activations"]
    empty = empty._replace(y_NT=torch.full_like(empty.y_NT, -1))
    sent = inversion.noised_channel(TokenCodec("int8", HIDDEN))
    with pytest.raises(ValueError, match="text"):
        inversion.recover_tokens(empty, empty, model.get_input_embeddings().weight, root(0), sent)
