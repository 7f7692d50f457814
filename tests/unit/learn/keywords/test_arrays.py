"""Scores, losses and gradients in numpy, against those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.core.keys import root
from edgewise.learn.flat import Flat
from edgewise.learn.keywords.arrays import layout, loss_gradient, scored, untrained, views
from edgewise.learn.keywords.network import KeywordLoss, KeywordNet
from edgewise.plan.recipe.keywords import KeywordsSection


@pytest.mark.parametrize(("bands", "frames", "width", "heads", "layers"), [(40, 74, 48, 4, 2), (7, 9, 9, 3, 1)])
def test_scores_and_gradients_are_those_of_torch(bands: int, frames: int, width: int, heads: int, layers: int) -> None:
    torch.manual_seed(0)
    section = KeywordsSection(width=width, heads=heads, layers=layers)
    model = KeywordNet(bands, frames, 5, section)
    with torch.no_grad():  # so that gains, biases and places are no special values
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    flat = Flat(list(model.named_parameters()))
    assert layout(bands, frames, 5, section) == flat.spec
    x, y = torch.randn(6, frames, bands), (torch.rand(6, 5) < 0.4).float()
    flat.zero_grad()
    loss, _ = KeywordLoss(3.0)(model, (x, y))
    loss.backward()
    scores, pullback = scored(views(flat.read(), flat.spec), x.numpy(), heads)
    np.testing.assert_allclose(scores, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    measured, d_scores = loss_gradient(scores, y.numpy(), 3.0)
    assert measured == pytest.approx(loss.item(), rel=1e-5)
    gradients, wanted = pullback(d_scores), views(flat.g_D.numpy(), flat.spec)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=2e-3, atol=2e-6, err_msg=name)
        assert gradients[name].dtype == np.float32, name


def test_an_untrained_model_has_gains_of_one_and_small_weights() -> None:
    spec = layout(40, 74, 6, KeywordsSection())
    drawn = views(untrained(spec, root(1)), spec)
    assert (drawn["norm.weight"] == 1.0).all()
    assert not drawn["norm.bias"].any()
    assert not drawn["places"].any()
    for name, inputs in (("first.weight", 200), ("first.bias", 200), ("layers.1.down.bias", 96), ("scores.weight", 48)):
        assert 0.9 * inputs**-0.5 < np.abs(drawn[name]).max() <= inputs**-0.5
    one, again, other = (untrained(spec, root(seed)).tobytes() for seed in (1, 1, 2))
    assert one == again != other
