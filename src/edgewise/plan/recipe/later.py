"""Keys that came after the first recipes. A resolved recipe leaves them out while they have their default.

The run id, the digest of a simulation and a stored recipe are made of the resolved recipe. A recipe that does not use a
later key therefore keeps the identity that it had before the key existed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dotted keys, at most two parts. A section may stand here as a whole.
LATER = (
    "buffer",
    "compare.unseen",
    "data.answers",
    "data.as_chat",
    "data.packing",
    "data.replay",
    "data.replay_share",
    "data.stream",
    "data.tools",
    "data.window",
    "data.window_rounds",
    "data.window_start",
    "distill",
    "dp.records",
    "drift",
    "engine",
    "keywords",
    "metric",
    "model.quantize",
    "personal",
    "personal.blocks",
    "personal.gate",
    "personal.parts",
    "prune",
    "retriever",
    "simulation.ray_address",
    "simulation.worker_cpus",
    "simulation.worker_gpus",
    "split",
    "statistics",
    "training.checkpointing",
    "vibration",
)


def without_unused(plain: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the later keys that have their default.

    Args:
        plain, defaults: all keys of a recipe, and of one that gives none, in plain JSON types.
    """
    out = dict(plain)
    for key in LATER:
        section, _, name = key.partition(".")
        if not name:
            if out[section] == defaults[section]:
                del out[section]
        elif section in out and out[section][name] == defaults[section][name]:
            out[section] = {k: v for k, v in out[section].items() if k != name}
    return out
