"""Scores, losses and gradients in numpy, against those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.learn.flat import Flat
from edgewise.learn.keywords.arrays import loss_gradient, scored, views
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
