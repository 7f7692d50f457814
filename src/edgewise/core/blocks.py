"""Numbered blocks of a model in the names of its parameters, counted from the last one.

>>> from_last(["embed.weight", "layers.0.q.weight", "layers.1.q.weight", "layers.1.norm.weight", "norm.weight"])
[3, 2, 1, 1, 0]
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")  # the number of a block in "model.layers.3.mlp.up_proj.weight"


def block_of(name: str) -> int | None:
    """Return the number of the block of a parameter. None outside the blocks."""
    found = _NUMBER.search(name)
    return None if found is None else int(found[1])


def blocks_in(names: Sequence[str]) -> int:
    """Return the number of numbered blocks: one more than the largest number. 0 without any."""
    return 1 + max((n for name in names if (n := block_of(name)) is not None), default=-1)


def from_last(names: Sequence[str]) -> list[int]:
    """Number the block of each name from the last block, which has 1.

    Args:
        names: names of parameters or modules in the order of the model.
    Returns:
        The numbers. What follows the last block has 0, as the final norm and a head that is not tied to the embedding.
        What comes before the first block has the largest number, as the embedding. Empty without a numbered block.
    """
    numbers = [block_of(name) for name in names]
    known = [n for n in numbers if n is not None]
    if not known:
        return []
    last, end = max(known), max(i for i, n in enumerate(numbers) if n is not None)
    return [last + 1 - (n if n is not None else last + 1 if i > end else -1) for i, n in enumerate(numbers)]
