"""Reconstruct text from an update, and infer membership from losses. A defence has to stop these attacks.

Shape suffixes: V = vocabulary, H = hidden width, O = outputs of a layer, T = tokens of a batch, R = rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.vector import Spec, Vector, unpack

Scores = NDArray[np.float64]


class TokenLeak(NamedTuple):
    """The share of a batch's vocabulary that an attack named.

    Attributes:
        recall: share of the batch's distinct tokens among an equal number of guesses.
        base: recall of guesses without any update, which are the most frequent tokens.
        tokens: number of distinct tokens in the batch.
    """

    recall: float
    base: float
    tokens: int


def first_layer_segment(spec: Spec) -> str | None:
    """Find the segment that reads the first block's normed embeddings: its query projection (or LoRA's A of it).

    Returns:
        Its name. None where the update has none.
    """
    names = [s.name for s in spec.segments if ".0." in s.name and "q_proj" in s.name and len(s.shape) == 2]
    inputs = [n for n in names if "lora_B" not in n]
    return inputs[0] if inputs else None


def embedding_segment(spec: Spec, vocabulary: int) -> str | None:
    """Find the segment with one row per token. None where the update has none."""
    return next((s.name for s in spec.segments if len(s.shape) == 2 and s.shape[0] == vocabulary), None)


def row_scores(update: Vector, spec: Spec, segment: str) -> Scores:
    """Score tokens by the move of their embedding row, relative to the median row: float64[V].

    A token in the text moves its own row through the input. A tied output layer moves every row a little.
    """
    norms = np.linalg.norm(unpack(update, spec)[segment].astype(np.float64), axis=1)
    scores: Scores = norms / max(float(np.median(norms)), 1e-300)
    return scores


def span_scores(update: Vector, spec: Spec, segment: str, inputs_VH: Tensor) -> Scores:
    """Score tokens by the share of their layer input in the row space of a weight's gradient: float64[V], 0 to 1.

    The gradient of y = x W^T is sum_t dy_t x_t^T, so its rows are combinations of the inputs x_t. While a batch has
    fewer tokens than H, the inputs of its tokens lie in the row space, and others do not. In the first block of a model
    with rotary positions an input depends on its token alone, so an attacker can try every token of the vocabulary.
    The row space is that of the singular vectors above 1e-3 of the largest, at most H - 1 of them.
    Source: Petrov et al. 2024, arXiv:2405.15586 (DAGER), section 4.
    """
    g_OH = torch.from_numpy(unpack(update, spec)[segment].astype(np.float64))
    _, s_R, v_RH = torch.linalg.svd(g_OH, full_matrices=False)
    rank = min(int((s_R > 1e-3 * s_R[0]).sum()), g_OH.shape[1] - 1) if s_R.numel() and s_R[0] > 0 else 0
    x_VH = inputs_VH.double()
    inside_V = (x_VH @ v_RH[:rank].T).square().sum(1) / x_VH.square().sum(1).clamp_min(1e-300)
    return inside_V.numpy()


def first_layer_inputs(model: nn.Module) -> Tensor:
    """Return each token's input to the first block's projections, its normed embedding: [V, H].

    Raises:
        ValueError: for a model that is not built like Llama (``model.layers[0].input_layernorm``).
    """
    layers = [m for n, m in model.named_modules() if n.endswith("layers.0.input_layernorm")]
    if not layers:
        raise ValueError("the model has no layers.0.input_layernorm")
    with torch.no_grad():
        return layers[0](model.get_input_embeddings().weight.float())  # type: ignore[operator]


def token_leak(scores: Scores, batch: Sequence[int], frequencies: NDArray[np.float64]) -> TokenLeak:
    """Compare the best-scored tokens with those of ``batch``.

    Args:
        frequencies: float64[V], frequencies of tokens in other text.
    """
    true = np.unique(np.asarray(batch, np.int64))
    guessed = np.argsort(-scores, kind="stable")[: true.size]
    usual = np.argsort(-frequencies, kind="stable")[: true.size]
    return TokenLeak(
        float(np.isin(true, guessed).mean()), float(np.isin(true, usual).mean()), int(true.size)
    )  # fmt: skip


class MembershipResult(NamedTuple):
    """The result of loss-threshold membership inference.

    Attributes:
        auc: area under the ROC curve.
        chance: standard deviation of the AUC where members and others are alike (AUC 0.5).
        tpr_at_1: true positive rate at 1 % false positives.
    """

    auc: float
    chance: float
    tpr_at_1: float


def membership_inference(members: Scores, others: Scores) -> MembershipResult:
    """Tell trained text from other text by a score. A smaller score speaks for a member.

    A score is a loss in nats per token, or its excess over the loss of an untrained model.

        chance = sqrt((m + n + 1) / (12 m n))         for m members and n others (Mann and Whitney 1947)

    Source: Watson et al. 2022, arXiv:2111.08440 (the difference); Yeom et al. 2018, arXiv:1709.01604; TPR at low FPR:
        Carlini et al. 2022, arXiv:2112.03570.
    """
    both = np.concatenate([members, others])
    ranks = np.empty(both.size)
    ranks[np.argsort(both, kind="stable")] = np.arange(1, both.size + 1)
    for value in np.unique(both):  # Ties share their mean rank.
        same = both == value
        ranks[same] = ranks[same].mean()
    wins = members.size * others.size + members.size * (members.size + 1) / 2 - ranks[: members.size].sum()
    auc = wins / (members.size * others.size)
    chance = float(np.sqrt((both.size + 1) / (12 * members.size * others.size)))
    return MembershipResult(float(auc), chance, float((members < np.quantile(others, 0.01)).mean()))


def secret_exposure(canary_loss: float, others: Scores) -> float:
    """Return the bits by which a planted secret stands out among R equally likely ones: log2(R) - log2(rank).

    The value is between 0 and log2(R).
    Source: Carlini et al. 2019, arXiv:1802.08232, section 4.2.
    """
    rank = 1 + int((others < canary_loss).sum())
    return float(np.log2(others.size + 1) - np.log2(rank))


def text_losses(model: nn.Module, rows_NS: Tensor, bfloat16: bool = False) -> Scores:
    """Return the mean loss of each row of tokens in nats per token: float64[N]. ``bfloat16``: the run's arithmetic."""
    out = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for rows in rows_NS.split(16):
            x = torch.where(rows < 0, ~rows, rows)
            logp = torch.log_softmax(model(input_ids=x[:, :-1], use_cache=False).logits.float(), -1)
            nll = -logp.gather(2, x[:, 1:, None]).squeeze(2)
            counted = rows[:, 1:] >= 0
            out.append((nll * counted).sum(1) / counted.sum(1).clamp_min(1))
    return torch.cat(out).double().numpy()


def leaks_as_json(leaks: Mapping[str, TokenLeak]) -> dict[str, dict[str, float]]:
    """Convert leaks to plain JSON types."""
    return {name: dict(found._asdict()) for name, found in leaks.items()}
