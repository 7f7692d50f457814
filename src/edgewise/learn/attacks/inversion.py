"""Recover tokens from what crosses the cut of a split model, by a head trained on other text.

    vectors = attacked_crossing(parts, rows_NS)         # kind -> vectors of all tokens, and the tokens that they tell
    found = recover_tokens(vectors["activations"], other["activations"], table_VC, key, noised_channel(codec, noise))
    found.top1, found.unigram

Attacker. The server, or whoever reads what it receives. It knows the weights with which the devices begin, so it
computes the vectors of its own text, and trains a head that names the token of each vector. It knows rounding, clip and
noise too, and trains on vectors that went through them. It reads the vectors of both neighbours, because attention
carries a token to later ones.

Kinds of vectors, as the shape sends them:

    activations          tell the token that was read (both shapes)
    output_gradients     tell the next token, by softmax minus one-hot (the U shape)
    labels               are the next token (the shape "head"). Nothing has to be trained.

Source: Pasquini et al. 2021, arXiv:2012.02670 (inversion of split learning); Zhu et al. 2019, arXiv:1906.08935 (labels
in gradients of the output).

Shape suffixes: N = rows, S = block length + 1, T = block length, C = width between blocks, V = vocabulary, M = N T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.keys import Key, derive, generator
from edgewise.learn.models.cut import CutModel
from edgewise.learn.seeded import seeded
from edgewise.privacy.token_noise import TokenNoise

Channel = Callable[[NDArray[np.float32], Key], NDArray[np.float32]]
ROWS = 8  # rows of one forward pass
BATCH = 512  # vectors of one step of the head
DRAWS = 4  # independent draws of the noise on the attacker's text


class CrossingVectors(NamedTuple):
    """Vectors that cross the cut, and the tokens that they tell.

    Attributes:
        x_NTC: float32[N, T, C].
        y_NT: int64[N, T], -1 where no token is asked.
    """

    x_NTC: Tensor
    y_NT: Tensor


class TokenRecovery(NamedTuple):
    """The result of one attack.

    Attributes:
        top1: share of the device's tokens that the attacker names at its first guess.
        unigram: share of them that are the most frequent token of the attacker's text. It is the score without an
            attack.
        tokens: number of attacked tokens.
    """

    top1: float
    unigram: float
    tokens: int


def noised_channel(codec: TokenCodec, noise: TokenNoise | None = None) -> Channel:
    """Make the channel of clip and noise, where there is some, and of rounding to the nearest value."""

    def sent(x_MC: NDArray[np.float32], key: Key) -> NDArray[np.float32]:
        hidden = x_MC if noise is None else noise.hide(x_MC, key)
        return codec.decode(codec.encode(hidden), len(x_MC))

    return sent


def attacked_crossing(parts: CutModel, rows_NS: Tensor) -> dict[str, CrossingVectors]:
    """Compute the vectors that cross the cut for some text, before rounding and noise.

    Args:
        parts: the stages of a model with the weights at which a round begins.
        rows_NS: int64[N, S], token ids. ``~id`` marks a token that is read and not learnt.
    Returns:
        "activations", and with the U shape "output_gradients".
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    modes = [(stage, stage.training) for stage in (*parts.on_device(), parts.server)]
    for stage, _ in modes:
        stage.eval()
    for s_BS in rows_NS.split(ROWS):
        x_BT, y_BT = torch.where(s_BS < 0, ~s_BS, s_BS)[:, :-1], s_BS[:, 1:].clamp(min=-1)
        with torch.no_grad():
            h_BTC = parts.device(x_BT)
        found.setdefault("activations", []).append((h_BTC.float(), x_BT))
        if parts.top is not None:
            with torch.no_grad():
                out_BTC = parts.server(h_BTC)
            out_BTC.requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(
                    parts.top(out_BTC).flatten(0, 1).float(), y_BT.flatten(), ignore_index=-1, reduction="sum"
                )
                (gradient_BTC,) = torch.autograd.grad(loss, out_BTC)
            found.setdefault("output_gradients", []).append((gradient_BTC.float(), y_BT))
    for stage, mode in modes:
        stage.train(mode)
    return {
        kind: CrossingVectors(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        for kind, pairs in found.items()
    }


def recover_tokens(
    device: CrossingVectors, other: CrossingVectors, table_VC: Tensor, key: Key, sent: Channel, steps: int = 300
) -> TokenRecovery:
    """Train a head on the vectors of other text, and name the tokens of a device's vectors.

        head: logits = norm(W2 gelu(W1 v) + W3 v) A E^T + b,     v: three neighbouring vectors, E: the embedding

    The embedding in the head lets it name tokens that the attacker's text lacks.

    Args:
        table_VC: E, the public model's embedding, float32[V, C'].
        key: decides initial weights, batches and noise.
        sent: what the crossing makes of vectors, called with (float32[M, C], key).
        steps: number of steps of the head's optimizer (Adam) over batches of 512 vectors.
    Raises:
        ValueError: for text without any token.
    """
    asked = device.y_NT.flatten() >= 0
    if not bool(asked.any()) or not bool((other.y_NT >= 0).any()):
        raise ValueError("the attack needs text of a device and other text")
    with seeded(derive(key, "head")):
        scores, counts = _trained_scores(device, other, table_VC, key, sent, steps)
    y_M = device.y_NT.flatten()[asked]
    top1 = float((scores[asked].argmax(1) == y_M).float().mean())
    return TokenRecovery(top1, float((y_M == int(counts.argmax())).float().mean()), int(asked.sum()))


def _trained_scores(
    device: CrossingVectors, other: CrossingVectors, table_VC: Tensor, key: Key, sent: Channel, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the head's scores for all vectors of the device, [M, V], and the counts of tokens in other text."""
    seen = [_seen(other.x_NTC, sent, derive(key, "other", i)) for i in range(DRAWS)]
    y_M = other.y_NT.flatten()
    usable = torch.nonzero(y_M >= 0).flatten()
    counts_V = torch.bincount(y_M[usable], minlength=len(table_VC)).float()
    mean, std = seen[0].mean(0), seen[0].std(0).clamp_min(1e-12)

    def read(x_MC: Tensor) -> Tensor:
        return F.layer_norm((x_MC - mean) / std, (x_MC.shape[1],))

    head = _Head(seen[0].shape[1], table_VC, counts_V)
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = generator(derive(key, "batches"))
    for step in range(steps):
        picked = usable[torch.from_numpy(random.integers(0, len(usable), BATCH))]
        loss = F.cross_entropy(head(read(seen[step % DRAWS][picked])), y_M[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        victim = read(_seen(device.x_NTC, sent, derive(key, "device")))
        return torch.cat([head(part) for part in victim.split(BATCH)]), counts_V


class _Head(nn.Module):
    """The attacker's head."""

    def __init__(self, width: int, table_VC: Tensor, counts_V: Tensor) -> None:
        super().__init__()
        inner = table_VC.shape[1]
        self.first, self.second = nn.Linear(width, 2 * inner), nn.Linear(2 * inner, inner)
        self.direct = nn.Linear(width, inner, bias=False)
        self.map = nn.Linear(inner, inner, bias=False)
        nn.init.eye_(self.map.weight)
        self.register_buffer("table_VC", F.normalize(table_VC.detach().float(), dim=1))
        self.usual = nn.Parameter(torch.log((counts_V + 0.1) / (counts_V + 0.1).sum()))
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, v: Tensor) -> Tensor:
        """Return scores of all tokens, [B, V]."""
        inner = self.map(F.normalize(self.second(F.gelu(self.first(v))) + self.direct(v), dim=1))
        scores: Tensor = self.scale * inner @ self.table_VC.T + self.usual
        return scores


def _seen(x_NTC: Tensor, sent: Channel, key: Key) -> Tensor:
    """Return what the observer reads for each token, float32[M, 3 C]: its vector and those of both neighbours."""
    x_NTC = torch.from_numpy(sent(x_NTC.flatten(0, 1).numpy(), key)).view_as(x_NTC)
    before, after = F.pad(x_NTC, (0, 0, 1, 0))[:, :-1], F.pad(x_NTC, (0, 0, 0, 1))[:, 1:]
    return torch.cat([before, x_NTC, after], 2).flatten(0, 1)
