"""Read the weights of a causal language model with ``transformers``. Safetensors only, no remote code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign

# Old versions stored these, new ones compute them.
DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


def read_weights(folder: Path, **how: Any) -> nn.Module:
    """Read a model with ``transformers``. No weight may be missing, left over, or of another shape.

    Args:
        how: further arguments of ``from_pretrained``, such as ``dtype``.
    Raises:
        ModelError: E-MODEL.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", "check that it is complete."):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **how,
        )
    # transformers would fill missing and mismatched weights with random numbers, and drop unexpected ones.
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if odd := sorted(str(key) for key in info.get(kind, ()) if not DERIVED.search(str(key))):
            what = f"{folder}: {len(odd)} {kind.replace('_', ' ')} ({', '.join(odd[:3])})."
            raise ModelError("E-MODEL", what, "config.json and weights must be of one model: save it again.")
    return model
