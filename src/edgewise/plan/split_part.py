"""The two parts of a model that is split between devices and a server, by the names of its parameters.

parts = split_part(recipe, spec)        # None where the model is whole
parts.shared                            # the device's part, which is the run's vector
parts.own                               # the rest, which the server or a gateway has
"""

from __future__ import annotations

import re

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import ModelError
from edgewise.core.parts import ModelParts
from edgewise.core.vector import Spec
from edgewise.plan.recipe.recipe import Recipe

_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")  # the number of a block in "model.layers.3.mlp.up_proj.weight"
REST = "rest"  # of ``Checkpoint.memory``: the part of a split model that is not the run's vector
PART = "part"  # name of its array


def split_part(recipe: Recipe, spec: Spec) -> ModelParts | None:
    """Divide a layout behind ``split.cut`` blocks. None where the model is whole.

    The device has the first blocks and what is before them in the layout, and with ``shape = "U"`` what follows the
    last block. The trainer compares the names with those of the stages (``learn.split_trainer``).

    Args:
        spec: the layout of all trained parameters.
    Raises:
        ModelError: E-CUT where no trained parameter is on the device, or where the rest is trained and has none.
    """
    split = recipe.split
    if not split.used:
        return None
    names = [s.name for s in spec.segments]
    numbers = {name: int(found[1]) for name in names if (found := _BLOCK.search(name))}
    end = max((i for i, name in enumerate(names) if name in numbers), default=-1)
    behind = [name for i, name in enumerate(names) if name not in numbers and i > end]
    rest = [name for name in names if numbers.get(name, 0) >= split.cut]
    rest += behind if split.shape == "head" else []
    parts = ModelParts(spec, rest)
    if not parts.shared.dim:
        what = f"split.cut = {split.cut} leaves no trained parameter on the device, and nothing would travel."
        raise ModelError("E-CUT", what, "train parameters of the first blocks too, or take a later cut.")
    if split.trains_rest and not parts.own.dim:
        last = max(numbers.values(), default=0)
        what = (
            f"split.cut = {split.cut} leaves nothing to train behind the cut: the last trained block has number {last}."
        )
        raise ModelError("E-CUT", what, f'take a cut from 1 to {last}, or split.server_parts = "frozen".')
    return parts


def token_bytes(recipe: Recipe, hidden: int, vocabulary: int) -> dict[str, float]:
    """Compute the bytes that cross the cut for each token of each pass, without headers of messages.

    Args:
        hidden: C, numbers per token between blocks.
        vocabulary: V, for labels that go up with ``shape = "head"``.
    Returns:
        ``up`` and ``down``. U: activations and output gradients up, outputs and gradients down. head: activations and
        labels up, gradients down.
    """
    split = recipe.split
    activation, gradient = (float(TokenCodec(r, hidden).size_bytes(1)) for r in (split.activations, split.gradients))
    if split.shape == "U":
        return {"up": activation + gradient, "down": activation + gradient}
    return {"up": activation + vocabulary.bit_length() / 8, "down": gradient}


def split_claims(recipe: Recipe, noised: bool) -> tuple[str, ...]:
    """Say where a model is split and what it shows to whom. Empty where the model is whole.

    Args:
        noised: the run has an epsilon.
    """
    split = recipe.split
    if not split.used:
        return ()
    blocks = f"the first {split.cut} blocks" if split.cut > 1 else "the first block"
    top = ", final norm and head" if split.shape == "U" else ""
    labels = ", and the next tokens, which are the text itself" if split.shows_labels else ""
    sentences = [
        f"the model is cut: embedding, {blocks}{top} are on each device, and {split.holder} has the rest",
        f"{split.holder} sees activations and gradients of every token that devices train on{labels}; they are not "
        "private, because trained attacks recover text from them, and no epsilon covers them",
    ]
    if split.trains_rest:
        copies = "a copy of the rest for each device" if split.server_parts == "each" else "the rest by each in turn"
        sentences.append(f"{split.holder} learns the weight of each device, and trains {copies}")
    elif noised:
        who = "the server and " if split.held_by == "gateway" else ""
        sentences.append(
            f"the epsilon is about {who}readers of the models, who see noised sums of device parts alone; "
            f"{split.holder} trains nothing, and the promise does not hold against whoever sees what crosses the cut"
        )
    return tuple(sentences)


def split_witnesses(recipe: Recipe, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Add what crosses the cut to each party's view of a round (``plan.disclosure.witnesses``)."""
    split = recipe.split
    if not split.used:
        return rows
    shown = "activations and gradients of each" + (", labels" if split.shows_labels else "")
    found, holds = [], False
    for row in rows:
        if row["who"].startswith(split.holder) and not holds:
            row = {**row, "updates": f"{row['updates']}; {shown}", "promised": "nothing is promised"}
            holds = True
        elif row["who"] == "both together":
            row = {**row, "updates": f"{row['updates']}; {shown}"}
        found.append(row)
    if not holds:
        new = {"who": split.holder, "updates": shown, "sum": "hidden", "promised": "nothing is promised"}
        found.insert(1, new)
    return found
