"""Architectures that llama.cpp reads: names, order and settings of a model's tensors in a GGUF file.

    known = of(model.config)
    known.tensor("model.layers.0.self_attn.q_proj.weight", x)    # ("blk.0.attn_q.weight", rows in llama.cpp's order)

Rotary positions: transformers rotates coordinate i of a head together with i + h/2, and llama.cpp's "llama" rotates 2i
with 2i + 1, for heads of h coordinates. So the rows of q and k are reordered. An adapter's factor B has the same rows,
and A none of them.

Source: llama.cpp, conversion/llama.py (``permute``), conversion/gpt2.py, conversion/qwen.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Array

HEADS = re.compile(r"\.self_attn\.(q|k)_proj\.(weight|bias)$")
TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
FLOAT32 = re.compile(r"^position_embd\.|_norm\.(weight|bias)$|^rope_freqs\.")  # llama.cpp has no other type for these.
ELSEWHERE = 'export it with "--to merged", and convert that folder with llama.cpp\'s own convert_hf_to_gguf.py.'


class KnownArchitecture(NamedTuple):
    """An architecture with the sizes of one model.

    Attributes:
        name: its name in GGUF.
        config: the model's configuration.
        rotates: llama.cpp rotates neighbours, so the rows of q and k are reordered.
        names: parameter name without ``.weight`` or ``.bias`` -> name in GGUF, or None.
    """

    name: str
    config: Any
    rotates: bool
    names: Callable[[str], str | None]

    def tensor(self, name: str, x: Array) -> tuple[str, Array]:
        """Return the name and the values of a parameter in the file.

        Args:
            name: as in the model.
            x: float array, of the shape in the model.
        Raises:
            EdgewiseError: E-EXPORT for a parameter that GGUF has no name for.
        """
        if TRANSPOSED.search(name) and self.name == "gpt2":
            x = x.T
        return self.named(name), self.reordered(name, x)

    def named(self, name: str) -> str:
        """Return the name of a parameter in the file. Raises EdgewiseError as ``tensor``."""
        owner, _, kind = name.rpartition(".")
        found = self.names(owner)
        if found is None or kind not in ("weight", "bias"):
            raise _refused(f"GGUF has no name for the parameter {name} of this architecture")
        return f"{found}.{kind}"

    def reordered(self, name: str, x: Array, back: bool = False) -> Array:
        """Reorder the rows of a query or key projection for llama.cpp, or ``back``. Others stay as they are.

        Row i of half s of a head moves to row 2 i + s.
        """
        part = HEADS.search(name) if self.rotates else None
        if part is None:
            return x
        heads = self.config.num_attention_heads if part[1] == "q" else self.config.num_key_value_heads
        half = x.shape[0] // heads // 2
        split = (heads, half, 2) if back else (heads, 2, half)
        return np.ascontiguousarray(x.reshape(*split, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape))

    def original(self, name: str, x: Array) -> Array:
        """Return a parameter's values in the model from those in the file. The inverse of ``tensor``."""
        x = self.reordered(name, x, back=True)
        return x.T if TRANSPOSED.search(name) and self.name == "gpt2" else x

    def extra(self) -> dict[str, Array]:
        """Return tensors that the file has and the model computes: the factors of Llama 3's rotary frequencies."""
        rope = _rope(self.config)
        if rope.get("rope_type") != "llama3":
            return {}
        return {"rope_freqs.weight": _llama3_factors(rope, _head_width(self.config))}


def recognised_architecture(config: Any) -> KnownArchitecture:
    """Recognise a model by its configuration.

    Raises:
        EdgewiseError: E-EXPORT for an architecture, or a setting of one, that this export does not write. E-DEPENDENCY
            without the gguf package.
    """
    try:
        import gguf
    except ImportError:
        fix = 'pip install "edgewise[export]".'
        raise EdgewiseError("E-DEPENDENCY", "an export to GGUF needs the package gguf.", fix) from None
    kinds = {
        "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
        "gpt2": gguf.MODEL_ARCH.GPT2,
    }  # fmt: skip
    kind = getattr(config, "model_type", "")
    if kind not in kinds:
        raise _refused(f"a model of the architecture {kind!r:.40} is not written as GGUF, only {', '.join(kinds)}")
    _check(config, kind)
    table = gguf.get_tensor_name_map(kinds[kind], config.num_hidden_layers)
    name = gguf.MODEL_ARCH_NAMES[kinds[kind]]
    return KnownArchitecture(name, config, kind in ("llama", "mistral"), table.get_name)


def _refused(what: str) -> EdgewiseError:
    return EdgewiseError("E-EXPORT", f"{what}.", ELSEWHERE)


def _check(config: Any, kind: str) -> None:
    """Refuse settings that llama.cpp's architecture does not have, or that this export does not write."""
    wanted = {"hidden_act": "silu"} if kind != "gpt2" else {
        "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }  # fmt: skip
    if kind != "gpt2" and getattr(config, "use_sliding_window", True):
        wanted["sliding_window"] = None
    for key, value in wanted.items():
        if (found := getattr(config, key, value)) != value:
            raise _refused(f"this model has {key} = {found!r:.40}, and GGUF's {kind} has {value!r}")
    if kind != "gpt2" and (scaling := _rope(config).get("rope_type", "default")) not in ("default", "linear", "llama3"):
        raise _refused(f"rotary positions of the type {scaling!r:.40} are not written as GGUF")


def write_settings(writer: Any, known: KnownArchitecture) -> None:
    """Write a model's sizes and constants with a ``gguf.GGUFWriter``."""
    config = known.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if known.name == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope, width = _rope(config), _head_width(config)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    if width != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(width)
        writer.add_value_length(width)
    if rope.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _llama3_factors(rope: dict[str, Any], width: int) -> Array:
    """Return the divisors of the rotary frequencies of Llama 3, float32[width / 2].

    Source: llama.cpp, conversion/llama.py (``generate_extra_tensors``).
    """
    frequencies = rope["rope_theta"] ** -(np.arange(0, width, 2) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between)).astype(np.float32)
