"""Embed texts by the mean of a language model's token embeddings or last hidden states.

    embed = Embedder(used.model, used.tokens, used.pool)
    vectors_NH = embed(["A pump.", "A valve."])

Shape suffixes: N = texts, B = texts of a batch, T = tokens, H = width of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Array
from edgewise.learn.contrast import lacks_representation
from edgewise.learn.models.architecture import sizes
from edgewise.learn.models.fingerprint import whole_digest
from edgewise.learn.retrieve.loss import represented
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.retriever import Pool

LONGEST = 256  # Tokens of a text that are read.
BATCH = 16


class Embedder:
    """Turns texts into vectors of length 1.

    They are those of ``learn.retrieve.loss.represented``. A text without a token has the zero vector. At most the first
    ``LONGEST`` tokens of a text count, or the model's context where that is shorter.

    Args:
        model: a causal language model of transformers, in float32.
        tokens: its tokenizer.
        pool: ``"states"`` or ``"tokens"``, as in ``[retriever]`` of a recipe.
    Raises:
        EdgewiseError: E-USE for a model without an output head.
    """

    def __init__(self, model: nn.Module, tokens: Tokens, pool: Pool = "states") -> None:
        self.pool = pool
        if reason := lacks_representation(model, None):
            raise EdgewiseError("E-USE", f"texts cannot be embedded: {reason}.", "take a causal language model.")
        self._model, self._tokens = model, tokens
        self._longest = min(LONGEST, sizes(model).context or LONGEST)
        model.eval()

    @property
    def width(self) -> int:
        """Number of coordinates of a vector."""
        return int(self._model.get_output_embeddings().weight.shape[1])  # type: ignore[operator,union-attr]

    def digest(self) -> str:
        """Return the SHA-256 of what decides the vectors: weights, tokenizer, pooling, and how much is read."""
        made_of = f"{whole_digest(self._model)} {self._tokens.digest} {self._longest} {self.pool}"
        return hashlib.sha256(made_of.encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> Array:
        """Embed texts: float32[N, H]."""
        vectors_NH = np.zeros((len(texts), self.width), np.float32)
        ids = [row[: self._longest] for row in self._tokens.encode(list(texts))]
        order = sorted((i for i in range(len(ids)) if len(ids[i])), key=lambda i: len(ids[i]))
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            vectors_NH[chosen] = self._embed([ids[i] for i in chosen])
        return vectors_NH

    @torch.no_grad()
    def _embed(self, rows: list[Any]) -> Array:
        ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)  # Padding changes nothing before it.
        counts_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids_BT[i, : len(row)] = torch.from_numpy(np.asarray(row, np.int64))
            counts_BT[i, : len(row)] = True
        vectors_BH: Array = represented(self._model, ids_BT, counts_BT, self.pool).numpy()
        return vectors_BH
