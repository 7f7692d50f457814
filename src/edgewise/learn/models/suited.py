"""Test whether a model can read a recipe's text, before anything is trained."""

from __future__ import annotations

from edgewise.core.errors import ModelError, RecipeError
from edgewise.learn.models.architecture import check_causal, sizes
from edgewise.learn.models.isolated import check_isolated
from edgewise.learn.models.load import Loaded
from edgewise.learn.models.smaller_layers import layer_masks
from edgewise.plan.recipe.recipe import Recipe


def check_model_suits(loaded: Loaded, recipe: Recipe) -> None:
    """Refuse a model that cannot read the recipe's text, or that the recipe's optimizer cannot train.

    Raises:
        ModelError: E-MODEL.
        RecipeError: E-COMBO.
    """
    if recipe.training.optimizer == "muon" and not recipe.trainable.adapts and layer_masks(loaded.model):
        what = (
            'training.optimizer = "muon" turns whole matrices, and a masked layer trains only the weights inside its '
        )
        what += "mask. They are no matrix."
        raise RecipeError("E-COMBO", what, 'write optimizer = "adamw", or train adapters: trainable.kind = "lora".')
    check_text_model(loaded, recipe)
    length = recipe.data.sequence_len
    check_causal(loaded.model, loaded.tokens, length, loaded.name)
    if recipe.data.packing == "isolated":
        check_isolated(loaded.model, loaded.tokens, length, loaded.name)


def check_text_model(loaded: Loaded, recipe: Recipe) -> None:
    """Refuse a model whose configuration or tokenizer cannot read the recipe's text. It needs no weights.

    Raises ModelError(E-MODEL).
    """
    found, length = sizes(loaded.model), recipe.data.sequence_len
    if found.context is not None and length > found.context:
        what = f"{loaded.name} reads at most {found.context} tokens, data.sequence_len is {length}."
        raise ModelError("E-MODEL", what, f"set data.sequence_len = {found.context} or less.")
    if recipe.data.rendered and loaded.tokens.template is None:
        key = "data.as_chat" if recipe.data.as_chat else f"data.messages = {recipe.data.messages!r}"
        what = f"{loaded.name} has no chat template, which {key} needs."
        fix = "take a chat model, or write a chat_template.jinja into the model's folder, or write prompts and answers "
        raise ModelError("E-MODEL", what, f"{fix}into two columns, data.prompt and data.text.")
    if loaded.tokens.size > found.vocabulary:
        what = f"{loaded.name}: the tokenizer has {loaded.tokens.size} tokens, the model {found.vocabulary}."
        raise ModelError("E-MODEL", what, "model and tokenizer do not belong together.")
