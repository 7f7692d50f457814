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


def spec(hidden: int) -> Spec:
    """The tensors of a model with as many tanh units."""
    return Spec.of(
        [
            ("embed", (BYTES, EMBED), "float32"),
            ("hidden", (CONTEXT * EMBED, hidden), "float32"),
            ("hidden_bias", (hidden,), "float32"),
            ("out", (hidden, BYTES), "float32"),
            ("out_bias", (BYTES,), "float32"),
        ]
    )


SPEC = spec(HIDDEN)


class ByteTrainer:
    """See the module. Subclasses may have another size, other packages of the library, or other examples."""

    spec = SPEC
    packages: Sequence[str] = PACKAGES

    def __init__(self, recipe: Recipe) -> None:
        self._seed = recipe.seed
        library = Path(sysconfig.get_paths()["stdlib"])
        self._text = {}
        for name in self.packages:
            raw = b"\n".join(p.read_bytes() for p in sorted((library / name).rglob("*.py")) if "test" not in p.parts)
            self._text[name] = np.frombuffer(raw[:LIMIT_BYTES], np.uint8)

    def initial(self) -> Vector:
        g = generator(derive(root(self._seed), "byte model"))
        parts = [
            g.normal(0, 0 if "bias" in s.name else 1 if s.name == "embed" else s.shape[0] ** -0.5, s.shape).ravel()
            for s in self.spec.segments
        ]
        return np.concatenate(parts).astype(np.float32)

    def devices(self) -> Sequence[str]:
        return self.packages

    def fit(self, request: FitRequest) -> Update:
        text = self._text[request.device][: -len(self._text[request.device]) // 10]
        w = request.params.copy()
        momentum = np.zeros_like(w)
        losses = []
        for step in range(request.rule.steps):
            before, target = self.examples(text, generator(derive(request.key, step)))
            loss, gradient = _gradient(self.spec, w, before, target)
            losses.append(loss)
            momentum = 0.9 * momentum + gradient
            w -= np.float32(request.rule.lr) * momentum
        head = {"loss_first": losses[0], "loss_last": losses[-1]}
        return Update((w - request.params).astype(np.float32), head, float(len(text)))

    def examples(self, text: np.ndarray, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a batch of contexts uint8[n, 3] and of the bytes after them uint8[n]."""
        return windows(text, g.integers(0, len(text) - CONTEXT, BATCH))

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        text = self._text[device]
        held = text[-len(text) // 10 :]
        at = np.arange(0, len(held) - CONTEXT, max(1, len(held) // 2000))
        loss, _ = _gradient(self.spec, params, *windows(held, at))
        return HeldOut(loss * len(at), len(at))

    def sizes(self) -> Mapping[str, float]:
        return {"parameters": self.spec.dim, "trainable": self.spec.dim, "memory_bytes": 12.0 * self.spec.dim}


def windows(text: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contexts of a text from positions on, and the bytes after them."""
    return text[at[:, None] + np.arange(CONTEXT)], text[at + CONTEXT]


def logits(spec: Spec, w: Vector, before: np.ndarray) -> np.ndarray:
    """Logits of the next byte after contexts, float32[n, 256]."""
    return _forward(spec, w, before)[2]


def _forward(spec: Spec, w: Vector, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embedded contexts, tanh units and logits."""
    embed, hidden, hidden_bias, out, out_bias = _tensors(spec, w)
    x = embed[before].reshape(len(before), -1)
    h = np.tanh(x @ hidden + hidden_bias)
    return x, h, h @ out + out_bias


def _tensors(spec: Spec, w: Vector) -> list[np.ndarray]:
    return [w[s.start : s.stop].reshape(s.shape) for s in spec.segments]


def _gradient(spec: Spec, w: Vector, before: np.ndarray, target: np.ndarray) -> tuple[float, Vector]:
    """Mean loss (nats per byte) of predicting the bytes after contexts, and its gradient."""
    embed, hidden, _, out, _ = _tensors(spec, w)
    n = len(target)
    x, h, logits = _forward(spec, w, before)
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
