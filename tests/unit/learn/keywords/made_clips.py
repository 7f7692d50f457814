"""Spectrograms of three made-up words: each has a band of its own, and noise around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgewise.plan.recipe.recipe import Recipe, from_plain

WORDS = ("down", "left", "up")
FRAMES, BANDS = 16, 12


def spectrograms(word: int, n: int, seed: int) -> Any:
    """Bytes [n, frames, bands] of a word, whose band sounds louder."""
    rng = np.random.default_rng([seed, word])
    x = rng.normal(90.0, 12.0, (n, FRAMES, BANDS))
    x[:, 4:12, 3 * word : 3 * word + 3] += 70.0
    return x.clip(0, 255).astype(np.uint8)


def write(path: Path, each: int = 14) -> Path:
    """Write a file with one array for each word."""
    np.savez(path, **{word: spectrograms(i, each, 1) for i, word in enumerate(WORDS)})
    return path


def recipe(path: Path, **changes: Any) -> Recipe:
    """A recipe of two homes for each word, with 4 clips for the test and 4 public ones."""
    keywords = {
        "width": 8, "layers": 1, "heads": 2, "test": 4, "public": 4, "clips": 3, "base_steps": 5, "base_batch": 8,
    }  # fmt: skip
    plain: dict[str, Any] = {
        "privacy": "none", "seed": 3, "data": {"source": "keywords", "path": str(path)}, "keywords": keywords,
        "round": {"rounds": 2}, "training": {"local_steps": 2, "batch": 4, "lr": 3e-3},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            plain.setdefault(section, {})[name] = value
        else:
            plain[section] = value
    return from_plain(plain)
