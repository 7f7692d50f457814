"""torch's own chance (dropout, fresh adapters), decided by a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgewise.core.keys import Key, derive, word


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """torch's global CPU generator (dropout uses it) seeded from ``key`` inside, restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(word(derive(key, "torch")))
        yield
