"""Losses of knowledge distillation, as functions of two models' logits.

    targets = distill_inputs(s_BS)                                      # what is predicted, and where it counts
    loss = distillation_divergence(z_s, z_t, targets.counted, tau=2.0)          # classic distillation of logits

Each loss is a mean over the predictions that count, in nats. A prompt, padding and the beginning of a text do not
count. The teacher's logits never take a gradient. Sums are made in float32 or in the dtype of float64 logits.

Shape suffixes: B = batch, S = block length + 1, T = block length, V = vocabulary, K = kept tokens of the teacher,
N = predictions that count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edgewise.learn.text.marks import BEGINS


class DistillTargets(NamedTuple):
    """The predictions of a batch of blocks.

    Attributes:
        x_BT: the tokens that the models read, int64.
        y_BT: the tokens that follow them, int64.
        counted_BT: True where the next token is predicted, bool.
    """

    x_BT: Tensor
    y_BT: Tensor
    counted_BT: Tensor


def distill_inputs(s_BS: Tensor) -> DistillTargets:
    """Split blocks (``learn.text.blocks``) into inputs, next tokens and the mask of those that count.

    Args:
        s_BS: int64 token ids. ``~id`` stands for a token that is read and never predicted. Marks of the beginnings of
            documents are removed.
    """
    ids_BS = torch.where(s_BS < 0, ~s_BS, s_BS) & ~BEGINS
    return DistillTargets(ids_BS[:, :-1], ids_BS[:, 1:], s_BS[:, 1:] >= 0)


def distillation_divergence(z_s_BTV: Tensor, z_t_BTV: Tensor, counted_BT: Tensor, tau: float = 1.0) -> Tensor:
    """Compute the loss of classic distillation.

        L = tau^2 mean_i KL(softmax(z_t / tau) || softmax(z_s / tau))

    The factor tau^2 keeps the size of the gradient for all temperatures.

    Args:
        z_s_BTV, z_t_BTV: logits of the student and of the teacher.
        counted_BT: the predictions that count, bool.
        tau: temperature, > 0.
    Returns:
        The mean over the counted predictions, a scalar. 0 where none counts.
    Raises:
        ValueError: for logits of different shapes, and for a temperature that is not positive.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
    """
    logp_s_NV, logp_t_NV = _both(z_s_BTV, z_t_BTV, counted_BT, tau)
    return tau**2 * _mean(_kl(logp_t_NV, logp_s_NV))


def jensen_shannon_loss(
    z_s_BTV: Tensor, z_t_BTV: Tensor, counted_BT: Tensor, beta: float = 0.5, tau: float = 1.0
) -> Tensor:
    """Compute the generalized Jensen-Shannon divergence.

        M = (1 - beta) p_s + beta p_t
        L = mean_i  beta KL(p_t || M) + (1 - beta) KL(p_s || M)         0 < beta < 1
        L = mean_i  KL(p_t || p_s)                                      beta = 0
        L = mean_i  KL(p_s || p_t)                                      beta = 1

    Both ends are the limits of L / (beta (1 - beta)), because L itself is 0 there. There is no factor tau^2.

    Args:
        beta: from 0 (the student covers all that the teacher writes) to 1 (it writes only what the teacher would).
    Returns, Raises: as ``distillation_divergence``. ValueError also for another beta.
    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, equation 1, in the form of ``trl``'s
        ``GKDTrainer.generalized_jsd_loss``, whose mean it equals.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is {beta}, and lies from 0 to 1")
    logp_s_NV, logp_t_NV = _both(z_s_BTV, z_t_BTV, counted_BT, tau)
    if beta in (0.0, 1.0):
        return _mean(_kl(logp_s_NV, logp_t_NV) if beta else _kl(logp_t_NV, logp_s_NV))
    logp_m_NV = torch.logaddexp(logp_s_NV + math.log1p(-beta), logp_t_NV + math.log(beta))
    return _mean(beta * _kl(logp_t_NV, logp_m_NV) + (1 - beta) * _kl(logp_s_NV, logp_m_NV))


