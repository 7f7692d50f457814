"""A language model over bytes that trains in milliseconds: a trainer for benchmarks of what is around the model.

Three bytes of context -> embedding (32 each) -> 512 tanh units -> softmax over 256 bytes; 188,928 parameters, plain
numpy, SGD with momentum. 17 devices, each one package of this machine's standard library; the last tenth of its bytes
is held out. Perplexity is per byte. Use it as an extension: ``EDGEWISE``.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgewise.core.keys import derive, generator, root
from edgewise.core.training import FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe.recipe import Recipe

PACKAGES = (
    "asyncio collections concurrent ctypes email html http importlib json logging multiprocessing re unittest urllib "
    "wsgiref xml xmlrpc"
).split()
CONTEXT, EMBED, HIDDEN, BYTES, BATCH = 3, 32, 512, 256, 256
LIMIT_BYTES = 200_000  # of text per device
SPEC = Spec.of(
    [
        ("embed", (BYTES, EMBED), "float32"),
        ("hidden", (CONTEXT * EMBED, HIDDEN), "float32"),
        ("hidden_bias", (HIDDEN,), "float32"),
        ("out", (HIDDEN, BYTES), "float32"),
        ("out_bias", (BYTES,), "float32"),
    ]
)


class ByteTrainer:
    """See the module."""

    spec = SPEC

    def __init__(self, recipe: Recipe) -> None:
        self._seed = recipe.seed
        library = Path(sysconfig.get_paths()["stdlib"])
        self._text = {}
        for name in PACKAGES:
            raw = b"\n".join(p.read_bytes() for p in sorted((library / name).rglob("*.py")) if "test" not in p.parts)
            self._text[name] = np.frombuffer(raw[:LIMIT_BYTES], np.uint8)

    def initial(self) -> Vector:
        g = generator(derive(root(self._seed), "byte model"))
        parts = [
            g.normal(0, 0 if "bias" in s.name else 1 if s.name == "embed" else s.shape[0] ** -0.5, s.shape).ravel()
            for s in SPEC.segments
        ]
        return np.concatenate(parts).astype(np.float32)

    def devices(self) -> Sequence[str]:
        return PACKAGES

    def fit(self, request: FitRequest) -> Update:
        text = self._text[request.device][: -len(self._text[request.device]) // 10]
        w = request.params.copy()
        momentum = np.zeros_like(w)
        losses = []
        for step in range(request.rule.steps):
            at = generator(derive(request.key, step)).integers(0, len(text) - CONTEXT, BATCH)
            loss, gradient = _gradient(w, text, at)
            losses.append(loss)
            momentum = 0.9 * momentum + gradient
            w -= np.float32(request.rule.lr) * momentum
        head = {"loss_first": losses[0], "loss_last": losses[-1]}
        return Update((w - request.params).astype(np.float32), head, float(len(text)))

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        text = self._text[device]
        held = text[-len(text) // 10 :]
        at = np.arange(0, len(held) - CONTEXT, max(1, len(held) // 2000))
        loss, _ = _gradient(params, held, at)
        return HeldOut(loss * len(at), len(at))

    def sizes(self) -> Mapping[str, float]:
        return {"parameters": SPEC.dim, "trainable": SPEC.dim, "memory_bytes": 12.0 * SPEC.dim}


def _gradient(w: Vector, text: np.ndarray, at: np.ndarray) -> tuple[float, Vector]:
    """Mean loss (nats per byte) of predicting text[at + 3], and its gradient."""
    embed, hidden, hidden_bias, out, out_bias = (w[s.start : s.stop].reshape(s.shape) for s in SPEC.segments)
    n = len(at)
    before = text[at[:, None] + np.arange(CONTEXT)]
    target = text[at + CONTEXT]
    x = embed[before].reshape(n, -1)
    h = np.tanh(x @ hidden + hidden_bias)
    logits = h @ out + out_bias
    logits -= logits.max(1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    loss = -float(np.log(p[np.arange(n), target]).mean())
    p[np.arange(n), target] -= 1
    p /= n
    back = (p @ out.T) * (1 - h * h)
    embed_gradient = np.zeros_like(embed)
    np.add.at(embed_gradient, before.ravel(), (back @ hidden.T).reshape(-1, EMBED))
    parts = (embed_gradient, x.T @ back, back.sum(0), h.T @ p, p.sum(0))
    return loss, np.concatenate([part.ravel() for part in parts])


EDGEWISE = Extension(trainer=ByteTrainer)
