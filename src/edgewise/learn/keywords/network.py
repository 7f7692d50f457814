"""The model that scores keywords: two convolutions over time, a small transformer, one score for each keyword.

    model = KeywordNet(bands=40, frames=74, keywords=6, section=recipe.keywords)
    scores = model(x)                # [B, keywords], logits

Shape suffixes: B = clips, F = frames, M = bands, T = tokens (F / 4), C = width, K = keywords.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.learn.keywords.arrays import KERNEL, STRIDE, halved
from edgewise.plan.recipe.keywords import KeywordsSection


class KeywordNet(nn.Module):
    """Scores of keywords in a spectrogram. With 40 bands, 74 frames and 6 keywords it has 60,534 parameters.

    Each convolution halves the number of frames. Two pre-norm transformer layers follow, then the mean over tokens and
    a linear layer. Nothing is dropped out, since devices take few steps.
    """

    def __init__(self, bands: int, frames: int, keywords: int, section: KeywordsSection) -> None:
        super().__init__()
        width, half = section.width, KERNEL // 2
        self.first = nn.Conv1d(bands, width, KERNEL, STRIDE, half)
        self.second = nn.Conv1d(width, width, KERNEL, STRIDE, half)
        tokens = halved(halved(frames))
        self.places = nn.Parameter(torch.zeros(tokens, width))
        self.layers = nn.ModuleList(Layer(width, section.heads) for _ in range(section.layers))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, keywords)

    def forward(self, x_BFM: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        x = torch.relu(self.second(torch.relu(self.first(x_BFM.transpose(1, 2)))))
        x_BTC = x.transpose(1, 2) + self.places
        for layer in self.layers:
            x_BTC = layer(x_BTC)
        return self.scores(self.norm(x_BTC).mean(1))


class Layer(nn.Module):
    """A pre-norm transformer layer with an MLP of twice the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the tokens after attention and MLP, [B, T, C]."""
        b, t, c = x_BTC.shape
        queries, keys, values = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.joined(self.before(x_BTC)).chunk(3, -1)
        )
        weights = torch.softmax(queries @ keys.transpose(2, 3) * (c // self.heads) ** -0.5, -1)
        x_BTC = x_BTC + self.out((weights @ values).transpose(1, 2).reshape(b, t, c))
        return x_BTC + self.down(torch.relu(self.up(self.between(x_BTC))))


class KeywordLoss:
    """Binary cross-entropy of each keyword's score, in nats, with a weight on the clips that are the keyword."""

    def __init__(self, positive_weight: float) -> None:
        self._weight = torch.tensor(positive_weight)

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        """Return the mean over clips and keywords, and the number of clips."""
        x_BFM, y_BK = batch
        weight = self._weight.to(x_BFM.device)
        return nn.functional.binary_cross_entropy_with_logits(model(x_BFM), y_BK, pos_weight=weight), float(len(x_BFM))
