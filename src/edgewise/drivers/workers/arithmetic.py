"""Digest of the arithmetic of this processor and its libraries. A run resumes only where the digest is the same.

Libraries choose their kernels by the instructions that a processor has, and every kernel adds in its own order. A model
that was begun under one order and finished under another would be reproducible under neither.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from edgewise.engine.trainer import ComputesProbe


def digest(trainer: ComputesProbe | None) -> str:
    """Hash the results of fixed computations: SHA-256, 64 hex characters.

    The computations are of the kinds that runs use: numpy's, and the trainer's own where it has any.

    Guarantees: depends on neither recipe nor model nor text; takes milliseconds.
    """
    h = hashlib.sha256()
    for x in _computed():
        h.update(np.ascontiguousarray(x).tobytes())
    if trainer is not None:
        h.update(trainer.arithmetic())
    return h.hexdigest()


def _computed() -> list[Any]:
    """Compute products and factorizations as ``low_rank`` uses them, and functions as noise and norms use them."""
    x = ((np.arange(96 * 160) * 617 % 1009) / 1009 - 0.5).reshape(96, 160)
    y = x.astype(np.float32)
    factor, sizes = np.linalg.qr(x.T[:, :8])[0], np.linalg.svd(x[:24], compute_uv=False)
    powers = [np.exp(v) for v in (x, y)] + [np.log1p(v * v) for v in (x, y)] + [np.sin(x), np.sqrt(y * y)]
    return [y @ y.T, y.T @ y, x @ x.T, factor, sizes, *powers, y.sum(axis=0), np.dot(y[0], y[1])]
