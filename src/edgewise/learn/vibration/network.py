"""The model of vibration: an encoder for a node, a small head to train it by, and layers for an edge server.

    model = VibrationNet(section, classes=10)
    model.server(model.encoder(x))   # [B, K], logits

Shape suffixes: B = windows, S = samples, T = tokens (S / 64), C = channels of a token, K = classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.learn.keywords.network import Layer
from edgewise.plan.recipe.vibration import VibrationSection

CHANNELS, HIDDEN, GROUPS = 16, 32, 4  # numbers of a token, channels of the small head, groups of a norm
SAMPLES = 64  # of a token


class Encoder(nn.Module):
    """Two convolutions: a window of 1,024 samples becomes 16 tokens of 16 numbers. 2,400 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, CHANNELS, 64, 16, 24)
        self.between = nn.GroupNorm(GROUPS, CHANNELS)
        self.second = nn.Conv1d(CHANNELS, CHANNELS, 5, 4, 2)
        self.norm = nn.GroupNorm(GROUPS, CHANNELS)

    def forward(self, x_BS: Tensor) -> Tensor:
        """Return the activations [B, T, C]."""
        x = torch.relu(self.between(self.first(x_BS[:, None])))
        return self.norm(self.second(x)).transpose(1, 2)


class VibrationHead(nn.Module):
    """The head by which a node trains its encoder. With ten classes it has 2,218 parameters."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.scores = nn.Conv1d(CHANNELS, HIDDEN, 3, 1, 1), nn.Linear(2 * HIDDEN, classes)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        x = torch.relu(self.conv(h_BTC.transpose(1, 2)))
        return self.scores(torch.cat([x.mean(2), x.amax(2)], 1))


class ServerLayers(nn.Module):
    """A small transformer over tokens. With the default settings and ten classes it has 69,834 parameters."""

    def __init__(self, section: VibrationSection, classes: int) -> None:
        super().__init__()
        width = section.width
        self.embed = nn.Linear(CHANNELS, width)
        self.places = nn.Parameter(0.02 * torch.randn(section.window // SAMPLES, width))
        self.layers = nn.ModuleList(Layer(width, section.heads) for _ in range(section.layers))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        x = self.embed(h_BTC) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.scores(self.norm(x).mean(1))


class VibrationNet(nn.Module):
    """All three parts. The encoder with either head or server is a whole model."""

    def __init__(self, section: VibrationSection, classes: int) -> None:
        super().__init__()
        self.encoder, self.head, self.server = Encoder(), VibrationHead(classes), ServerLayers(section, classes)

    def forward(self, x_BS: Tensor) -> Tensor:
        """Return the logits [B, K] of encoder and server."""
        return self.server(self.encoder(x_BS))
