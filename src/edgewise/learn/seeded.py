"""Seed torch's own randomness (dropout, fresh adapters) from a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgewise.core.keys import Key, derive, word


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed torch's global CPU generator from ``key`` inside, and restore it after. Dropout uses that generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(word(derive(key, "torch")))
        yield
