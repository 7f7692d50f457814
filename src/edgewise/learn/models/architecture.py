"""Describe a model of any architecture: read its sizes from its configuration, and test causality by a forward pass.

Shape suffixes: B = batch, T = sequence, V = vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign

SPOKEN = "The cow went to the river, and 12 old stones were found there by a girl with a blue hat; nobody saw them."
LARGE = 0.05  # As a share of the largest logit. No rounding is that large, not even in bfloat16.
UNREAD = 'lower data.sequence_len, or set model.precision = "float32".'


class ModelSizes(NamedTuple):
    """Sizes of the part that reads text.

    Attributes:
        layers: number of blocks.
        hidden: width between blocks.
        inner: width inside a block's feed-forward part; the largest of all blocks.
        vocabulary: number of token embeddings.
        context: largest number of tokens that it reads at once. None without a limit.
    """

    layers: int
    hidden: int
    inner: int
    vocabulary: int
    context: int | None


def text_config(config: Any) -> Any:
    """Return the configuration of the part that reads text: ``config`` itself, or its section ``text_config``."""
    with foreign(ModelError, "E-MODEL", "config.json describes no single text model", "take another model."):
        return config.get_text_config(decoder=True)


def sizes(model: nn.Module) -> ModelSizes:
    """Return the sizes of a transformers model. Raises ModelError(E-MODEL) for one without token embeddings."""
    config = text_config(model.config)
    hidden = getattr(config, "hidden_size", None) or 0
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    if isinstance(inner, list | tuple):  # Each layer has its own.
        inner = max(inner)
    longest = getattr(config, "max_position_embeddings", None)
    return ModelSizes(
        getattr(config, "num_hidden_layers", None) or 0,
        hidden,
        inner,
        embeddings(model).weight.shape[0],
        longest if isinstance(longest, int) and longest > 0 else None,
    )


def embeddings(model: nn.Module) -> Any:
    """Return the module that turns token ids into vectors. Raises ModelError(E-MODEL) where there is none."""
    found = None
    with foreign(ModelError, "E-MODEL", "the model names no token embeddings", "take another model."):
        found = model.get_input_embeddings()
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise ModelError("E-MODEL", "the model has no token embeddings.", "take a language model.")
    return found


def logits(model: nn.Module, ids_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
    """Compute next-token logits [B, T, V], as training, evaluation and export need them.

    The model reads all tokens. None counts as padding, and nothing is cached.

    Args:
        positions_BT: positions of several documents in a row, each from 0. transformers then lets no document attend to
            another one, where the architecture can (``check_isolated``). None for one document in each row.
    """
    more = {} if positions_BT is None else {"position_ids": positions_BT}
    out: Tensor = model(input_ids=ids_BT, use_cache=False, **more).logits
    return out


def probe_token_ids(tokens: Any, rows: int, length: int, vocabulary: int) -> Tensor:
    """Make token ids that differ from row to row, from ordinary words: int64[rows, length].

    No id stands for an image or another special input.

    Args:
        tokens: ``learn.text.tokens.Tokens``.
        vocabulary: number of ids that the model knows.
    """
    known = sorted({int(i) for i in tokens.encode([SPOKEN])[0] if i < vocabulary})
    known = known if len(known) > 4 else list(range(vocabulary))
    at = torch.arange(rows * length).reshape(rows, length)
    return torch.tensor(known)[(at * at * 31 + at * 7) % 1009 % len(known)]


def check_causal(model: nn.Module, tokens: Any, length: int, name: str) -> None:
    """Refuse a model that sees the tokens which it has to predict.

    The model reads ``length`` tokens twice, the second time with other tokens in the second half. The logits of the
    first half must not move. Where they move a little, the gradient tells whether that is rounding, because a causal
    model's is exactly zero. The check costs two forward passes.

    Raises:
        ModelError: E-MODEL for such a model, and for one that cannot read so many tokens.
    Guarantees: weights, gradients, random state and the mode of the model stay as they are.
    """
    ids_2T = probe_token_ids(tokens, 2, max(2, length), embeddings(model).weight.shape[0])
    half = ids_2T.shape[1] // 2
    ids_2T[1, :half] = ids_2T[0, :half]
    mode, refused = model.training, f"{name} cannot read {length} tokens"
    model.eval()
    try:
        with torch.no_grad(), foreign(ModelError, "E-MODEL", refused, UNREAD):
            first, second = (logits(model, ids_2T[row : row + 1])[:, :half].nan_to_num() for row in (0, 1))
        moved = not torch.equal(first, second)
        if moved and float((first - second).abs().max()) <= LARGE * float(first.abs().max()):
            moved = _influenced(model, ids_2T[:1], half)
    finally:
        model.train(mode)
    if moved:
        raise ModelError(
            "E-MODEL", f"{name} is not causal. Its logits of a token change with later tokens.", _cure(model)
        )


def _influenced(model: nn.Module, ids_1T: Tensor, half: int) -> bool:
    """Tell whether the logits of the first half have a gradient with respect to the second half's embeddings."""
    leaves: list[Tensor] = []

    def caught(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    handle = embeddings(model).register_forward_hook(caught)
    try:
        with torch.enable_grad():
            out = logits(model, ids_1T)[:, :half].float()
            weights = torch.linspace(-1, 1, out.numel()).view_as(out)
            found = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    finally:
        handle.remove()
    # With one row, the gradients of the tokens follow one another, whichever of the first two axes is the sequence.
    return not leaves or any(g is not None and bool(g.reshape(ids_1T.shape[1], -1)[half:].any()) for g in found)


def _cure(model: nn.Module) -> str:
    for key in ("is_decoder", "causal"):
        if getattr(model.config, key, None) is False:
            more = (
                f'set "{key}": true in its config.json: the model then reads from left to right, and has to learn that.'
            )
            return f"take a causal language model, or {more}"
    return "take a causal language model: it predicts each token from the ones before it."


def module_pattern(name: str) -> str:
    """Replace each number in a module's or parameter's name by ``*``, so that all layers and experts share one name."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def called_modules(model: nn.Module) -> set[str]:
    """Return the patterns of the modules whose forward method runs when the model reads text.

    An adapter on another module changes nothing. Such a module belongs to images or sound, or another module uses its
    weight directly.
    """
    found: set[str] = set()
    names = {module: module_pattern(name) for name, module in model.named_modules()}

    def note(module: nn.Module, inputs: Any) -> None:
        found.add(names[module])

    handles = [module.register_forward_pre_hook(note) for module in names]
    mode = model.training
    model.eval()
    try:
        rows = embeddings(model).weight
        with torch.no_grad(), _without_values(rows):
            logits(model, torch.arange(min(8, rows.shape[0]), device=rows.device)[None])
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return found


def _without_values(weight: Tensor) -> AbstractContextManager[Any]:
    """Let transformers look at values of tensors that have none, where a weight is on the device ``meta``."""
    if weight.device.type != "meta":
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def unread(model: nn.Module) -> dict[str, int]:
    """Count the trained parameters of parts that text does not run through, by part.

    One such part is the image encoder of a multimodal model. Its parameters travel and never change. The result is
    empty where the whole model reads text, which a configuration without sections tells.
    """
    if text_config(model.config) is model.config:
        return {}
    live, counts = called_modules(model), Counter[str]()
    for owner, module in model.named_modules():
        if module_pattern(owner) not in live:
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            counts[".".join(owner.split(".")[:2])] += sum(p.numel() for p in own)
    return {part: n for part, n in counts.items() if n}


def shares(parts: dict[str, int]) -> str:
    """Write the largest of some counts as text, in per cent of all: ``{"layers.*.mlp.up_proj.weight": 60, ...}``."""
    total = sum(parts.values()) or 1
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    return ", ".join(f"{re.sub(r'[.]weight$', '', name)} {100 * n / total:.0f} %" for name, n in largest)
