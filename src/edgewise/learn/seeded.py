"""Seed torch's own randomness (dropout, fresh adapters) from a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgewise.core.keys import Key, derive, word


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed torch's global generators from ``key`` inside, and restore them after. Dropout uses them.

    There is one for the CPU, and one for each CUDA GPU where this process has used one. That of MPS stays as it is.
    """
    seed, used = word(derive(key, "torch")), torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else []):
        torch.default_generator.manual_seed(seed)
        if used:
            torch.cuda.manual_seed_all(seed)
        yield
