"""Structured pruning: a smaller model of the same architecture, with fewer heads and channels or fewer blocks.

    smaller = narrow_model(model, calibration_NS, 0.5)            # heads and feed-forward channels
    smaller = shallow_model(model, calibration_NS, 0.5)           # blocks

The result has a smaller configuration and ordinary layers, so it is faster and ``from_pretrained`` reads it.

Shape suffixes: N = blocks of text, S = tokens per block, I = inputs, H = heads.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.vector import Array
from edgewise.learn.compress.measure import calibration_layer_inputs, model_perplexity
from edgewise.learn.models.architecture import text_config
from edgewise.learn.models.blocks import decoder_blocks

QUERY, KEY, VALUE, OUT = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
LAYERS = (QUERY, KEY, VALUE, OUT, GATE, UP, DOWN)


class _Heads(NamedTuple):
    """Sizes of attention: key-value heads, query heads of each of them, and the width of a head."""

    groups: int
    queries: int
    width: int


def narrow_model(model: Any, blocks_NS: Array, kept: float) -> Any:
    """Keep the attention heads and feed-forward channels whose activations are largest.

    A head's score is the L2 norm of its output before the output projection, and a channel's that of its product with
    the gate, over the calibration tokens. Query heads that share a key-value head stay or go together. Each block keeps
    as many as any other, as the configuration needs it.

    Args:
        blocks_NS: calibration text.
        kept: share of the parameters of the decoder blocks to keep, in (0, 1). Heads are kept to that share, rounded,
            and channels so that all parameters are as near to it as they can be from below. One head and one channel
            always stay.
    Returns:
        A new model. The old one is unchanged.
    Raises:
        ModelError: E-SHRINK for an architecture whose blocks are not those of a Llama.
    Source: Muralidharan et al. 2024, arXiv:2407.14679 (Minitron), section 2.2, with the L2 norm over all tokens.
    """
    at, blocks = decoder_blocks(model)
    _check(model, blocks)
    config = text_config(model.config)
    heads = _heads(model, config)
    inputs = calibration_layer_inputs(
        model, blocks_NS, [f"{at}.{i}.{n}" for i in range(len(blocks)) for n in (OUT, DOWN)]
    )
    groups = max(1, round(kept * heads.groups))
    channels = _channels(blocks[0], heads, groups, config.intermediate_size, kept)
    tensors = model.state_dict()
    for i in range(len(blocks)):
        block = f"{at}.{i}"
        by_head_H = inputs[f"{block}.{OUT}"].squares_I.view(heads.groups, -1).sum(1)
        head_H = _largest(by_head_H, groups)
        width = heads.queries * heads.width
        query = _places(head_H, width)
        for name, rows in ((QUERY, query), (KEY, _places(head_H, heads.width)), (VALUE, _places(head_H, heads.width))):
            _cut(tensors, f"{block}.{name}", rows, 0)
        _cut(tensors, f"{block}.{OUT}", query, 1)
        channel_I = _largest(inputs[f"{block}.{DOWN}"].squares_I, channels)
        for name, axis in ((GATE, 0), (UP, 0), (DOWN, 1)):
            _cut(tensors, f"{block}.{name}", channel_I, axis)
    new = copy.deepcopy(model.config)
    inner = text_config(new)
    inner.head_dim, inner.intermediate_size = heads.width, channels
    inner.num_key_value_heads, inner.num_attention_heads = groups, groups * heads.queries
    return _smaller_with_new_config(model, new, tensors)


def shallow_model(model: Any, blocks_NS: Array, kept: float) -> Any:
    """Drop the blocks whose absence raises the perplexity of calibration text least, one after another.

    Args:
        blocks_NS: calibration text.
        kept: share of the blocks to keep, in (0, 1). round(kept n) of n blocks stay, at least one and at most n - 1.
    Returns:
        A new model. The old one is unchanged.
    Raises:
        ModelError: E-SHRINK for a model with one block.
    """
    at, blocks = decoder_blocks(model)
    if len(blocks) < 2:
        raise ModelError(
            "E-SHRINK", f"{type(model).__name__} has one block, which cannot be dropped.", "prune its width."
        )
    left = list(range(len(blocks)))
    for _ in range(len(blocks) - min(len(blocks) - 1, max(1, round(kept * len(blocks))))):
        rises = {i: model_perplexity(_of_blocks(model, at, [j for j in left if j != i]), blocks_NS) for i in left}
        left.remove(min(left, key=lambda i: rises[i]))
    return _of_blocks(model, at, left)


def _of_blocks(model: Any, at: str, chosen: Sequence[int]) -> Any:
    number = re.compile(rf"^{re.escape(at)}\.(\d+)\.")
    place = {old: new for new, old in enumerate(chosen)}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        found = number.match(name)
        if found is None:
            tensors[name] = value
        elif int(found[1]) in place:
            tensors[number.sub(f"{at}.{place[int(found[1])]}.", name)] = value
    new = copy.deepcopy(model.config)
    inner, whole = text_config(new), text_config(model.config).num_hidden_layers
    for key, value in vars(inner).items():
        if isinstance(value, list) and len(value) == whole and key.startswith("layer"):
            setattr(inner, key, [value[i] for i in chosen])
    inner.num_hidden_layers = len(chosen)
    return _smaller_with_new_config(model, new, tensors)


def _smaller_with_new_config(model: Any, config: Any, tensors: dict[str, Tensor]) -> Any:
    """Make the smaller model and give it the tensors, which are copied. It has the mode of the old one."""
    dtype = next(model.parameters()).dtype
    made = type(model)._from_config(config, dtype=dtype)
    made.load_state_dict({name: value.clone() for name, value in tensors.items()})
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.train(model.training)


def _check(model: Any, blocks: nn.ModuleList) -> None:
    for i, block in enumerate(blocks):
        linear = {n for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        if linear != set(LAYERS):
            odd = sorted(linear ^ set(LAYERS))[0]
            what = f"block {i} of {type(model).__name__} is not that of a Llama: it differs in {odd}."
            raise ModelError("E-SHRINK", what, "prune its depth (--how depth), or its weights (--how wanda).")
        norms = [n for n, p in block.self_attn.named_parameters() if not n.split(".")[0].endswith("_proj")]
        width = getattr(text_config(model.config), "head_dim", None)
        if any(block.self_attn.get_parameter(n).shape != (width,) for n in norms):
            what = (
                f"block {i} of {type(model).__name__} has {norms[0]}, which is not one number for each place of a head."
            )
            raise ModelError("E-SHRINK", what, "prune its depth (--how depth), or its weights (--how wanda).")


def _heads(model: Any, config: Any) -> _Heads:
    queries = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return _Heads(groups, queries // groups, width)


def _channels(block: Any, heads: _Heads, groups: int, channels: int, kept: float) -> int:
    """Return the number of channels that brings a block nearest to its share of parameters, from below."""
    sizes = {name: block.get_submodule(name).weight.numel() for name in LAYERS}
    attention = sum(sizes[name] for name in (QUERY, KEY, VALUE, OUT)) * groups // heads.groups
    one = sum(sizes[name] for name in (GATE, UP, DOWN)) // channels
    return min(channels, max(1, int((kept * sum(sizes.values()) - attention) / one)))


def _largest(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _places(chosen: Tensor, width: int) -> Tensor:
    return (chosen[:, None] * width + torch.arange(width)).reshape(-1)


def _cut(tensors: dict[str, Tensor], layer: str, chosen: Tensor, axis: int) -> None:
    """Keep some rows (axis 0, with the bias) or columns (axis 1) of a layer."""
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].index_select(axis, chosen)
    if axis == 0 and f"{layer}.bias" in tensors:
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"].index_select(0, chosen)