def next_token_loss(z_s_BTV: Tensor, y_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """Compute the negative log-likelihood of the next tokens.

        L = mean_i -log softmax(z_s)_y

    It is the loss on real text. On text that the teacher wrote it is sequence-level distillation (Kim and Rush 2016,
    arXiv:1606.07947). Returns and edge cases as ``distillation_divergence``.
    """
    logp_NV = F.log_softmax(_counted(z_s_BTV, counted_BT), -1)
    return _mean(-logp_NV.gather(-1, _counted(y_BT, counted_BT)[:, None])[:, 0])


class TopLogits(NamedTuple):
    """A teacher's most likely tokens, as they are stored or sent.

    Attributes:
        ids_BTK: the K tokens of the largest logits, int64, the likeliest first.
        logp_BTK: their log-probabilities at temperature tau.
        rest_BT: log-probability of all other tokens together. -inf for K = V.
        tau: the temperature.
    """

    ids_BTK: Tensor
    logp_BTK: Tensor
    rest_BT: Tensor
    tau: float


def top_logits(z_t_BTV: Tensor, k: int, tau: float = 1.0) -> TopLogits:
    """Keep the K largest logits of a teacher, and the mass of the others. K is at most V.

    Raises ValueError for K < 1 or a temperature that is not positive.
    """
    if k < 1 or not tau > 0:
        raise ValueError(f"k is {k} and tau {tau}, and both are positive")
    logp_BTV = F.log_softmax(_precise(z_t_BTV.detach()) / tau, -1)
    logp_BTK, ids_BTK = logp_BTV.topk(min(k, logp_BTV.shape[-1]))
    return TopLogits(ids_BTK, logp_BTK, _rest(logp_BTV, ids_BTK), tau)


def top_logits_divergence(z_s_BTV: Tensor, top: TopLogits, counted_BT: Tensor) -> Tensor:
    """Compute the loss of classic distillation from the K likeliest tokens of the teacher.

        L = tau^2 mean_i  sum_{v in K} p_t(v) log(p_t(v) / p_s(v))  +  r_t log(r_t / r_s)

    ``r`` is the mass of all tokens outside K, one class of its own. K = V gives ``distillation_divergence``.

    Returns, Raises: as ``distillation_divergence``.
    Bias: L is smaller than ``distillation_divergence`` by tau^2 r_t KL(p_t(. | rest) || p_s(. | rest)), never larger.
        The loss is zero for each student that has the teacher's K probabilities, however it shares out the rest.
    """
    ids_NK, logp_t_NK, rest_t_N = (_counted(x, counted_BT) for x in (top.ids_BTK, top.logp_BTK, top.rest_BT))
    logp_NV = F.log_softmax(_counted(z_s_BTV, counted_BT) / top.tau, -1)
    kept_N = _kl(logp_t_NK, logp_NV.gather(-1, ids_NK))
    if ids_NK.shape[-1] < logp_NV.shape[-1]:  # Otherwise nothing is left out, and 0 log 0 = 0.
        kept_N = kept_N + _kl(rest_t_N[:, None], _rest(logp_NV, ids_NK)[:, None])
    return top.tau**2 * _mean(kept_N)


def _rest(logp_BTV: Tensor, ids_BTK: Tensor) -> Tensor:
    """Return the log of the probability outside the kept tokens. -inf where nothing is left."""
    if ids_BTK.shape[-1] == logp_BTV.shape[-1]:
        return torch.full_like(logp_BTV[..., 0], -torch.inf)
    return logp_BTV.scatter(-1, ids_BTK, -torch.inf).logsumexp(-1)


def _both(z_s_BTV: Tensor, z_t_BTV: Tensor, counted_BT: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return both models' log-probabilities at temperature tau, of the counted predictions."""
    if z_s_BTV.shape != z_t_BTV.shape:
        what = f"the student's logits have shape {tuple(z_s_BTV.shape)}, the teacher's {tuple(z_t_BTV.shape)}"
        raise ValueError(what)
    if not tau > 0:
        raise ValueError(f"tau is {tau}, and a temperature is positive")
    z_s_NV, z_t_NV = _counted(z_s_BTV, counted_BT), _counted(z_t_BTV.detach(), counted_BT)
    return F.log_softmax(z_s_NV / tau, -1), F.log_softmax(z_t_NV / tau, -1)


def _counted(x: Tensor, counted_BT: Tensor) -> Tensor:
    """Return the counted rows. Others take no gradient, whatever they hold. Floats have at least 32 bits."""
    rows = x.flatten(0, 1) if bool(counted_BT.all()) else x[counted_BT]
    return _precise(rows) if rows.is_floating_point() else rows


def _precise(z: Tensor) -> Tensor:
    return z if z.dtype is torch.float64 else z.float()


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    """Compute KL(p || q) over the last axis, from finite log-probabilities."""
    return F.kl_div(logq, logp, reduction="none", log_target=True).sum(-1)


def _mean(x_N: Tensor) -> Tensor:
    """Average over the counted predictions. 0 where there are none."""
    return x_N.sum() / max(1, len(x_N))
