"""Score a model on rows: the loss of texts and answers, and the likelihood of choices.

    held, size_bytes = text_loss(model, tokens, row, 128)       # held.nll / held.tokens
    chosen, chosen_by_byte = likeliest_answer(model, tokens, row)

Shape suffixes: C = choices, T = tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.training import HeldOut
from edgewise.core.vector import Array
from edgewise.learn.evaluate import evaluate
from edgewise.learn.models.architecture import logits, sizes
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.memory import evaluated_at_once
from edgewise.learn.text.blocks import build, predictions
from edgewise.learn.text.corpus import Document
from edgewise.learn.text.evaluation_rows import EvaluationRow
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import DataSection

NOTHING = 1e-9  # A hold-out of no token.


def text_loss(model: nn.Module, tokens: Tokens, row: EvaluationRow, length: int) -> tuple[HeldOut, int]:
    """Sum the negative log-likelihood of a row's text, in blocks as in training.

    The end of the text counts as a token. A prompt, and what the user says in a chat, is read and not predicted.

    Args:
        length: tokens of a block. A token is predicted from those before it in its block.
    Returns:
        The loss, and the UTF-8 bytes of the predicted text.
    Raises:
        DataError: E-DATA-FORMAT where the chat template refuses a chat. E-USE is raised for one without a template.
    """
    if row.chat is not None and tokens.template is None:
        raise EdgewiseError(
            "E-USE", f"{row.where} is a chat, and the model has no chat template.", "take a chat model."
        )
    prompt, text = (row.prompt, row.text) if row.chat is None else row.chat
    document = Document(row.where, prompt or "", text or "")  # Of a file, where an empty prompt is none.
    columns = {"messages": "m"} if row.chat is not None else {"prompt": "p"} if prompt else {}
    section = DataSection(source="jsonl", path="-", partition="whole", sequence_len=length, holdout=NOTHING, **columns)
    made = build([document], tokens, section, cut_each=False, apart=True)
    blocks_NS = np.concatenate([made.train_NS, made.held_NS]).astype(np.int64)
    size = max(1, evaluated_at_once(sizes(model).vocabulary) // length)
    batches = (blocks_NS[at : at + size] for at in range(0, len(blocks_NS), size))
    loss = TextLoss(torch.float32)
    return evaluate(model, loss, ((torch.from_numpy(b), predictions(b)) for b in batches)), len(document.text.encode())


def likeliest_answer(model: nn.Module, tokens: Tokens, row: EvaluationRow) -> tuple[int, int]:
    """Choose the likeliest answer to a question, after the question and a space.

        argmax_c log p(c | question)            and            argmax_c log p(c | question) / bytes(c)

    Returns:
        The places of both. The first of equals is taken.
    Raises:
        EdgewiseError: E-USE for a question and choices that are longer than the model's context.
    Source: Gao et al., lm-evaluation-harness (``acc`` and ``acc_norm``, there by characters).
    """
    logp_C = answer_logp(model, tokens, row)
    by_byte = logp_C / np.array([len(c.encode()) for c in row.choices])
    return int(logp_C.argmax()), int(by_byte.argmax())


def answer_logp(model: nn.Module, tokens: Tokens, row: EvaluationRow) -> Array:
    """Return the log-likelihood of each choice after its question, in nats: float64[C]."""
    start = [] if tokens.start is None else [tokens.start]
    question, *choices = (e.tolist() for e in tokens.encode([row.prompt or "", *(f" {c}" for c in row.choices)]))
    read = start + question
    longest = len(read) + max(map(len, choices))
    context = sizes(model).context
    if context is not None and longest > context + 1:
        what = f"{row.where}: question and choice have {longest} tokens. The model reads at most {context}."
        raise EdgewiseError("E-USE", what, "shorten the question.")
    if not read:
        raise DataError("E-DATA-FORMAT", f"{row.where}: the question has no token.", "write a question.")
    ids_CT = torch.zeros(len(choices), longest, dtype=torch.int64)  # Padding after a text changes nothing before it.
    for i, ids in enumerate(choices):
        ids_CT[i, : len(read) + len(ids)] = torch.tensor(read + ids)
    model.eval()
    with torch.no_grad():
        logp_CTV = torch.log_softmax(logits(model, ids_CT[:, :-1]).double(), -1)
    at_CT = logp_CTV.gather(2, ids_CT[:, 1:, None])[..., 0]
    first = len(read) - 1
    return np.array([float(at_CT[i, first : first + len(ids)].sum()) for i, ids in enumerate(choices)])
