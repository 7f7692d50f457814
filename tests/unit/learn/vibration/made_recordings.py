"""Recordings of a made-up machine at two loads and on a rig: each fault has a tone of its own, and noise around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgewise.plan.recipe.recipe import Recipe, from_plain

STATES = ("IR_14", "IR_7", "Normal")
SITES = ("load-1", "load-2", "rig")
SAMPLES = 2000


def recordings(samples: int = SAMPLES, seed: int = 1) -> dict[str, Any]:
    """Arrays by SITE/FAULT. Loads have no healthy recording."""
    found = {}
    for s, site in enumerate(SITES):
        for f, state in enumerate(STATES):
            if state != "Normal" or site == "rig":
                noise = np.random.default_rng([seed, s, f]).normal(0.0, 0.3, samples)
                tone = np.sin(np.arange(samples) * (0.2 + 0.5 * f + 0.02 * s))
                found[f"{site}/{state}"] = (tone + noise).astype(np.float32)
    return found


def write(path: Path, **changes: Any) -> Path:
    """Write an ``npz`` file. A change of None leaves an entry out."""
    held = {**recordings(), **changes}
    np.savez(path, **{name: x for name, x in held.items() if x is not None})
    return path


def recipe(path: Path, **changes: Any) -> Recipe:
    """A recipe of two nodes at each load, and a base of few steps."""
    vibration = {
        "rig": "rig", "window": 256, "hop": 128, "nodes": 2, "gap": 128, "width": 8, "layers": 1, "heads": 2,
        "base_steps": 3, "head_steps": 2, "base_batch": 6,
    }  # fmt: skip
    plain: dict[str, Any] = {
        "privacy": "none", "seed": 3, "data": {"source": "vibration", "path": str(path)}, "vibration": vibration,
        "round": {"rounds": 2, "sampling": "all"}, "training": {"local_steps": 2, "batch": 6, "lr": 3e-3},
        "compare": {"local_only": False, "centralised": False},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            plain.setdefault(section, {})[name] = value
        else:
            plain[section] = value
    return from_plain(plain)
