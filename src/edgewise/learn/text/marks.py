"""Mark the first token of each document in a block, for documents that share a block and do not read one another.

The mark is one bit of the id. ``~id`` still marks a token that is read and not learnt, and the sign of a number tells
it with and without a mark.
"""

from __future__ import annotations

import numpy as np

from edgewise.core.vector import Array

BEGINS = 1 << 30  # No vocabulary is that large.


def marked_document(piece: Array) -> Array:
    """Mark the first token of a document: int32[n]."""
    first = piece[:1]
    marked = np.where(first < 0, ~(~first | BEGINS), first | BEGINS)
    return np.concatenate([marked, piece[1:]]).astype(np.int32)


def unmarked(blocks_NS: Array) -> Array:
    """Return blocks without marks. The sign of each number stays."""
    return np.where(blocks_NS < 0, ~(~blocks_NS & ~BEGINS), blocks_NS & ~BEGINS)
