"""Inversion part of an audit: tokens recovered from what crosses the cut of a split model.

The attack is ``learn.attacks.inversion``. The attacked text is that of the first device. The attacker trains on text of
other devices, which stands for public text of the same kind. All vectors are those of the model at which the first
round begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.wire.tokens import Rounding, TokenCodec
from edgewise.core.keys import derive, root
from edgewise.learn.attacks import inversion
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import cut_model
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.trainer import TextTrainer
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_noise

ATTACKED, OTHERS, STEPS = 1 << 11, 1 << 14, 300  # tokens of the device, tokens of others, steps of the attacker's head
FEWER = 4  # A quick audit divides the attacker's text and steps by it.
KINDS = {"activations": "the token that is read", "output_gradients": "the next token", "labels": "the next token"}
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Attacked:
    """One attack on what crosses a cut.

    Attributes:
        kind: "activations", "output_gradients" or "labels". tells: the token that each vector tells.
        cut: number of blocks on the device. rounding: format of the vectors.
        seen: True where the holder of the rest sees this under the recipe.
        top1, unigram, tokens: as ``inversion.TokenRecovery``. Labels are given, so their top1 is 1.
    """

    kind: str
    tells: str
    cut: int
    rounding: str
    seen: bool
    top1: float
    unigram: float
    tokens: int


def audit_crossings(
    recipe: Recipe, trainer: TextTrainer, devices: list[str], quick: bool, step: Step
) -> list[dict[str, Any]]:
    """Attack the crossings of a recipe with ``[split]``, and of other cuts and formats. Empty for a whole model.

    Args:
        devices: those with text. The first is attacked.
        quick: attack the recipe's own cut and formats only, with less text.
    Raises:
        ModelError: E-CUT as ``learn.models.cut.cut_model``.
    """
    split = recipe.split
    if not split.used:
        return []
    fewer = FEWER if quick else 1
    length = trainer.text(devices[0]).blocks.train_NS.shape[1] - 1
    rows_NS = _rows(trainer, devices[:1], ATTACKED // fewer // length + 1)
    other_NS = _rows(trainer, devices[1:], OTHERS // fewer // length + 1)
    found = []
    cases = [(cut_, sent) for cut_, sent in _cases(recipe, trainer) if not quick or (cut_, sent) == _own(recipe)]
    for i, (block, (activations, gradients)) in enumerate(cases):
        step("inverting what crosses the cut", i, len(cases))
        parts = cut_model(trainer.model, block, split.shape)
        mine, others = (inversion.attacked_crossing(parts, rows) for rows in (rows_NS, other_NS))
        noises = split_noise(recipe, mine["activations"].x_NTC.shape[2])
        for kind, vectors in mine.items():
            first = kind == "activations"
            rounding, hidden = activations if first else gradients, vectors.x_NTC.shape[2]
            noise = None if noises is None else noises[0 if first else 1]
            key = derive(root(3), "inversion", kind, block, rounding)
            table = embeddings(trainer.model).weight
            recovery = inversion.recover_tokens(
                vectors,
                others[kind],
                table,
                key,
                inversion.noised_channel(TokenCodec(rounding, hidden), noise),
                STEPS // fewer,
            )
            seen = (block, (activations, gradients)) == _own(recipe)
            found.append(Attacked(kind, KINDS[kind], block, rounding, seen, *recovery))
        if split.shows_labels:
            tokens = int((mine["activations"].y_NT >= 0).sum())
            given = Attacked(
                "labels", KINDS["labels"], block, "given", block == split.cut, 1.0, found[-1].unigram, tokens
            )
            found.append(given)
    return [asdict(one) for one in found]


Sent = tuple[Rounding, Rounding]  # formats of activations and of gradients


def _own(recipe: Recipe) -> tuple[int, Sent]:
    return recipe.split.cut, (recipe.split.activations, recipe.split.gradients)


def _cases(recipe: Recipe, trainer: TextTrainer) -> Iterator[tuple[int, Sent]]:
    """Iterate over cuts with the recipe's formats, and over formats at the recipe's cut."""
    split = recipe.split
    own = (split.activations, split.gradients)
    for block in range(1, text_config(trainer.model.config).num_hidden_layers):
        yield block, own
    formats: tuple[Rounding, ...] = ("float32", "int8", "int4")
    yield from ((split.cut, (one, one)) for one in formats if (one, one) != own)


def _rows(trainer: TextTrainer, devices: list[str], count: int) -> Tensor:
    """Return the first rows of some devices' text, int64[<= count, S], equally many of each."""
    each = -(-count // len(devices))
    rows = [unmarked(trainer.text(device).blocks.train_NS[:each]) for device in devices]
    return torch.from_numpy(np.concatenate(rows)[:count].astype(np.int64))
