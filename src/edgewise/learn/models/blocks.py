"""Find the decoder blocks of a model and their linear layers, to cut, prune, factorize or quantize them."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgewise.core.errors import ModelError
from edgewise.learn.models.architecture import text_config


def decoder_blocks(model: Any, code: str = "E-SHRINK") -> tuple[str, nn.ModuleList]:
    """Return the name of the list of decoder blocks, and the list.

    Args:
        code: code of the refusal.
    Raises:
        ModelError: ``code`` for a model without one list of ``num_hidden_layers`` blocks.
    """
    wanted = getattr(text_config(model.config), "num_hidden_layers", None)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    outer = [(n, m) for n, m in found if not any(n.startswith(f"{other}.") for other, _ in found)]
    if len(outer) != 1:
        what = f"{type(model).__name__} has {len(outer)} lists of {wanted} decoder blocks, and one is needed."
        raise ModelError(code, what, "take a plain decoder, such as a Llama or a Qwen.")
    return outer[0]


def decoder_block_layers(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers inside decoder blocks by name. Embeddings and the output head are not among them.

    Raises:
        ModelError: E-SHRINK as ``decoder_blocks``, and where the blocks have layers of another kind.
    """
    name, blocks = decoder_blocks(model)
    found = {f"{name}.{n}": m for n, m in blocks.named_modules() if type(m) is nn.Linear}
    others = {f"{name}.{n}": m for n, m in blocks.named_modules() for p in m.parameters(recurse=False) if p.ndim > 1}
    for other, module in others.items():
        if other not in found:
            what = f"{other} is a {type(module).__name__}. Only ordinary linear layers can be made smaller."
            raise ModelError("E-SHRINK", what, "take a model whose blocks have nn.Linear layers, such as a Llama.")
    if not found:
        raise ModelError(
            "E-SHRINK", f"the blocks of {type(model).__name__} have no linear layer.", "take another model."
        )
    return found
