"""The two parts of a model that is split between devices and a server, by the names of its parameters.

parts = split_part(recipe, spec)        # None where the model is whole
parts.shared                            # the part that is the run's vector: the device's, or the rest
parts.own                               # the other part
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from edgewise.codecs.select.cut_parts import names_behind_cut
from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import ModelError
from edgewise.core.parts import ModelParts
from edgewise.core.vector import Spec
from edgewise.plan.recipe.recipe import Recipe
from edgewise.privacy.token_noise import TokenNoise, token_promise

if TYPE_CHECKING:
    from edgewise.plan.plan import Plan

REST = "rest"  # of ``Checkpoint.memory``: the part of a split model that is not the run's vector
PART = "part"  # name of its array


def split_part(recipe: Recipe, spec: Spec) -> ModelParts | None:
    """Divide a layout behind ``split.cut`` blocks. None where the model is whole.

    The device has the first blocks and what is before them in the layout, and with ``shape = "U"`` what follows the
    last block. Where the device's part is frozen, the run's vector is the rest, and the device's part is ``own``. With
    ``loss = "local"`` the vector is the whole layout, and its parts take turns over rounds. The trainer compares the
    names with those of the stages (``check_split_sides``).

    Args:
        spec: the layout of all trained parameters.
    Raises:
        ModelError: E-CUT where no trained parameter is on the device, or where the rest is trained and has none.
    """
    split = recipe.split
    if not split.used:
        return None
    names = [s.name for s in spec.segments]
    rest = planned_rest_names(recipe, spec)
    if split.local:
        return ModelParts(spec, ())
    if split.device_part == "frozen":
        parts = ModelParts(spec, [name for name in names if name not in rest])
        if not parts.shared.dim:
            what = f"split.cut = {split.cut} leaves nothing to train behind the cut, and the device's part is frozen."
            raise ModelError("E-CUT", what, "take an earlier cut.")
        return parts
    parts = ModelParts(spec, rest)
    if not parts.shared.dim:
        what = f"split.cut = {split.cut} leaves no trained parameter on the device, and nothing would travel."
        raise ModelError("E-CUT", what, "train parameters of the first blocks too, or take a later cut.")
    if split.trains_rest and not parts.own.dim:
        what = f"split.cut = {split.cut} leaves nothing to train behind the cut."
        raise ModelError("E-CUT", what, 'take an earlier cut, or split.server_parts = "frozen".')
    return parts


def planned_rest_names(recipe: Recipe, spec: Spec) -> list[str]:
    """List the segments of a layout that are behind the cut."""
    return names_behind_cut([s.name for s in spec.segments], recipe.split.cut, recipe.split.shape == "head")


def check_split_sides(names: Sequence[str], found: Collection[str], expected: Collection[str], kind: str) -> None:
    """Compare the names of one side with those of the model's stages.

    Args:
        names: of all trained parameters. found: parameters of that side's stages. expected: segments of that side.
        kind: class of the model, for the message.
    Raises:
        ModelError: E-CUT where they differ.
    """
    if {name for name in names if name in found} != set(expected):
        what = f"the layout of {kind} does not follow its blocks, so its parts cannot be named."
        raise ModelError("E-CUT", what, "take a decoder of the kinds Llama, Mistral, Qwen, GPT-2 or GPT-NeoX.")


def split_token_bytes(recipe: Recipe, hidden: int, vocabulary: int) -> dict[str, float]:
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
    if split.cached:
        return {"up": activation + vocabulary.bit_length() / 8, "down": 0.0}
    if split.shape == "U":
        return {"up": activation + gradient, "down": activation + gradient}
    return {"up": activation + vocabulary.bit_length() / 8, "down": gradient}


def split_facts(recipe: Recipe, parts: ModelParts, tokens: Mapping[str, float]) -> dict[str, Any]:
    """Describe the cut for a run's record. ``tokens``: of ``split_token_bytes``."""
    split = {
        "cut": recipe.split.cut,
        "shape": recipe.split.shape,
        "once": recipe.split.cached,
        "device_parameters": parts.shared.dim,
        "rest_parameters": parts.own.dim,
        "token_bytes": dict(tokens),
    }
    return {"split": split, "whole_spec": parts.whole.to_list()}


def split_noise(recipe: Recipe, hidden: int) -> tuple[TokenNoise, TokenNoise] | None:
    """Make clip and noise of activations and of output gradients. None without ``split.token_noise``.

    Args:
        hidden: C, numbers per token between blocks.
    Raises:
        CompositionError: E-PRECISION as ``privacy.grid.fit_noise_grid``.
    """
    split = recipe.split
    if not split.token_noise:
        return None
    activations, gradients = (
        TokenNoise(c, split.token_noise, hidden) for c in (split.clip_activations, split.clip_gradients)
    )
    return activations, gradients


def most_token_passes(recipe: Recipe) -> int:
    """Return the most times that a run trains on one token, whatever the amount of text on its device.

    A step draws a block once at most, since a batch has at most as many blocks as the device. A device with a single
    batch of text draws all of it in each step. A round of E passes ends in the middle of a batch, so it begins at most
    one pass more.
    """
    training = recipe.training
    each = ceil(training.local_epochs) + 1 if training.local_epochs else training.local_steps
    return recipe.round.rounds * each


def is_split(plan: Plan) -> bool:
    """Tell whether devices have a part of the model only, and train it in sessions with the rest."""
    return plan.recipe.split.used


def noises_crossings(plan: Plan) -> bool:
    """Tell whether devices add noise to what crosses the cut, so that their secrets must be secret."""
    return plan.recipe.split.token_noise > 0


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
    crosses = "activations" if split.cached else "activations and gradients"
    sentences = [
        f"the model is cut: embedding, {blocks}{top} are on each device, and {split.holder} has the rest",
        f"{split.holder} sees {crosses} of every token that devices train on{labels}; they are not "
        "private, because trained attacks recover text from them, and no epsilon covers them",
    ]
    if split.token_noise:
        noised_tokens = f"{split.holder} sees activations and output gradients of every token that devices train on"
        sentences[1:] = [noised_tokens, token_promise(split.token_noise, most_token_passes(recipe))]
    if split.cached:
        since = "after the device's part is trained by a small head of its own" if split.local else "from the start"
        sentences.append(
            f"activations go up once, {since}; the gateway of each device keeps them, and sends updates of the rest"
        )
        if noised:
            who = "the server and readers of the models"
            sentences.append(f"the epsilon is about {who}; it does not hold against the gateway")
        return tuple(sentences)
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
    """Add what crosses the cut to each party's view of a round (``plan.disclosure.plan_witnesses``)."""
    split = recipe.split
    if not split.used:
        return rows
    shown = ("activations of each" if split.cached else "activations and gradients of each") + (
        ", labels" if split.shows_labels else ""
    )
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
