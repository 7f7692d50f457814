"""The loss of a retriever, and the vectors that it trains.

    loss = PairLoss("tokens", 0.05, torch.float32)
    mean, n = loss(model, (s_BS, 0))

Shape suffixes: B = pairs of a batch, S = tokens of a row, T = tokens of a text, H = width of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.learn.contrast import head_input
from edgewise.learn.models.architecture import embeddings, logits
from edgewise.learn.models.load import TextLoss


def represented(model: nn.Module, ids_BT: Tensor, counts_BT: Tensor, pool: str) -> Tensor:
    """Compute the vector of each text: float32[B, H], of length 1.

        v = m / |m|,    m = mean over the counted t of h_t

    h_t is the embedding of token t (``pool = "tokens"``), or the input of the model's output head there
    (``"states"``).

    Args:
        ids_BT: tokens of each text, which begin at 0.
        counts_BT: bool, True for the text's tokens. Others are padding behind them.
    Edge cases: a text without a token has the zero vector.
    """
    if pool == "tokens":
        h_BTH = embeddings(model)(ids_BT)
    else:
        with head_input(model) as seen:
            logits(model, ids_BT)
        h_BTH = seen[-1]
    counts_BT1 = counts_BT[:, :, None].float()
    mean_BH = (h_BTH.float() * counts_BT1).sum(1) / counts_BT1.sum(1).clamp(min=1)
    return F.normalize(mean_BH, dim=1)


class PairLoss(TextLoss):
    """InfoNCE over the pairs of a batch: the other passages are what a question is told apart from.

        L = mean over i of -log(exp(q_i . p_i / tau) / sum over j of exp(q_i . p_j / tau))

    A passage that equals the right one, token by token, is left out of the sum. A batch of one pair has loss 0.

    Args:
        pool: of ``represented``. temperature: tau. autocast: dtype of the model's arithmetic.
    Source: van den Oord et al. 2018, arXiv:1807.03748, equation 4, with in-batch negatives.
    """

    def __init__(self, pool: str, temperature: float, autocast: torch.dtype) -> None:
        super().__init__(autocast)
        self._pool, self._temperature = pool, temperature

    def __call__(self, model: nn.Module, batch: tuple[Tensor, int]) -> tuple[Tensor, float]:
        """Return the mean loss in nats over a batch's pairs, and their number.

        Args:
            batch: (s_BS, unused), rows of ``learn.retrieve.pairs``.
        """
        s_BS = batch[0]
        passage_BS = s_BS >= 0
        question_BS = passage_BS.cumsum(1) == 0
        q_BH = self._vectors(model, s_BS, question_BS)
        p_BH = self._vectors(model, s_BS, passage_BS)
        scores_BB = q_BH @ p_BH.T / self._temperature
        own_BB = torch.eye(len(s_BS), dtype=torch.bool, device=s_BS.device)
        scores_BB = scores_BB.masked_fill(_same_passage(s_BS) & ~own_BB, -torch.inf)
        return F.cross_entropy(scores_BB, torch.arange(len(s_BS), device=s_BS.device)), float(len(s_BS))

    def _vectors(self, model: nn.Module, s_BS: Tensor, counts_BS: Tensor) -> Tensor:
        """Embed one part of each row. It is moved to the row's start, so that positions begin there."""
        order_BS = counts_BS.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        longest = max(1, int(counts_BS.sum(1).max()))
        ids_BS = torch.where(s_BS < 0, ~s_BS, s_BS)
        ids_BT, counts_BT = (x.gather(1, order_BS)[:, :longest] for x in (ids_BS, counts_BS))
        with self.arithmetic(s_BS.device.type):
            return represented(model, ids_BT, counts_BT, self._pool)


def _same_passage(s_BS: Tensor) -> Tensor:
    """Tell which rows have the same passage: bool[B, B]. Passages may begin at different places."""
    passage_BS = s_BS >= 0
    order_BS = passage_BS.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    text_BS = torch.where(passage_BS, s_BS, -1).gather(1, order_BS)
    return (text_BS[:, None] == text_BS[None]).all(2)
